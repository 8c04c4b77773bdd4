//! The cache's `SQLite` database.
//!
//! - [`Index`]: connections. Those of readers cannot write, so no reader waits for a writer
//! - `schema`: making the database and bringing it up to date; `unchanging`: reading one that cannot be opened where it is
//! - `chunks`, `objects`, `names`, `totals`: the rows

mod chunks;
mod names;
mod objects;
mod schema;
mod totals;
mod unchanging;

use std::{
    ffi::OsStr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rusqlite::{Connection, OpenFlags, TransactionBehavior, config::DbConfig};

#[cfg(test)]
pub(super) use self::schema::in_memory;
pub(super) use self::{
    chunks::{
        FileRow, Location, blob_file, chunk, chunks_in, delete_chunk, digest, entry, file, file_in,
        file_row, insert_chunk, is_taken, open_segments, retire,
    },
    names::{delete_name, insert_name, insert_path_info, name, names, path_info, path_infos},
    objects::{
        Told, directory, insert_directory, insert_manifest, judge_manifest, manifest, size_of,
        told_manifest,
    },
    totals::{
        add_counters, counters, data_bytes, data_bytes_before, meta, set_meta, sum, usage,
        used_bytes, vacuum,
    },
};
use self::{
    schema::{Unprepared, index_error},
    unchanging::Unchanging,
};
use super::CacheError;

/// How long the writer of a process waits for another process's transaction, which may have been stopped in it: what it was to write is
/// dropped then.
pub(super) const WRITER_WAITS: Duration = Duration::from_secs(2);
/// The same where somebody was promised that it is written.
pub(super) const PROMISED: Duration = Duration::from_secs(20);
/// The same for what is no loss.
pub(super) const NO_LOSS: Duration = Duration::from_millis(100);
/// A reader waits for nobody but a process that just recovers the log of one that died.
const READER_WAITS: Duration = Duration::from_millis(500);
/// A log of more bytes is brought into the database, though nothing in it need be synced.
pub(super) const LOG_MAX: u64 = 4 << 20;
/// A log of more bytes is begun anew, for which writers wait a moment.
const LOG_RESTARTED: u64 = 8 << 20;
/// One that has just begun anew has at most so many bytes.
pub(super) const LOG_AT_REST: u64 = 1 << 20;
/// Connections for readers, at the most: a query is short, and making a connection, which reads the schema, takes longer than waiting for one.
const MOST_READERS: usize = 16;

/// The cache's `SQLite` database.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    /// Which file it was when it was opened.
    identity: Option<(u64, u64)>,
    /// What is read where nothing can be written.
    unchanging: Option<Unchanging>,
    /// The lock is held to take or to return one only.
    readers: Mutex<Readers>,
    /// Told when one was returned.
    returned: Condvar,
}

/// Connections for readers.
#[derive(Debug, Default)]
struct Readers {
    idle: Vec<Connection>,
    in_use: usize,
}

/// The right to one connection, given back when this is dropped, with the connection if it is there.
struct Lent<'a> {
    index: &'a Index,
    connection: Option<Connection>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut readers = self.index.readers();
        readers.in_use -= 1;
        readers.idle.extend(self.connection.take());
        drop(readers);
        self.index.returned.notify_one();
    }
}

impl Index {
    /// Opens the index in `dir` and brings its schema up to date. One that is there and cannot be written (a disk that is full or
    /// read-only, a directory of somebody else) is read.
    pub(super) fn open(dir: &Path) -> Result<Self, CacheError> {
        let path = dir.join("index.sqlite");
        let unchanging = match schema::prepare(&path) {
            Ok(()) => None,
            Err(Unprepared::Other(error)) => return Err(error),
            Err(Unprepared::Unwritable(error)) => {
                tracing::warn!(?path, %error, "the index of the cache cannot be written, so nothing is kept");
                Some(Unchanging::of(&path)?)
            }
        };
        Ok(Self {
            identity: identity(&path),
            path,
            unchanging,
            readers: Mutex::default(),
            returned: Condvar::new(),
        })
    }

    /// Whether nothing can be written to it.
    pub(super) const fn is_read_only(&self) -> bool {
        self.unchanging.is_some()
    }

    /// A connection for whoever writes.
    pub(super) fn connect(&self) -> Result<Connection, CacheError> {
        connect_writer(&self.path, OpenFlags::empty()).map_err(|error| self.error(error))
    }

