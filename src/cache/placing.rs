use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use rusqlite::{Connection, params};
use rustix::fs::OFlags;

use super::{
    Blob,
    eviction::{self, Queue},
    index::{self, FileRow},
    ranges::Ranges,
    space::Room,
    store::{NewChunk, Store},
};
use crate::model::Digest;

/// The file that a chunk goes to.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Target {
    Segment(u64, Queue),
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

/// Blob files that were made not long ago, and the bytes that are still to come of each: they belong to the queue that it was made in.
#[derive(Debug, Default)]
pub(super) struct Growing {
    files: HashMap<u64, (Instant, u64)>,
    /// Of all of them, in bytes.
    bytes: u64,
}

impl Growing {
    /// One that did not grow for so long is only a part of a blob.
    const FOR: Duration = Duration::from_secs(10);

    /// Forgets those that grow no more.
    pub(super) fn expire(&mut self) {
        self.files.retain(|_, (grew, _)| grew.elapsed() < Self::FOR);
        self.bytes = self.files.values().map(|(_, left)| left).sum();
    }

    fn begin(&mut self, number: u64, length: u64) {
        self.files.insert(number, (Instant::now(), length));
        self.bytes += length;
    }

    fn grow(&mut self, number: u64, size: u64) {
        if let Some((grew, left)) = self.files.get_mut(&number) {
            let by = size.min(*left);
            *grew = Instant::now();
            *left -= by;
            self.bytes -= by;
        }
    }
}

/// Finds a place for each chunk of a batch, within the transaction that reserves it.
pub(super) struct Places<'a> {
    pub(super) connection: &'a Connection,
    pub(super) store: &'a Store,
    pub(super) room: Room,
    /// The segments in use, by queue.
    pub(super) segments: [Option<Appended>; 2],
    /// Bytes that files grow by, and that their rows do not have yet.
    pub(super) grown: HashMap<u64, u64>,
    /// Blob files that this process has locked.
    pub(super) locked: HashSet<u64>,
    /// Bytes that are still to come of blob files that were made not long ago, by number.
    pub(super) growing: &'a mut Growing,
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
        if chunk.stays.is_none()
            && self.room.has_blob_file(blob.manifest().size())
            && let Some(at) = blob.chunk(chunk.position)
            && let Some(number) = self.blob_file(blob, chunk.digest)?
            && !self.is_taken(number, at.offset, size)?
        {
            self.grow(number, size);
            self.planned.insert(number, at.offset, size);
            return Ok((Target::Blob(blob.digest()), at.offset));
        }
        let queue = match chunk.stays {
            Some(_) => Queue::Main,
            None => self.queue_of(chunk.digest, size, chunk.digest)?,
        };
        if let Some(place) = self.append(queue, size) {
            return Ok(place);
        }
        // The rows below are to say what has a place already.
        self.write_grown()?;
        for row in index::open_segments(self.connection, queue, size)? {
            // Only where no process appends; the lock is taken again when the file is opened.
            if !self.is_locked(row.number) {
                self.segments[queue as usize] = Some((&row).into());
                break;
            }
        }
        if let Some(place) = self.append(queue, size) {
            return Ok(place);
        }
        let data = index::data_bytes(self.connection)?;
        let row = self.make(None, self.room.segment_length(data, size), queue)?;
        let target = Target::Segment(row.number, queue);
        self.segments[queue as usize] = Some((&row).into());
        self.made.push((row, target));
        Ok(self.append(queue, size).unwrap_or((target, 0)))
    }

    /// The queue for something new: a blob's file, or a chunk by itself, where both are the same.
    fn queue_of(&self, unit: Digest, size: u64, chunk: Digest) -> rusqlite::Result<Queue> {
        // Somebody wants to have it here, or is known to use it.
        if self.store.keeps || self.store.uses.is_read_again(chunk) {
            return Ok(Queue::Main);
        }
        // What this batch has made of the main queue so far is in no row yet.
        let ahead = self.grown.values().sum::<u64>() + self.growing.bytes + size;
        eviction::queue_of(self.connection, &self.room, unit, ahead)
    }

    /// The end of the segment in use, if it has room.
    fn append(&mut self, queue: Queue, size: u64) -> Option<(Target, u64)> {
        let segment = self.segments[queue as usize].as_mut()?;
        let offset = segment.bytes;
        if offset.checked_add(size)? > segment.length {
            return None;
        }
        segment.bytes += size;
        let number = segment.number;
        self.grow(number, size);
        Some((Target::Segment(number, queue), offset))
    }

    fn grow(&mut self, number: u64, size: u64) {
        *self.grown.entry(number).or_default() += size;
        self.growing.grow(number, size);
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

    /// The number of a blob's file, made if there is none; `None` when it is to have none or another process writes to it. `chunk`: the one that is to lie there.
    fn blob_file(&mut self, blob: &Blob, chunk: Digest) -> rusqlite::Result<Option<u64>> {
        let (blob, size) = (blob.digest(), blob.manifest().size());
        if let Some(row) = index::blob_file(self.connection, blob)? {
            if row.length != size {
                // Somebody says that the blob has another size, and one of the two is wrong.
                return Ok(None);
            }
            let made = self.made.iter().any(|(made, _)| made.number == row.number);
            let ours = made || self.locked.contains(&row.number);
            return Ok((ours || !self.is_locked(row.number)).then_some(row.number));
        }
        let queue = self.queue_of(blob, size, chunk)?;
        let probation = self.room.probation(index::data_bytes(self.connection)?);
        if queue == Queue::Probation && size > probation / 2 {
            // It would evict itself while it comes.
            return Ok(None);
        }
        let row = self.make(Some(blob), size, queue)?;
        let number = row.number;
        self.growing.begin(number, size);
        self.made.push((row, Target::Blob(blob)));
        Ok(Some(number))
    }

    fn make(&self, blob: Option<Digest>, length: u64, queue: Queue) -> rusqlite::Result<FileRow> {
        self.connection
            .prepare_cached(
                "INSERT INTO files (blob, length, bytes, used_at, queue, entered_at) \
                 VALUES (?, ?, 0, ?, ?, ?)",
            )?
            .execute(params![
                blob.as_ref().map(Digest::as_bytes),
                index::signed(length)?,
                index::signed(index::now())?,
                queue as i64,
                index::entry(self.connection, queue)?
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
