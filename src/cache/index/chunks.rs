//! Rows of `chunks` and `files`: where chunks lie.

use rusqlite::{Connection, OptionalExtension, params};

use super::{super::eviction::Queue, now_nanos, signed, unsigned};
use crate::model::Digest;

/// Where a chunk lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cache) struct Location {
    /// The data file's number.
    pub(in crate::cache) file: u64,
    /// Where in the file it begins, in bytes.
    pub(in crate::cache) offset: u64,
}

/// A row of `files`.
#[derive(Debug, Clone)]
pub(in crate::cache) struct FileRow {
    pub(in crate::cache) number: u64,
    pub(in crate::cache) length: u64,
    pub(in crate::cache) bytes: u64,
    pub(in crate::cache) stamp: Option<Vec<u8>>,
}

/// Where a chunk lies, and its size.
pub(in crate::cache) fn chunk(
    connection: &Connection,
    digest: Digest,
) -> rusqlite::Result<Option<(Location, u64)>> {
    connection
        .prepare_cached("SELECT file, offset, size FROM chunks WHERE digest = ?")?
        .query_row([digest.as_bytes()], |row| {
            let location = Location {
                file: unsigned(row, 0)?,
                offset: unsigned(row, 1)?,
            };
            Ok((location, unsigned(row, 2)?))
        })
        .optional()
}

/// False where the chunk is known already.
pub(in crate::cache) fn insert_chunk(
    connection: &Connection,
    digest: Digest,
    location: Location,
    size: u64,
    reads: u32,
) -> rusqlite::Result<bool> {
    let added = connection
        .prepare_cached(
            "INSERT OR IGNORE INTO chunks (digest, file, offset, size, reads) VALUES (?, ?, ?, ?, ?)",
        )?
        .execute(params![
            digest.as_bytes(),
            signed(location.file)?,
            signed(location.offset)?,
            signed(size)?,
            reads
        ])?;
    Ok(added > 0)
}

/// Forgets a chunk that was found damaged, unless it has moved since.
pub(in crate::cache) fn delete_chunk(
    connection: &Connection,
    digest: Digest,
    location: Location,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM chunks WHERE digest = ? AND file = ? AND offset = ?")?
        .execute(params![
            digest.as_bytes(),
            signed(location.file)?,
            signed(location.offset)?
        ])?;
    Ok(())
}

pub(in crate::cache) fn file(
    connection: &Connection,
    number: u64,
) -> rusqlite::Result<Option<FileRow>> {
    connection
        .prepare_cached("SELECT number, length, bytes, stamp FROM files WHERE number = ?")?
        .query_row([signed(number)?], file_row)
        .optional()
}

/// The file that has a blob's natural offsets.
pub(in crate::cache) fn blob_file(
    connection: &Connection,
    blob: Digest,
) -> rusqlite::Result<Option<FileRow>> {
    connection
        .prepare_cached("SELECT number, length, bytes, stamp FROM files WHERE blob = ?")?
        .query_row([blob.as_bytes()], file_row)
        .optional()
}

/// Segments of a queue that have at least `room` bytes left, the newest first.
pub(in crate::cache) fn open_segments(
    connection: &Connection,
    queue: Queue,
    room: u64,
) -> rusqlite::Result<Vec<FileRow>> {
    connection
        .prepare_cached(
            "SELECT number, length, bytes, stamp FROM files \
             WHERE blob IS NULL AND queue = ? AND length - bytes >= ? ORDER BY entered_at DESC LIMIT 8",
        )?
        .query_map(params![queue as i64, signed(room)?], file_row)?
        .collect()
}

pub(in crate::cache) fn file_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<FileRow> {
    Ok(FileRow {
        number: unsigned(row, 0)?,
        length: unsigned(row, 1)?,
        bytes: unsigned(row, 2)?,
        stamp: row.get(3)?,
    })
}

/// When something comes to the end of a queue, in nanoseconds since 1970: after all that is in it, also when the clock was set back.
pub(in crate::cache) fn entry(connection: &Connection, queue: Queue) -> rusqlite::Result<i64> {
    let last: Option<i64> = connection
        .prepare_cached("SELECT max(entered_at) FROM files WHERE queue = ?")?
        .query_row([queue as i64], |row| row.get(0))?;
    Ok(now_nanos().max(last.map_or(0, |last| last.saturating_add(1))))
}

/// A file that is in a queue.
pub(in crate::cache) fn file_in(
    connection: &Connection,
    number: u64,
    queue: Queue,
) -> rusqlite::Result<Option<FileRow>> {
    connection
        .prepare_cached(
            "SELECT number, length, bytes, stamp FROM files WHERE number = ? AND queue = ?",
        )?
        .query_row(params![signed(number)?, queue as i64], file_row)
        .optional()
}

/// A digest in a column.
pub(in crate::cache) fn digest(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    let bytes = row.get_ref(column)?.as_blob()?;
    Digest::try_from(bytes).map_err(|error| {
        rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Blob, error.into())
    })
}

/// Offset and size of each committed chunk in a file.
pub(in crate::cache) fn chunks_in(
    connection: &Connection,
    number: u64,
) -> rusqlite::Result<Vec<(u64, u64)>> {
    connection
        .prepare_cached("SELECT offset, size FROM chunks WHERE file = ?")?
        .query_map([signed(number)?], |row| {
            Ok((unsigned(row, 0)?, unsigned(row, 1)?))
        })?
        .collect()
}

/// Whether a committed chunk lies in a range of a file. Chunks do not overlap, so the last one that begins before the range's end says it.
pub(in crate::cache) fn is_taken(
    connection: &Connection,
    number: u64,
    offset: u64,
    size: u64,
) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT offset + size FROM chunks WHERE file = ? AND offset < ? \
             ORDER BY offset DESC LIMIT 1",
        )?
        .query_row(
            params![signed(number)?, signed(offset.saturating_add(size))?],
            |row| unsigned(row, 0),
        )
        .optional()
        .map(|end| end.is_some_and(|end| end > offset))
}

/// Takes care that nothing is written to a file any more: what takes the place of a damaged chunk goes elsewhere.
pub(in crate::cache) fn retire(connection: &Connection, number: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE files SET blob = NULL, bytes = max(bytes, length), stamp = NULL WHERE number = ?",
        )?
        .execute([signed(number)?])?;
    Ok(())
}
