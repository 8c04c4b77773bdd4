use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::{Blob, Cache, CacheError, ChunkData, Counter, Slice, blob::ONE_CHUNK, store::IfSlow};
use crate::{
    model::Digest,
    remote::{RemoteError, Urgency},
};

// Where a chunk may still be that is not where its manifest says.
impl Cache {
    /// A chunk that no remote has under its digest.
    pub(super) async fn find_elsewhere(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
        not_found: RemoteError,
    ) -> Result<ChunkData, CacheError> {
        let chunk = *blob.chunk(position).ok_or(CacheError::Aborted)?;
        if chunk.digest == blob.digest() {
            let share = self.memory.reserve(chunk.size, None).await;
            let bytes = self.assemble(chunk.digest, chunk.size, not_found).await?;
            return Ok(self.take_in(blob, position, chunk.digest, bytes, share, IfSlow::LeaveOut));
        }
        // A blob that was cut here, because the remote does not cut blobs, and of which a part was evicted since.
        let size = blob.manifest().size();
        match self
            .remote
            .manifest(blob.digest(), Some(size), self.is_lie(blob.digest()))
            .await
        {
            Ok(None) => {}
            Ok(Some(now)) if now != *blob.manifest() => {
                // One that names the same chunk helps nobody.
                if now
                    .chunks()
                    .iter()
                    .any(|other| other.digest == chunk.digest)
                {
                    return Err(not_found.into());
                }
                let digest = blob.digest();
                tracing::info!(%digest, "the blob is cut in another way than the cache knew");
                self.keep_manifest(digest, &now)?;
                let places = vec![None; now.chunks().len()];
                let other = Arc::new(Blob::new(digest, now, places));
                self.memory.keep_blob(digest, size, &other);
                return Err(CacheError::Recut { digest });
            }
            Ok(Some(_)) => return Err(not_found.into()),
            Err(error) => return Err(self.failed(blob.digest(), error)),
        }
        let wanted = Some(chunk.digest);
        let (_, found) = self.stream_in(blob.digest(), size, wanted).await?;
        found.map(ChunkData::Memory).ok_or_else(|| not_found.into())
    }

    /// A chunk that a manifest names and nobody has, where a remote cuts the blob in another way by now, or did so all
    /// along and was misheard: the same range of the blob, by the other manifest. Not shared with other blobs that name the
    /// chunk, since only this blob's manifest vouches for these bytes.
    pub(super) async fn by_other_manifest(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
        is_reader: bool,
    ) -> Result<ChunkData, CacheError> {
        let chunk = *blob.chunk(position).ok_or(CacheError::Aborted)?;
        let (digest, size) = (blob.digest(), blob.manifest().size());
        let other = Box::pin(self.blob(digest, size)).await?;
        let mut range = Vec::new();
        for slice in other.manifest().slices(chunk.offset, chunk.size) {
            let wanted = *other.chunk(slice.index).ok_or(CacheError::Aborted)?;
            let task = |urgency| {
                let (cache, other) = (Arc::clone(self), Arc::clone(&other));
                async move { cache.find_chunk(&other, slice.index, &urgency).await }
            };
            // A chunk of the other one that nobody has either is the end of it.
            let key = (wanted.digest, wanted.size);
            let data = self.chunks.join(key, is_reader, task).await?;
            other.note_seen(slice.index);
            let part = Slice {
                data,
                start: slice.start,
                len: slice.len,
            };
            let part = part.load().await;
            range.extend_from_slice(&part.map_err(|error| CacheError::io(self.dir(), error))?);
        }
        self.verify_whole(&other);
        Ok(ChunkData::Memory(range.into()))
    }

    /// A small blob that the remote has split all the same: its chunks, joined.
    pub(super) async fn assemble(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        not_found: RemoteError,
    ) -> Result<Bytes, CacheError> {
        if size > ONE_CHUNK {
            return Err(not_found.into());
        }
        let manifest = match self
            .remote
            .manifest(digest, Some(size), self.is_lie(digest))
            .await
        {
            Ok(Some(manifest)) if manifest.chunks().len() > 1 => manifest,
            Ok(_) => return Err(not_found.into()),
            Err(error) => return Err(self.failed(digest, error)),
        };
        let mut joined = BytesMut::new();
        for chunk in manifest.chunks() {
            let bytes = self
                .remote
                .chunk(chunk.digest, Some(chunk.size), &Urgency::reader())
                .await;
            joined.extend_from_slice(&bytes.map_err(|error| self.failed(chunk.digest, error))?);
        }
        if Digest::of(&joined) != digest {
            self.stats().add(Counter::RejectedObjects, 1);
            return Err(self.mismatch(digest));
        }
        Ok(joined.freeze())
    }
}
