//! Reading a database that cannot be opened where it is, since its directory or its disk cannot be written: readers of a write-ahead log
//! need shared memory beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use rusqlite::OpenFlags;
use tempfile::TempDir;

use super::{
    connect_reader, connect_writer,
    schema::{index_error, known, migrate, version},
};
use crate::cache::CacheError;

/// A database that nobody changes.
#[derive(Debug)]
pub(super) struct Unchanging {
    path: PathBuf,
    /// Of a copy, which is removed with it.
    _dir: Option<TempDir>,
}

impl Unchanging {
    /// Of a database on a disk that is read-only and without a log, itself; of any other, a copy in the directory for temporary files.
    pub(super) fn of(path: &Path) -> Result<Self, CacheError> {
        let log = log_of(path);
        let has_log = fs::metadata(&log).is_ok_and(|log| log.len() > 0);
        let on_read_only_disk = rustix::fs::statvfs(path)
            .is_ok_and(|disk| disk.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY));
        // What is of an older version is brought up to date, which only a copy can be.
        let is_known = || {
            let connection = connect_reader(path, true)?;
            Ok::<_, rusqlite::Error>(version(&connection)? == known())
        };
        if on_read_only_disk && !has_log && is_known().unwrap_or(false) {
            return Ok(Self {
                path: path.to_owned(),
                _dir: None,
            });
        }
        let copy = || -> io::Result<_> {
            let dir = tempfile::Builder::new()
                .prefix("castore-index-")
                .tempdir()?;
            let copy = dir.path().join("index.sqlite");
            fs::copy(path, &copy)?;
            if has_log {
                fs::copy(&log, log_of(&copy))?;
            }
            Ok((dir, copy))
        };
        let (dir, path) = copy().map_err(|error| CacheError::io(path, error))?;
        // What is in the log alone would not be seen.
        let join = || {
            migrate(&path)?;
            let connection = connect_writer(&path, OpenFlags::empty())?;
            connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        join().map_err(|cause| index_error(&path, cause))?;
        Ok(Self {
            path,
            _dir: Some(dir),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The write-ahead log of a database.
pub(super) fn log_of(path: &Path) -> PathBuf {
    let mut log = path.as_os_str().to_owned();
    log.push("-wal");
    log.into()
}
