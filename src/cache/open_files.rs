use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags},
    io::Errno,
};

use super::{
    CacheError, DataFile,
    condemned::{Condemned, Held},
    index::{self, FileRow},
};

/// The data files that are open, bounded in number.
#[derive(Debug)]
pub(super) struct OpenFiles {
    /// For messages.
    dir: PathBuf,
    /// The directory itself, which may be moved.
    data: OwnedFd,
    /// `None` where it cannot be made.
    condemned: Option<Condemned>,
    limit: usize,
    /// By number. The lock is not held while a file is opened.
    files: RwLock<HashMap<u64, Arc<DataFile>>>,
}

impl OpenFiles {
    /// `limit`: how many stay open; those in use beyond it stay open too.
    pub(super) fn new(cache_dir: &Path, limit: usize) -> Result<Self, CacheError> {
        let dir = cache_dir.join("data");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let data = rustix::fs::open(&dir, flags, Mode::empty())
            .map_err(|error| CacheError::io(&dir, error.into()))?;
        Ok(Self {
            dir,
            condemned: Condemned::open(data.as_fd()),
            data,
            limit,
            files: RwLock::default(),
        })
    }

    /// The numbers of the files that are there.
    pub(super) fn list(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in Dir::read_from(&self.data)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            numbers.extend(index::file_number(name));
        }
        Ok(numbers)
    }

    /// Opens a file, as open(2) does; a new one has mode 0600.
    pub(super) fn open_raw(&self, number: u64, flags: OFlags) -> io::Result<File> {
        let mode = Mode::RUSR | Mode::WUSR;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = || rustix::fs::openat(&self.data, name(number), flags, mode);
        let file = match open() {
            Err(Errno::MFILE | Errno::NFILE) => {
                self.close_oldest();
                open()?
            }
            opened => opened?,
        };
        Ok(file.into())
    }

    /// Puts an evicted file aside, until nobody has it open any more. One that is not there is no error.
    pub(super) fn condemn(&self, number: u64) {
        let name = name(number);
        let unlink = || rustix::fs::unlinkat(&self.data, &name, AtFlags::empty());
        let gone = match &self.condemned {
            Some(condemned) => condemned.take(self.data.as_fd(), &name),
            None => Err(io::ErrorKind::NotFound.into()),
        };
        match gone.or_else(|_| unlink().map_err(io::Error::from)) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = ?self.path(number), %error, "cannot be removed");
            }
        }
    }

    /// Unlinks the evicted files that nobody has open, and says what the others take up.
    pub(super) fn reap(&self) -> Held {
        let Some(condemned) = &self.condemned else {
            return Held::default();
        };
        condemned.reap().unwrap_or_else(|error| {
            tracing::debug!(%error, dir = ?self.dir, "evicted files cannot be removed");
            Held::default()
        })
    }

    /// Syncs the directory, so that the names of new files outlast a crash.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.data)?)
    }

    /// Syncs the whole filesystem.
    pub(super) fn sync_filesystem(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.data)?)
    }

    /// For messages.
    pub(super) fn path(&self, number: u64) -> PathBuf {
        self.dir.join(name(number))
    }

    /// The file, if it is open.
    pub(super) fn get(&self, number: u64) -> Option<Arc<DataFile>> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&number)
            .cloned()
    }

    /// Opens the file of a row, unless it is open already.
    pub(super) fn open(&self, row: &FileRow, writable: bool) -> io::Result<Arc<DataFile>> {
        if !writable && let Some(file) = self.get(row.number) {
            return Ok(file);
        }
        let flags = if writable {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let opened = self.open_raw(row.number, flags)?;
        let file = Arc::new(DataFile::new(opened, row)?);
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        if !writable && let Some(file) = files.get(&row.number) {
            return Ok(Arc::clone(file));
        }
        files.insert(row.number, Arc::clone(&file));
        let too_many = files.len() > self.limit;
        drop(files);
        if too_many {
            self.close_oldest();
        }
        Ok(file)
    }

    /// Closes a quarter of what may be open, for whoever does not hold it.
    fn close_oldest(&self) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        let mut ages: Vec<_> = files
            .iter()
            .map(|(number, file)| (file.used_at(), *number))
            .collect();
        ages.sort_unstable();
        for (_, number) in ages.into_iter().take(self.limit / 4 + 1) {
            files.remove(&number);
        }
    }

    /// How many files that it writes to one process may hold, those that wait for a sync included.
    pub(super) const fn most_written(&self) -> usize {
        self.limit / 4
    }

    /// Closes a file for whoever does not hold it.
    pub(super) fn remove(&self, number: u64) {
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&number);
    }

    /// Closes all files, for whoever does not hold them.
    pub(super) fn close_all(&self) {
        self.files
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
    }

    /// Closes the files that were evicted, by whichever process.
    pub(super) fn close_gone(&self) {
        let open: Vec<_> = {
            let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
            files.values().cloned().collect()
        };
        for file in open.into_iter().filter(|file| file.is_gone()) {
            self.remove(file.number());
        }
    }

    /// Number and last use (seconds since 1970) of each open file.
    pub(super) fn uses(&self) -> Vec<(u64, u64)> {
        self.files
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(number, file)| (*number, file.used_at()))
            .collect()
    }
}

/// Of a file in the directory.
fn name(number: u64) -> String {
    format!("{number:016x}")
}
