use std::{collections::HashMap, fs::File, io, os::unix::fs::FileExt, sync::Arc, time::Instant};

use rustix::fs::OFlags;

use super::{
    Counter, DataFile,
    eviction::Queue,
    index::{self, FileRow, Location},
    placing::Target,
    shared_flights::SharedFlight,
    store::{NewChunk, Pending},
    writer::Writer,
};
use crate::model::Digest;

pub(super) struct Segment {
    pub(super) number: u64,
    open: OpenForWriting,
}

impl Segment {
    pub(super) const fn file(&self) -> &Arc<DataFile> {
        &self.open.file
    }
}

/// A chunk that was written and that no row names yet.
pub(super) struct Written {
    pub(super) digest: Digest,
    pub(super) location: Location,
    pub(super) size: u64,
    /// How often it was read before it was written here.
    pub(super) reads: u32,
    /// Other processes are told once a row names it.
    pub(super) flight: Option<SharedFlight>,
}

/// A file, and the lock on it: at most one process writes to a data file at a time.
pub(super) struct OpenForWriting {
    pub(super) file: Arc<DataFile>,
    _lock: File,
}

/// Where a chunk of a batch goes.
pub(super) struct Planned {
    pub(super) chunk: NewChunk,
    pub(super) target: Target,
    pub(super) offset: u64,
}

/// What a reservation decided; carried out once its transaction is committed.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) chunks: Vec<Planned>,
    /// Rows that were made, to be made files.
    pub(super) made: Vec<(FileRow, Target)>,
}

// Writing planned chunks to their data files, which are made or adopted for that.
impl Writer {
    pub(super) fn write(&mut self, plan: Plan) {
        for (row, target) in plan.made {
            if let Err(error) = self.make_file(&row, target) {
                tracing::warn!(path = ?self.store.files.path(row.number), %error, "no data file");
                self.pause();
            }
        }
        let mut by_target: HashMap<Target, Vec<Planned>> = HashMap::new();
        for planned in plan.chunks {
            by_target.entry(planned.target).or_default().push(planned);
        }
        for (target, planned) in by_target {
            let file = match target {
                Target::Segment(number, queue) => self.segments[queue as usize]
                    .as_ref()
                    .filter(|segment| segment.number == number)
                    .map(|segment| Arc::clone(&segment.open.file))
                    .or_else(|| self.adopt_segment(number, queue)),
                Target::Blob(blob) => self.open_blob_file(blob),
            };
            let gone = io::Error::from(io::ErrorKind::NotFound);
            let written = file.ok_or(gone).and_then(|file| {
                file.begin_writing()?;
                Ok(file)
            });
            match written {
                Ok(file) => self.write_to(&file, planned),
                Err(error) => {
                    tracing::debug!(%error, "the data file went away");
                    self.give_up(planned.into_iter().map(|planned| planned.chunk).collect());
                }
            }
        }
    }

    fn write_to(&mut self, file: &Arc<DataFile>, planned: Vec<Planned>) {
        let mut written = Vec::with_capacity(planned.len());
        let mut failed = Vec::new();
        for Planned { chunk, offset, .. } in planned {
            self.store.backlog.note_progress();
            match file.file().write_all_at(&chunk.bytes, offset) {
                Ok(()) => written.push((chunk, offset)),
                Err(error) => {
                    tracing::warn!(path = ?self.store.files.path(file.number()), %error,
                        "a chunk could not be written; reading goes on without the cache");
                    self.pause();
                    failed.push(chunk);
                }
            }
        }
        file.end_writing(
            written
                .iter()
                .map(|(chunk, offset)| (*offset, chunk.bytes.len() as u64)),
        );
        file.touch(index::now());
        for (mut chunk, offset) in written {
            let location = Location {
                file: file.number(),
                offset,
            };
            let size = chunk.bytes.len() as u64;
            chunk.blob.set_place(chunk.position, Some(location));
            self.store
                .set_pending(chunk.digest, Pending::Written(location, size));
            self.uncommitted.push(Written {
                digest: chunk.digest,
                location,
                size,
                reads: chunk.stays.unwrap_or_default(),
                flight: chunk.share.flight.take(),
            });
            self.written.insert(location.file, offset, size);
            self.uncommitted_bytes += size;
            self.store.stats.add(Counter::WrittenBytes, size);
            self.note_unsynced(size);
        }
        self.oldest.get_or_insert_with(Instant::now);
        self.changed.insert(file.number(), Arc::clone(file));
        self.give_up(failed);
    }

    /// What is not written any more is not on its way any more.
    pub(super) fn give_up(&self, chunks: Vec<NewChunk>) {
        self.store
            .stats
            .add(Counter::Unwritten, chunks.len() as u64);
        for chunk in chunks {
            self.store.remove_pending(chunk.digest);
        }
    }

    fn make_file(&mut self, row: &FileRow, target: Target) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let made = self.store.files.open_raw(row.number, flags)?;
        made.set_len(row.length)?;
        self.unsynced.new_files = true;
        let open = self
            .open_for_writing(row)?
            .ok_or(io::ErrorKind::WouldBlock)?;
        // Nothing is in it but what this process will write.
        open.file.trust_all();
        match target {
            Target::Segment(_, queue) => {
                self.segments[queue as usize] = Some(Segment {
                    number: row.number,
                    open,
                });
            }
            Target::Blob(blob) => {
                self.blob_files.insert(blob, open);
            }
        }
        Ok(())
    }

    /// `None` when another process writes to it.
    fn open_for_writing(&self, row: &FileRow) -> io::Result<Option<OpenForWriting>> {
        let lock = self.store.files.open_raw(row.number, OFlags::RDONLY)?;
        let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
        match rustix::fs::flock(&lock, operation) {
            Ok(()) => Ok(Some(OpenForWriting {
                file: self.store.files.open(row, true)?,
                _lock: lock,
            })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn adopt_segment(&mut self, number: u64, queue: Queue) -> Option<Arc<DataFile>> {
        let row = index::file(&self.connection, number).ok()??;
        let open = self.open_for_writing(&row).ok()??;
        let file = Arc::clone(&open.file);
        self.segments[queue as usize] = Some(Segment { number, open });
        Some(file)
    }

    fn open_blob_file(&mut self, blob: Digest) -> Option<Arc<DataFile>> {
        if let Some(open) = self.blob_files.get(&blob) {
            return Some(Arc::clone(&open.file));
        }
        let row = index::blob_file(&self.connection, blob).ok()??;
        let open = self.open_for_writing(&row).ok()??;
        let file = Arc::clone(&open.file);
        self.blob_files.insert(blob, open);
        Some(file)
    }
}
