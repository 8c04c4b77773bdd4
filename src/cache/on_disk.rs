use std::sync::Arc;

use super::{
    Blob, Cache, ChunkData, Counter, DataFile,
    data_file::Trust,
    index::{self, Location},
    store::{Command, Pending},
};
use crate::model::Digest;

/// When the bytes of a chunk on disk are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// Where that was not done under the file's present stamp: nobody has written to it since. What the medium makes of the
    /// bytes meanwhile is not seen.
    Stamp,
    Always,
}

impl Cache {
    /// A chunk from the writer's queue or from a data file; verified where that has not been done under the file's
    /// present stamp. Blocks on the disk.
    pub(super) fn find_on_disk(
        &self,
        blob: &Blob,
        position: usize,
        check: Check,
    ) -> Option<ChunkData> {
        let chunk = blob.chunk(position)?;
        let pending = self.store.pending(chunk.digest);
        let location = match pending {
            Some(Pending::Queued(bytes)) => {
                let right = bytes.len() as u64 == chunk.size;
                return right.then_some(ChunkData::Memory(bytes));
            }
            Some(Pending::Written(location, size)) => Some((location, size)),
            None => self.store.locate(chunk.digest),
        };
        let found = match location {
            Some((location, size)) if size == chunk.size => self
                .open_verified(chunk.digest, location, size, check)
                .map(|file| (file, location)),
            Some(_) | None => None,
        };
        blob.set_place(position, found.as_ref().map(|(_, location)| *location));
        let (file, location) = found?;
        if check == Check::Stamp {
            file.touch(index::now());
        }
        self.stats().add(Counter::DiskHits, 1);
        Some(ChunkData::Disk(file, location.offset))
    }

    fn open_verified(
        &self,
        digest: Digest,
        location: Location,
        size: u64,
        check: Check,
    ) -> Option<Arc<DataFile>> {
        let file = self.store.open_file(location.file, &self.commands)?;
        match file.trust(location.offset, size) {
            Trust::Verified if check == Check::Stamp => return Some(file),
            Trust::Gone => {
                self.store.files.remove(location.file);
                return None;
            }
            Trust::Verified | Trust::Unknown => {}
        }
        let problem = match file.verify(digest, location.offset, size) {
            Ok(true) => {
                self.send(Command::Verified(Arc::clone(&file)));
                return Some(file);
            }
            Ok(false) => "its bytes are not what its digest says".to_owned(),
            Err(error) => error.to_string(),
        };
        self.stats().add(Counter::DamagedChunks, 1);
        tracing::warn!(%digest, path = ?self.store.files.path(location.file), offset = location.offset,
            %problem, "a cached chunk is damaged; it is fetched again");
        self.send(Command::Damaged(digest, location));
        None
    }
}