    /// Runs a query on a connection of its own, which cannot write. Blocks for as long as the disk does. No query may be run within another.
    pub(super) fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CacheError> {
        let mut lent = self.lend();
        let connect = || match &self.unchanging {
            // Another one may have been made at the place of this, whose data files are not those that are open here.
            None if identity(&self.path) != self.identity => Err(gone()),
            None => connect_reader(&self.path, false),
            Some(unchanging) => connect_reader(unchanging.path(), true),
        };
        let connection = match lent.connection.take() {
            Some(connection) => connection,
            None => connect().map_err(|error| self.error(error))?,
        };
        let result = query(&connection).map_err(|error| self.error(error))?;
        // One that has failed is not used again.
        lent.connection = Some(connection);
        Ok(result)
    }

    /// Runs `change` in a transaction that has the write lock from its start, and waits for that at most [`WRITER_WAITS`].
    pub(super) fn write<T>(
        &self,
        connection: &mut Connection,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CacheError> {
        self.write_within(WRITER_WAITS, connection, change)
    }

    /// The same with a wait of one's own choice.
    pub(super) fn write_within<T>(
        &self,
        wait: Duration,
        connection: &mut Connection,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CacheError> {
        let run = || {
            connection.busy_timeout(wait)?;
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = change(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|error| self.error(error))
    }

    /// Brings what is in the log into the database, as far as no other process reads or writes.
    pub(super) fn end_log(&self, connection: &Connection) -> rusqlite::Result<()> {
        self.readers().idle.clear();
        connection.busy_timeout(NO_LOSS)?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        // The last connection removes it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
        Ok(())
    }

    /// Syncs what was committed, and brings it from the log into the database as far as nobody reads.
    pub(super) fn sync(&self, connection: &Connection) -> Result<(), CacheError> {
        let checkpoint = |mode: &str| -> rusqlite::Result<bool> {
            let pragma = format!("PRAGMA wal_checkpoint({mode})");
            connection.query_row(&pragma, [], |row| {
                let (busy, log, done): (i64, i64, i64) = (row.get(0)?, row.get(1)?, row.get(2)?);
                Ok(busy == 0 && done == log)
            })
        };
        let run = || {
            connection.busy_timeout(NO_LOSS)?;
            let all = checkpoint("PASSIVE")?;
            // The log begins anew only when all of it is in the database, which never happens while somebody goes on writing.
            if self.log_len() > LOG_RESTARTED {
                return checkpoint("RESTART");
            }
            Ok(all)
        };
        if run().map_err(|error| self.error(error))? {
            self.begin_log(connection);
            return Ok(());
        }
        // SQLite has synced nothing where somebody reads, or another process is about to do the same.
        let log = unchanging::log_of(&self.path);
        match std::fs::File::open(&log).and_then(|log| log.sync_data()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(CacheError::io(&log, error))
            }
            _ => Ok(()),
        }
    }

    /// The first change after all of the log is in the database begins it anew, and `SQLite` syncs its header in that. Here no writer waits
    /// for it.
    fn begin_log(&self, connection: &Connection) {
        let nanos = now_nanos();
        let begin = || {
            connection.busy_timeout(Duration::ZERO)?;
            // Another value each time, or nothing would be written.
            let change = "INSERT OR REPLACE INTO meta (key, value) VALUES ('log_begun', ?)";
            connection.execute(change, [nanos])
        };
        if let Err(error) = begin() {
            // Then another process has just begun it.
            tracing::debug!(%error, path = ?self.path, "the log of the index was not begun");
        }
    }

    /// Bytes of the log.
    pub(super) fn log_len(&self) -> u64 {
        std::fs::metadata(unchanging::log_of(&self.path)).map_or(0, |log| log.len())
    }

    /// Waits while as many as may be are in use.
    fn lend(&self) -> Lent<'_> {
        let mut readers = self
            .returned
            .wait_while(self.readers(), |readers| readers.in_use >= MOST_READERS)
            .unwrap_or_else(PoisonError::into_inner);
        readers.in_use += 1;
        Lent {
            index: self,
            connection: readers.idle.pop(),
        }
    }

    fn readers(&self) -> MutexGuard<'_, Readers> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, cause: rusqlite::Error) -> CacheError {
        index_error(&self.path, cause)
    }
}

/// `unchanging`: nobody changes the database, and nothing of it is looked at but the one file.
fn connect_reader(path: &Path, unchanging: bool) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = if unchanging {
        let path = percent_encoding::percent_encode(
            path.as_os_str().as_encoded_bytes(),
            percent_encoding::NON_ALPHANUMERIC,
        );
        let uri = format!("file:{path}?immutable=1");
        Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI)?
    } else {
        Connection::open_with_flags(path, flags)?
    };
    connection.busy_timeout(READER_WAITS)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// `create`: `SQLITE_OPEN_CREATE` where the database is made if it is not there. Otherwise it would be an empty one, without tables.
