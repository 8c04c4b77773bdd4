//! Making the database, and bringing its schema up to date.

use std::{
    fs::File,
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
const MIGRATIONS: [&str; 3] = [
    include_str!("../../../migrations/0001-first.sql"),
    include_str!("../../../migrations/0002-remotes.sql"),
    include_str!("../../../migrations/0003-profiles.sql"),
];
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Why an index is not ready to be written to.
pub(super) enum Unprepared {
    /// It may be read all the same.
    Unwritable(rusqlite::Error),
    Other(CacheError),
}

fn known() -> i64 {
    i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX)
}

fn version(connection: &Connection) -> rusqlite::Result<i64> {
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
        Err(cause) => return Err(Unprepared::Other(failed(cause))),
    }
    let _lock = lock(path).map_err(Unprepared::Other)?;
    migrate(path).map_err(|cause| match is_about_the_disk(&cause) && path.exists() {
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

fn migrate(path: &Path) -> rusqlite::Result<()> {
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
    transaction.pragma_update(None, "user_version", known())?;
    transaction.commit()
}

pub(super) fn index_error(path: &Path, cause: rusqlite::Error) -> CacheError {
    CacheError::Index {
        path: path.to_owned(),
        cause: Arc::new(cause),
    }
}
