//! Carrying out an eviction: what stays of the files that go is read, to be written to another.

use std::{
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{
    Blob, Counter, DataFile,
    eviction::{COPIED_AT_ONCE, Evicted, Kept},
    memory::Share,
    store::{IfSlow, NewChunk, Pending},
    writer::Writer,
};
use crate::model::{Digest, Manifest};

/// Bytes that are written for each that is copied, at the least.
const WRITTEN_FOR_COPIED: u64 = 5;

impl Writer {
    /// Bytes that may be copied now, with some to begin with; none beside many copies that are not written yet, since they are in memory.
    pub(super) fn copies_beside(&self, chunks: &[NewChunk]) -> u64 {
        let copies = chunks.iter().filter(|chunk| chunk.stays.is_some());
        let bytes: u64 = copies.map(|chunk| chunk.bytes.len() as u64).sum();
        if bytes >= COPIED_AT_ONCE {
            return 0;
        }
        (COPIED_AT_ONCE + self.written_bytes / WRITTEN_FOR_COPIED).saturating_sub(self.copied_bytes)
    }

    /// Has the files of an eviction go. The chunks that stay are to be written once more.
    pub(super) fn evict(&mut self, evicted: Evicted) -> Vec<NewChunk> {
        let before = self.store.filesystem();
        let before = before.map_or(u64::MAX, |filesystem| filesystem.free);
        let opened: Vec<_> = evicted
            .kept
            .into_iter()
            .map(|kept| (self.open_kept(&kept), kept))
            .collect();
        // Before they are read, so that they are in nobody's account for a moment only.
        self.remove(&evicted.victims);
        let kept: Vec<_> = opened
            .into_iter()
            .filter_map(|(file, kept)| self.read_kept(file?.as_ref(), &kept))
            .collect();
        let held = self.store.files.reap();
        let bytes: u64 = evicted.victims.iter().map(|victim| victim.bytes).sum();
        let filesystem = self.store.filesystem();
        let freed = filesystem.map_or(0, |now| now.free.saturating_sub(before));
        let expected = bytes.saturating_sub(held.passing);
        // Others write meanwhile.
        if freed < expected / 2 {
            // Some filesystems give room back when they are synced, and nothing more is to go for that.
            let synced = Arc::<AtomicBool>::default();
            self.late = Some((Arc::clone(&synced), self.late() + expected - freed));
            self.unsynced.all = true;
            self.unsynced
                .told
                .push(Box::new(move |_| synced.store(true, Ordering::Relaxed)));
            self.sync();
        }
        kept
    }

    /// Bytes of files that went not long ago, and are not free yet as the filesystem says.
    pub(super) fn late(&self) -> u64 {
        let late = self.late.as_ref();
        let late = late.filter(|(synced, _)| !synced.load(Ordering::Relaxed));
        late.map_or(0, |(_, bytes)| *bytes)
    }

    fn open_kept(&self, kept: &Kept) -> Option<Arc<DataFile>> {
        let files = &self.store.files;
        let open = || files.open(&kept.file, false).ok();
        files.get(kept.file.number).or_else(open)
    }

    /// A chunk that stays, from the file that goes. One that cannot be read, or is damaged, goes too.
    fn read_kept(&mut self, file: &DataFile, kept: &Kept) -> Option<NewChunk> {
        // A row that is damaged must not have memory reserved for what no file has.
        file.mapped(kept.location.offset, kept.size)?;
        let read = || -> io::Result<Vec<u8>> {
            let len = usize::try_from(kept.size).map_err(io::Error::other)?;
            let mut bytes = vec![0; len];
            file.file()
                .read_exact_at(&mut bytes, kept.location.offset)?;
            Ok(bytes)
        };
        let bytes = match read() {
            Ok(bytes) if Digest::of(&bytes) == kept.digest => bytes::Bytes::from(bytes),
            Ok(_) => {
                self.store.stats.add(Counter::DamagedChunks, 1);
                return None;
            }
            Err(error) => {
                tracing::debug!(%error, digest = %kept.digest, "a chunk that is used does not stay");
                return None;
            }
        };
        let blob = Blob::new(
            kept.digest,
            Manifest::whole(kept.digest, kept.size),
            vec![None],
        );
        self.copied_bytes += kept.size;
        self.store.stats.add(Counter::CopiedBytes, kept.size);
        self.store
            .set_pending(kept.digest, Pending::Queued(bytes.clone()));
        Some(NewChunk {
            digest: kept.digest,
            queued: self.store.backlog.add(kept.size, u64::MAX),
            bytes,
            blob: Arc::new(blob),
            position: 0,
            share: Share::default(),
            if_slow: IfSlow::LeaveOut,
            stays: Some(kept.reads),
        })
    }
}
