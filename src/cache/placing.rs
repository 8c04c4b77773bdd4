use std::collections::{HashMap, HashSet};

use rusqlite::{Connection, params};
use rustix::fs::OFlags;

use super::{
    index::{self, FileRow},
    ranges::Ranges,
    space::Room,
    store::{NewChunk, Store},
};
use crate::model::Digest;

/// The file that a chunk goes to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Segment(u64),
    Blob(Digest),
}

/// A segment that chunks are appended to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Appended {
    number: u64,
    length: u64,
    /// Written or reserved.
    bytes: u64,
}

impl From<&FileRow> for Appended {
    fn from(row: &FileRow) -> Self {
        Self {
            number: row.number,
            length: row.length,
            bytes: row.bytes,
        }
    }
}

/// Finds a place for each chunk of a batch, within the transaction that reserves it.
pub(super) struct Places<'a> {
    pub(super) connection: &'a Connection,
    pub(super) store: &'a Store,
    pub(super) room: Room,
    /// The segment in use.
    pub(super) segment: Option<Appended>,
    /// Bytes that files grow by, and that their rows do not have yet.
    pub(super) grown: HashMap<u64, u64>,
    /// Blob files that this process has locked.
    pub(super) locked: HashSet<u64>,
    /// What was written and is in no row yet.
    pub(super) written: &'a Ranges,
    /// What has a place in this batch already.
    pub(super) planned: Ranges,
    /// Rows that were made, to be made files once the transaction is committed.
    pub(super) made: Vec<(FileRow, Target)>,
}

impl Places<'_> {
    /// The file and the offset in it; the room there is reserved.
    pub(super) fn place(&mut self, chunk: &NewChunk) -> rusqlite::Result<(Target, u64)> {
        let size = chunk.bytes.len() as u64;
        let blob = chunk.blob.as_ref();
        if self.room.has_blob_file(blob.manifest().size())
            && let Some(at) = blob.chunk(chunk.position)
            && let Some(number) = self.blob_file(blob.digest(), blob.manifest().size())?
            && !self.is_taken(number, at.offset, size)?
        {
            self.grow(number, size);
            self.planned.insert(number, at.offset, size);
            return Ok((Target::Blob(blob.digest()), at.offset));
        }
        if let Some(place) = self.append(size) {
            return Ok(place);
        }
        // The rows below are to say what has a place already.
        self.write_grown()?;
        for row in index::open_segments(self.connection, size)? {
            // Only where no process appends; the lock is taken again when the file is opened.
            if !self.is_locked(row.number) {
                self.segment = Some((&row).into());
                break;
            }
        }
        if let Some(place) = self.append(size) {
            return Ok(place);
        }
        let row = self.make(None, self.room.segment_length(size))?;
        let target = Target::Segment(row.number);
        self.segment = Some((&row).into());
        self.made.push((row, target));
        Ok(self.append(size).unwrap_or((target, 0)))
    }

    /// The end of the segment in use, if it has room.
    fn append(&mut self, size: u64) -> Option<(Target, u64)> {
        let segment = self.segment.as_mut()?;
        let offset = segment.bytes;
        if offset.checked_add(size)? > segment.length {
            return None;
        }
        segment.bytes += size;
        let number = segment.number;
        self.grow(number, size);
        Some((Target::Segment(number), offset))
    }

    fn grow(&mut self, number: u64, size: u64) {
        *self.grown.entry(number).or_default() += size;
    }

    /// Writes to the rows what files have grown by. To be called at the end.
    pub(super) fn write_grown(&mut self) -> rusqlite::Result<()> {
        for (number, size) in self.grown.drain() {
            self.connection
                .prepare_cached("UPDATE files SET bytes = bytes + ? WHERE number = ?")?
                .execute(params![index::signed(size)?, index::signed(number)?])?;
        }
        Ok(())
    }

    /// Whether another chunk has a range of a file, as when two remotes cut a blob differently: written ranges never
    /// change.
    fn is_taken(&self, number: u64, offset: u64, size: u64) -> rusqlite::Result<bool> {
        Ok(self.written.overlap(number, offset, size)
            || self.planned.overlap(number, offset, size)
            || index::is_taken(self.connection, number, offset, size)?)
    }

    /// The number of a blob's file, made if there is none; `None` when another process writes to it.
    fn blob_file(&mut self, blob: Digest, size: u64) -> rusqlite::Result<Option<u64>> {
        if let Some(row) = index::blob_file(self.connection, blob)? {
            if row.length != size {
                // Somebody says that the blob has another size, and one of the two is wrong.
                return Ok(None);
            }
            let made = self.made.iter().any(|(made, _)| made.number == row.number);
            let ours = made || self.locked.contains(&row.number);
            return Ok((ours || !self.is_locked(row.number)).then_some(row.number));
        }
        let row = self.make(Some(blob), size)?;
        let number = row.number;
        self.made.push((row, Target::Blob(blob)));
        Ok(Some(number))
    }

    fn make(&self, blob: Option<Digest>, length: u64) -> rusqlite::Result<FileRow> {
        self.connection
            .prepare_cached("INSERT INTO files (blob, length, bytes, used_at) VALUES (?, ?, 0, ?)")?
            .execute(params![
                blob.as_ref().map(Digest::as_bytes),
                index::signed(length)?,
                index::signed(index::now())?
            ])?;
        Ok(FileRow {
            number: self.connection.last_insert_rowid().unsigned_abs(),
            length,
            bytes: 0,
            stamp: None,
        })
    }

    fn is_locked(&self, number: u64) -> bool {
        let Ok(file) = self.store.files.open_raw(number, OFlags::RDONLY) else {
            return true;
        };
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err()
    }
}
