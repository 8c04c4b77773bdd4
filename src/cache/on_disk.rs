use std::{io, sync::Arc};

use bytes::Bytes;

use super::{
    Blob, Cache, ChunkData, Counter, DataFile,
    data_file::Trust,
    index::{self, Location},
    store::{Command, Pending},
};
use crate::model::{Chunk, Digest};

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
        let chunk = *blob.chunk(position)?;
        let location = match self.locate(&chunk)? {
            Located::Queued(bytes) => return Some(ChunkData::Memory(bytes)),
            Located::OnDisk(location) => location,
        };
        let found = self.open_verified(chunk.digest, location, chunk.size, check);
        blob.set_place(position, found.as_ref().map(|_| location));
        let file = found?;
        if check == Check::Stamp {
            file.touch(index::now());
        }
        self.stats().add(Counter::DiskHits, 1);
        Some(ChunkData::Disk(file, location.offset))
    }

    /// As [`Cache::find_on_disk`], into memory: the bytes that are hashed are those that are served. Blocks on the disk.
    pub(super) fn read_from_disk(&self, blob: &Blob, position: usize) -> Option<ChunkData> {
        let chunk = *blob.chunk(position)?;
        let location = match self.locate(&chunk)? {
            Located::Queued(bytes) => return Some(ChunkData::Memory(bytes)),
            Located::OnDisk(location) => location,
        };
        let read = |file: &DataFile| {
            let mut bytes = vec![0; usize::try_from(chunk.size).map_err(io::Error::other)?];
            file.read_exact_at(&mut bytes, location.offset)?;
            let right = Digest::of(&bytes) == chunk.digest;
            Ok(right.then(|| Bytes::from(bytes)))
        };
        let file = self.open_present(location, chunk.size)?.0;
        let Some(bytes) = self.undamaged(chunk.digest, location, read(&file)) else {
            file.distrust();
            return None;
        };
        file.touch(index::now());
        self.stats().add(Counter::DiskHits, 1);
        self.memory.chunks.insert(chunk.digest, bytes.clone());
        Some(ChunkData::Memory(bytes))
    }

    fn locate(&self, chunk: &Chunk) -> Option<Located> {
        let (location, size) = match self.store.pending(chunk.digest) {
            Some(Pending::Queued(bytes)) => {
                let right = bytes.len() as u64 == chunk.size;
                return right.then_some(Located::Queued(bytes));
            }
            Some(Pending::Written(location, size)) => (location, size),
            None => self.store.locate(chunk.digest)?,
        };
        (size == chunk.size).then_some(Located::OnDisk(location))
    }

    fn open_present(&self, location: Location, size: u64) -> Option<(Arc<DataFile>, Trust)> {
        let file = self.store.open_file(location.file, &self.commands)?;
        match file.trust(location.offset, size) {
            Trust::Gone => {
                self.store.files.remove(location.file);
                None
            }
            trust => Some((file, trust)),
        }
    }

    fn open_verified(
        &self,
        digest: Digest,
        location: Location,
        size: u64,
        check: Check,
    ) -> Option<Arc<DataFile>> {
        let (file, trust) = self.open_present(location, size)?;
        if trust == Trust::Verified && check == Check::Stamp {
            return Some(file);
        }
        let verified = file.verify(digest, location.offset, size);
        self.undamaged(digest, location, verified.map(|right| right.then_some(())))?;
        self.send(Command::Verified(Arc::clone(&file)));
        Some(file)
    }

    /// What was read of a chunk, where it is right; else the chunk is forgotten.
    fn undamaged<T>(
        &self,
        digest: Digest,
        location: Location,
        read: io::Result<Option<T>>,
    ) -> Option<T> {
        let problem = match read {
            Ok(Some(right)) => return Some(right),
            Ok(None) => "its bytes are not what its digest says".to_owned(),
            Err(error) => error.to_string(),
        };
        self.stats().add(Counter::DamagedChunks, 1);
        tracing::warn!(%digest, path = ?self.store.files.path(location.file), offset = location.offset,
            %problem, "a cached chunk is damaged; it is fetched again");
        self.send(Command::Damaged(digest, location));
        None
    }
}

/// Where a chunk is that is not in the memory tier.
enum Located {
    Queued(Bytes),
    OnDisk(Location),
}