fn connect_writer(path: &Path, create: OpenFlags) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | create;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(WRITER_WAITS)?;
    // Without a sync per commit, a crash of the machine may lose the last commits but never breaks the index.
    connection.pragma_update(None, "synchronous", "NORMAL")?;
    connection.pragma_update(None, "foreign_keys", "ON")?;
    connection.pragma_update(None, "journal_size_limit", LOG_AT_REST.cast_signed())?;
    // Whoever commits does not wait for the disk: `syncing` does, and at the end `Index::end_log`.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(connection)
}

/// The number that a data file has by its name.
pub(super) fn file_number(name: &OsStr) -> Option<u64> {
    u64::from_str_radix(name.to_str()?, 16).ok()
}

/// Device and inode of a file.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn gone() -> rusqlite::Error {
    let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CANTOPEN);
    rusqlite::Error::SqliteFailure(
        code,
        Some("it was removed, or another one is in its place".into()),
    )
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Nanoseconds since 1970, as a column has them.
pub(super) fn now_nanos() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_nanos()).unwrap_or(i64::MAX))
}

/// `SQLite` has signed integers only; what does not fit is refused as if the disk were full.
pub(super) fn signed(number: u64) -> rusqlite::Result<i64> {
    i64::try_from(number).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

pub(super) fn unsigned(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number = row.get::<_, i64>(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digest, Manifest, Name, Node};

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        let writer = index.connect().unwrap();
        writer.pragma_update(None, "user_version", 99).unwrap();
        drop(index);
        let error = Index::open(dir.path()).unwrap_err();
        assert!(matches!(error, CacheError::NewerSchema { found: 99, .. }));
        assert!(error.to_string().contains("upgrade castore"));
    }

    #[test]
    fn a_new_one_takes_the_place_of_what_is_no_database() {
        let dir = tempfile::tempdir().unwrap();
        let old = Index::open(dir.path()).unwrap();
        let writer = old.connect().unwrap();
        // What is in the log is not to be taken for the new one's. (One that has every page is a whole database.)
        old.sync(&writer).unwrap();
        set_meta(&writer, "quota", 5).unwrap();
        let path = dir.path().join("index.sqlite");
        let log = std::fs::read(dir.path().join("index.sqlite-wal")).unwrap();
        assert!(!log.is_empty());
        drop((old, writer));
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::write(dir.path().join("data/00000000000000ff"), b"old").unwrap();
        for damaged in [vec![b'x'; 8192], b"SQLite format 3\0".to_vec(), Vec::new()] {
            std::fs::write(&path, damaged).unwrap();
            std::fs::write(dir.path().join("index.sqlite-wal"), &log).unwrap();
            let index = Index::open(dir.path()).unwrap();
            assert_eq!(
                index.read(|connection| meta(connection, "quota")).unwrap(),
                None
            );
            let writer = index.connect().unwrap();
            let insert = "INSERT INTO files (length, bytes, used_at) VALUES (1, 1, 0)";
            writer.execute(insert, []).unwrap();
            assert!(writer.last_insert_rowid() > 0xff, "a number is used again");
        }
    }

    #[test]
    fn rows_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        let mut writer = index.connect().unwrap();
        let blob = Digest::of(b"blob");
        let manifest = Manifest::new([(Digest::of(b"a"), 1), (Digest::of(b"b"), 2)]).unwrap();
        let name_a = Name::new(vec![0xff, b'a']).unwrap();
        let node = Node::File {
            digest: blob,
            size: 3,
            executable: true,
        };
        index
            .write(&mut writer, |connection| {
                insert_manifest(connection, blob, &manifest, false)?;
                insert_name(connection, "here", &name_a, &node)?;
                set_meta(connection, "quota", 5)
            })
            .unwrap();
        let got = index.read(|connection| super::manifest(connection, blob));
        assert_eq!(got.unwrap(), Some((manifest.clone(), false)));
        for right in [true, false] {
            index
                .write(&mut writer, |c| judge_manifest(c, blob, &manifest, right))
                .unwrap();
            let got = index.read(|connection| super::manifest(connection, blob));
            assert_eq!(got.unwrap(), right.then(|| (manifest.clone(), true)));
        }
        let names_at = |remote: &str| {
            index
                .read(|connection| names(connection, remote, false))
                .unwrap()
        };
        assert_eq!(names_at("here"), [(name_a, node)]);
        assert_eq!(names_at("elsewhere"), []);
        let quota = index.read(|connection| meta(connection, "quota"));
        assert_eq!(quota.unwrap(), Some(5));
    }
}
