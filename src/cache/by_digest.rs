use std::sync::Arc;

use super::{
    Blob, Cache, CacheError, ChunkData,
    index::{self, Told},
    store::Pending,
};
use crate::{
    model::{Digest, Manifest},
    remote::RemoteError,
};

/// Something of this size, in bytes, is asked for as one chunk before anybody asks for its manifest: stores of the
/// layout's own chunking have no larger chunks, and know a manifest for none of them.
const CHUNK_FIRST: u64 = 1 << 20;

/// A blob and, where it came with it, its first chunk.
pub type Opened = (Arc<Blob>, Option<ChunkData>);

// What somebody asks for who knows a digest and perhaps no size: the clients of a server.
impl Cache {
    /// The chunk list of a blob that others may be told, `None` when it is not split, or was split here: those parts are
    /// known to nobody else, and may be evicted.
    ///
    /// # Errors
    /// When it is neither in the index nor to be had from a remote.
    pub async fn manifest_of(
        self: &Arc<Self>,
        digest: Digest,
    ) -> Result<Option<Manifest>, CacheError> {
        if digest == Digest::empty() || self.size_at_hand(digest).is_some() {
            return Ok(None);
        }
        let known = self
            .look_up(move |connection| index::told_manifest(connection, digest))
            .await?;
        match known {
            Some(Told::Chunks(manifest)) if !self.is_lie(digest)(&manifest) => {
                return Ok(Some(manifest));
            }
            Some(Told::AsOne) => return Ok(None),
            Some(Told::Chunks(_)) | None => {}
        }
        let task = |_| {
            let cache = Arc::clone(self);
            async move {
                let manifest = match cache
                    .remote
                    .manifest(digest, None, cache.is_lie(digest))
                    .await
                {
                    Ok(manifest) => manifest,
                    Err(error) => return Err(cache.failed(digest, error)),
                };
                if let Some(manifest) = &manifest {
                    cache.keep_manifest(digest, manifest)?;
                }
                Ok(manifest)
            }
        };
        self.manifests.join(digest, true, task).await
    }

    /// A blob or a chunk by its digest; `size` in bytes, where known, is what it must have.
    ///
    /// # Errors
    /// When it is neither in the cache nor to be had from a remote.
    pub async fn open_digest(
        self: &Arc<Self>,
        digest: Digest,
        size: Option<u64>,
        is_reader: bool,
    ) -> Result<Opened, CacheError> {
        let size = match size.or_else(|| self.size_at_hand(digest)) {
            Some(size) => Some(size),
            None if digest == Digest::empty() => Some(0),
            None => {
                self.look_up(move |connection| index::size_of(connection, digest))
                    .await?
            }
        };
        let Some(size) = size else {
            return self.open_unsized(digest).await;
        };
        if let Some(blob) = self.blob_at_hand(digest, size) {
            return Ok((blob, None));
        }
        if size > CHUNK_FIRST {
            return match self.blob(digest, size).await {
                Err(error) if is_not_found(&error) => {
                    self.open_chunk(digest, size, is_reader).await
                }
                blob => Ok((blob?, None)),
            };
        }
        match self.open_chunk(digest, size, is_reader).await {
            Err(error) if is_not_found(&error) => Ok((self.blob(digest, size).await?, None)),
            opened => opened,
        }
    }

    async fn open_chunk(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        is_reader: bool,
    ) -> Result<Opened, CacheError> {
        let blob = Arc::new(Blob::new(digest, Manifest::whole(digest, size), vec![None]));
        let data = self.chunk_for(&blob, 0, is_reader).await?;
        Ok((blob, Some(data)))
    }

    async fn open_unsized(self: &Arc<Self>, digest: Digest) -> Result<Opened, CacheError> {
        let manifest = match self.manifest_of(digest).await {
            Ok(Some(manifest)) => manifest,
            Ok(None) => self.stream_in_unsized(digest).await?,
            // Stores of the object layout have no manifest for what is only a chunk.
            Err(error) if is_not_found(&error) => self.stream_in_unsized(digest).await?,
            Err(error) => return Err(error),
        };
        let size = manifest.size();
        if let Some(blob) = self.memory.blob(digest, size) {
            return Ok((blob, None));
        }
        let places = self.places(manifest.clone()).await?;
        let blob = Arc::new(Blob::new(digest, manifest, places));
        self.memory.keep_blob(digest, size, &blob);
        Ok((blob, None))
    }

    /// The size of a chunk that is in memory or on its way to the disk.
    fn size_at_hand(&self, digest: Digest) -> Option<u64> {
        match self.store.pending(digest) {
            Some(Pending::Queued(bytes)) => Some(bytes.len() as u64),
            Some(Pending::Written(_, size)) => Some(size),
            None => {
                let bytes = self.memory.chunks.get(&digest)?;
                Some(bytes.len() as u64)
            }
        }
    }
}

fn is_not_found(error: &CacheError) -> bool {
    matches!(error, CacheError::Remote(RemoteError::NotFound { .. }))
}
