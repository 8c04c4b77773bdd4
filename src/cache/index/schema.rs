//! Making the database, and bringing its schema up to date.

use std::{
    fs::{self, File},
    io,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use rustix::fs::FlockOperation;

use super::{PROMISED, connect_reader, connect_writer};
use crate::cache::CacheError;

/// Applied in order; the number of those applied is the schema version (`user_version`).
const MIGRATIONS: [&str; 5] = [
    include_str!("../../../migrations/0001-first.sql"),
    include_str!("../../../migrations/0002-remotes.sql"),
    include_str!("../../../migrations/0003-profiles.sql"),
    include_str!("../../../migrations/0004-sums.sql"),
    include_str!("../../../migrations/0005-queues.sql"),
];
/// A process that still uses an index that is gone makes fewer data files than this.
const SKIPPED: u64 = 1 << 20;
/// Bytes of a database's header.
const HEADER: u64 = 100;
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Why an index is not ready to be written to.
pub(super) enum Unprepared {
    /// It may be read all the same.
    Unwritable(rusqlite::Error),
    Other(CacheError),
}

pub(super) fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

pub(super) fn version(connection: &Connection) -> rusqlite::Result<i64> {
    connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Makes the database where there is none. One that is as it should be is only looked at, which waits for nobody.
pub(super) fn prepare(path: &Path) -> Result<(), Unprepared> {
    let failed = |cause| index_error(path, cause);
    let newer = |found| CacheError::NewerSchema {
        path: path.to_owned(),
        found,
        known: known(),
    };
    match look(path) {
        Ok(Some(found)) if found == known() => return Ok(()),
        Ok(Some(found)) if found > known() => return Err(Unprepared::Other(newer(found))),
        Ok(_) => {}
        // Another process is about to make it, or recovers its log.
        Err(cause) if cause.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {}
        Err(cause) if is_about_the_disk(&cause) => return Err(Unprepared::Unwritable(cause)),
        Err(cause) if is_damage(&cause) => {}
        Err(cause) => return Err(Unprepared::Other(failed(cause))),
    }
    let _lock = lock(path).map_err(Unprepared::Other)?;
    // Another process may have been first. One that was emptied is made anew at another place: somebody may hold a lock on it.
    let damage = match look(path) {
        Err(cause) if is_damage(&cause) => Some(cause.to_string()),
        _ if fs::metadata(path).is_ok_and(|index| index.len() < HEADER) => {
            Some("it is cut off".to_owned())
        }
        _ => None,
    };
    if let Some(damage) = damage {
        tracing::warn!(
            ?path,
            damage,
            "the index of the cache is damaged, and a new one is made; what was cached is fetched again"
        );
        remove(path).map_err(|error| Unprepared::Other(CacheError::io(path, error)))?;
    }
    // One that could not even be begun is of no use to readers.
    let is_empty = || matches!(look(path), Ok(None | Some(0)));
    migrate(path).map_err(|cause| match is_about_the_disk(&cause) && !is_empty() {
        true => Unprepared::Unwritable(cause),
        false => Unprepared::Other(failed(cause)),
    })
}

/// The version of a database that has a write-ahead log; `None` where there is none yet.
fn look(path: &Path) -> rusqlite::Result<Option<i64>> {
    if !path.exists() {
        return Ok(None);
    }
    let connection = connect_reader(path, false)?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    let version = version(&connection)?;
    Ok((mode == "wal").then_some(version))
}

/// Whether the disk or the rights to it are to blame, and not the database.
pub(super) fn is_about_the_disk(cause: &rusqlite::Error) -> bool {
    matches!(
        cause.sqlite_error_code(),
        Some(
            ErrorCode::ReadOnly
                | ErrorCode::CannotOpen
                | ErrorCode::DiskFull
                | ErrorCode::SystemIoFailure
                | ErrorCode::PermissionDenied
        )
    )
}

/// Whether there is no database any more that could be read.
fn is_damage(cause: &rusqlite::Error) -> bool {
    matches!(
        cause.sqlite_error_code(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
    )
}

/// Removes a database and what belongs to it: a log that stayed would be taken for the next one's.
fn remove(path: &Path) -> io::Result<()> {
    for suffix in ["-wal", "-shm", ""] {
        let mut part = path.as_os_str().to_owned();
        part.push(suffix);
        match fs::remove_file(part) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Numbers of data files are never used again, not even where the index that knew them is gone: other processes may have such files open.
fn skip_numbers(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    let data = path.parent().map(|dir| dir.join("data"));
    let entries = data.and_then(|data| fs::read_dir(data).ok());
    let names = entries.into_iter().flatten().flatten();
    let numbers = names.filter_map(|entry| super::file_number(&entry.file_name()));
    let last = numbers.filter(|number| *number < 1 << 62).max();
    let last = last.unwrap_or_default();
    connection.execute(
        "INSERT INTO sqlite_sequence (name, seq) VALUES ('files', ?)",
        [super::signed(last.saturating_add(SKIPPED))?],
    )?;
    Ok(())
}

/// Going over to a write-ahead log is the one step at which `SQLite` does not wait for another process.
fn lock(path: &Path) -> Result<Option<File>, CacheError> {
    let Some(dir) = path.parent() else {
        return Ok(None);
    };
    let failed = |error| CacheError::io(dir, error);
    let lock = File::open(dir).map_err(failed)?;
    let deadline = Instant::now() + PROMISED;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(lock)),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                thread::sleep(LOOK_EVERY);
            }
            Err(error) => return Err(failed(error.into())),
        }
    }
}

pub(super) fn migrate(path: &Path) -> rusqlite::Result<()> {
    let mut connection = connect_writer(path, OpenFlags::SQLITE_OPEN_CREATE)?;
    connection.busy_timeout(PROMISED)?;
    // Of a new database alone: it takes the write lock.
    if version(&connection)? == 0 {
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have been first.
    let found = usize::try_from(version(&transaction)?).unwrap_or_default();
    for migration in MIGRATIONS.iter().skip(found) {
        transaction.execute_batch(migration)?;
    }
    if found == 0 {
        skip_numbers(&transaction, path)?;
    }
    transaction.pragma_update(None, "user_version", known())?;
    transaction.commit()
}

pub(super) fn index_error(path: &Path, cause: rusqlite::Error) -> CacheError {
    CacheError::Index {
        path: path.to_owned(),
        cause: Arc::new(cause),
    }
}

/// A database in memory, as it is made, for tests of what is done with its rows.
#[cfg(test)]
pub(in crate::cache) fn in_memory(migrations: usize) -> Connection {
    let connection = Connection::open_in_memory().unwrap();
    connection
        .pragma_update(None, "foreign_keys", "ON")
        .unwrap();
    for migration in &MIGRATIONS[..migrations.min(MIGRATIONS.len())] {
        connection.execute_batch(migration).unwrap();
    }
    connection
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rusqlite::params;

    use super::*;
    use crate::{cache::index, model::Digest};

    #[derive(Debug, Clone, Copy)]
    enum Change {
        File { bytes: u32 },
        Grow { file: u8, by: u32 },
        Chunk { file: u8, content: u8 },
        Directory { content: u8 },
        DeleteChunk { content: u8 },
        DeleteFile { file: u8 },
        Queue { file: u8, queue: u8 },
        DeleteDirectories,
    }

    fn change() -> impl Strategy<Value = Change> {
        prop_oneof![
            any::<u32>().prop_map(|bytes| Change::File { bytes }),
            (1..9_u8, any::<u32>()).prop_map(|(file, by)| Change::Grow { file, by }),
            (1..9_u8, any::<u8>()).prop_map(|(file, content)| Change::Chunk { file, content }),
            (0..9_u8).prop_map(|content| Change::Directory { content }),
            any::<u8>().prop_map(|content| Change::DeleteChunk { content }),
            (1..9_u8).prop_map(|file| Change::DeleteFile { file }),
            (1..9_u8, 0..2_u8).prop_map(|(file, queue)| Change::Queue { file, queue }),
            Just(Change::DeleteDirectories),
        ]
    }

    fn apply(connection: &Connection, change: Change) -> rusqlite::Result<()> {
        let digest = |content: u8| Digest::of(&[content]);
        match change {
            Change::File { bytes } => {
                let insert = "INSERT INTO files (length, bytes, used_at) VALUES (?1, ?1, 0)";
                connection.execute(insert, [bytes]).map(drop)
            }
            Change::Grow { file, by } => {
                let update = "UPDATE files SET bytes = bytes + ? WHERE number = ?";
                connection.execute(update, params![by, file]).map(drop)
            }
            Change::Chunk { file, content } => {
                if index::file(connection, file.into())?.is_none() {
                    return Ok(());
                }
                // As every schema has it.
                let insert = "INSERT OR IGNORE INTO chunks (digest, file, offset, size) \
                    VALUES (?, ?, ?, 10)";
                let digest = digest(content);
                let row = params![digest.as_bytes(), file, u32::from(content) * 10];
                connection.execute(insert, row).map(drop)
            }
            Change::Directory { content } => {
                index::insert_directory(connection, digest(content), &[content])
            }
            Change::DeleteChunk { content } => {
                let delete = "DELETE FROM chunks WHERE digest = ?";
                let digest = digest(content);
                connection.execute(delete, [digest.as_bytes()]).map(drop)
            }
            Change::DeleteFile { file } => {
                let delete = "DELETE FROM files WHERE number = ?";
                connection.execute(delete, [file]).map(drop)
            }
            Change::Queue { file, queue } => {
                let update = "UPDATE files SET queue = ? WHERE number = ?";
                connection.execute(update, [queue, file]).map(drop)
            }
            Change::DeleteDirectories => connection.execute_batch("DELETE FROM directories"),
        }
    }

    proptest! {
        /// Before the sums came and after it; chunks go with their file.
        #[test]
        fn sums_are_those_of_the_rows(
            before in proptest::collection::vec(change(), 0..40),
            after in proptest::collection::vec(change(), 0..40),
        ) {
            let connection = in_memory(3);
            let is_older = |change: &Change| !matches!(change, Change::Queue { .. });
            for change in before.into_iter().filter(is_older) {
                apply(&connection, change).unwrap();
            }
            connection.execute_batch(MIGRATIONS[3]).unwrap();
            connection.execute_batch(MIGRATIONS[4]).unwrap();
            for change in after {
                apply(&connection, change).unwrap();
            }
            for (key, query) in [
                ("data_bytes", "SELECT coalesce(sum(bytes + 4096), 0) FROM files"),
                ("main_bytes", "SELECT coalesce(sum(bytes + 4096), 0) FROM files WHERE queue = 1"),
                ("files", "SELECT count(*) FROM files"),
                ("chunks", "SELECT count(*) FROM chunks"),
                ("directories", "SELECT count(*) FROM directories"),
            ] {
                let counted: i64 = connection.query_row(query, [], |row| row.get(0)).unwrap();
                let kept = index::sum(&connection, key).unwrap();
                prop_assert_eq!(i64::try_from(kept).unwrap(), counted, "{}", key);
            }
        }

        #[test]
        fn a_range_is_taken_where_a_chunk_lies(
            gaps in proptest::collection::vec((0..30_u64, 1..30_u64), 0..30),
            range in (0..900_u64, 1..60_u64),
        ) {
            let connection = in_memory(MIGRATIONS.len());
            apply(&connection, Change::File { bytes: 0 }).unwrap();
            let (mut end, mut expected) = (0, false);
            for (number, (gap, size)) in gaps.into_iter().enumerate() {
                let offset = end + gap;
                end = offset + size;
                let digest = Digest::of(&number.to_ne_bytes());
                let location = index::Location { file: 1, offset };
                index::insert_chunk(&connection, digest, location, size, 0).unwrap();
                expected |= offset < range.0 + range.1 && end > range.0;
            }
            let taken = index::is_taken(&connection, 1, range.0, range.1).unwrap();
            prop_assert_eq!(taken, expected);
            prop_assert!(!index::is_taken(&connection, 2, range.0, range.1).unwrap());
        }
    }
}
