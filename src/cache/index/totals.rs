//! Sums, settings and counters, and the room that the index takes itself.

use rusqlite::{Connection, OptionalExtension, params};

use super::{super::Stats, super::Usage, signed, unsigned};

pub(in crate::cache) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<u64>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?")?
        .query_row([key], |row| unsigned(row, 0))
        .optional()
}

pub(in crate::cache) fn set_meta(
    connection: &Connection,
    key: &str,
    value: u64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)")?
        .execute(params![key, signed(value)?])?;
    Ok(())
}

/// Bytes of all data files, written or reserved; for each, a block of the filesystem that may be filled in part.
pub(in crate::cache) fn data_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    sum(connection, "data_bytes")
}

/// A row of `sums`.
pub(in crate::cache) fn sum(connection: &Connection, key: &str) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT value FROM sums WHERE key = ?")?
        .query_row([key], |row| unsigned(row, 0))
}

/// As [`data_bytes`], of files that were last used before a time.
pub(in crate::cache) fn data_bytes_before(
    connection: &Connection,
    used_at: u64,
) -> rusqlite::Result<u64> {
    let used_at = i64::try_from(used_at).unwrap_or(i64::MAX);
    connection
        .prepare_cached("SELECT coalesce(sum(bytes + 4096), 0) FROM files WHERE used_at < ?")?
        .query_row([used_at], |row| unsigned(row, 0))
}

/// Adds what was counted since `last`, which is brought up to date.
pub(in crate::cache) fn add_counters(
    connection: &Connection,
    stats: &Stats,
    last: &mut [u64],
) -> rusqlite::Result<()> {
    for ((name, value), last) in stats.iter().zip(last) {
        let new = value.saturating_sub(*last);
        if new > 0 {
            connection
                .prepare_cached(
                    "INSERT INTO counters (name, value) VALUES (?, ?) \
                     ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                )?
                .execute(params![name, signed(new)?])?;
            *last = value;
        }
    }
    Ok(())
}

/// Sums over all processes that ever used the cache.
pub(in crate::cache) fn counters(connection: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    connection
        .prepare_cached("SELECT name, value FROM counters ORDER BY name")?
        .query_map([], |row| Ok((row.get(0)?, unsigned(row, 1)?)))?
        .collect()
}

/// Bytes of the database's pages that hold something.
pub(in crate::cache) fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let get = |pragma| connection.pragma_query_value(None, pragma, |row| unsigned(row, 0));
    let pages = get("page_count")?.saturating_sub(get("freelist_count")?);
    Ok(pages.saturating_mul(get("page_size")?))
}

/// Gives free pages back to the filesystem, some at a time.
pub(in crate::cache) fn vacuum(connection: &Connection) -> rusqlite::Result<()> {
    // Each step of the statement frees one page.
    let mut statement = connection.prepare("PRAGMA incremental_vacuum(4096)")?;
    let mut steps = statement.query([])?;
    while steps.next()?.is_some() {}
    Ok(())
}

/// What the index itself knows of [`Usage`].
pub(in crate::cache) fn usage(connection: &Connection) -> rusqlite::Result<Usage> {
    Ok(Usage {
        data_bytes: data_bytes(connection)?,
        files: sum(connection, "files")?,
        chunks: sum(connection, "chunks")?,
        directories: sum(connection, "directories")?,
        ..Usage::default()
    })
}
