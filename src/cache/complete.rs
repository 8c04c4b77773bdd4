use std::sync::Arc;

use futures::TryStreamExt;

use super::{Cache, CacheError, Check, blob::known_blob, index, space::Room, uses::READ_AGAIN};
use crate::model::{Digest, Node};

// What is here of a tree, for whoever wants all of it. None of it asks a remote.
impl Cache {
    /// The most bytes of chunks that the cache can hold, were all else evicted. Blocks on the disk.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn capacity(&self) -> Result<u64, CacheError> {
        let held = self.store.files.reap();
        self.store.index.read(|connection| {
            let room = Room::now(&self.store, connection, held)?;
            Ok(room.capacity(index::data_bytes(connection)?))
        })
    }

    /// Bytes of chunks for which there is room without evicting what was used since `older_than`, in seconds since 1970. Blocks on
    /// the disk.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn spare(&self, older_than: u64) -> Result<u64, CacheError> {
        let held = self.store.files.reap();
        self.store.index.read(|connection| {
            let room = Room::now(&self.store, connection, held)?;
            let data = index::data_bytes(connection)?;
            let older = index::data_bytes_before(connection, older_than)?;
            Ok(room
                .spare(data)
                .saturating_add(older)
                .min(room.capacity(data)))
        })
    }

    /// Bytes of a blob that are not on disk, or are damaged there.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn missing_bytes(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        check: Check,
    ) -> Result<u64, CacheError> {
        if size == 0 {
            return Ok(0);
        }
        let cache = Arc::clone(self);
        let look = tokio::task::spawn_blocking(move || {
            let known = cache
                .store
                .look_up(|connection| known_blob(connection, digest, size));
            let Some(blob) = known else {
                return size;
            };
            let mut missing = 0;
            for (position, chunk) in blob.manifest().chunks().iter().enumerate() {
                if cache.find_on_disk(&blob, position, check).is_none() {
                    missing += chunk.size;
                }
            }
            missing
        });
        look.await.map_err(|_| CacheError::Aborted)
    }

    /// Brings what is missing of a blob to the disk, unless there is no room: a chunk at a time is held by whoever polls
    /// this, `at_once` of them.
    ///
    /// # Errors
    /// When a part is not to be had. `node` must be a file; all else is there as it is.
    pub async fn bring(
        self: &Arc<Self>,
        node: &Node,
        at_once: &tokio::sync::Semaphore,
        brought: impl Fn(u64) + Send + Sync,
    ) -> Result<(), CacheError> {
        let Node::File { digest, size, .. } = node else {
            return Ok(());
        };
        let blob = self.blob(*digest, *size).await?;
        let chunks = blob.manifest().chunks();
        futures::stream::iter(chunks.iter().enumerate().map(Ok))
            .try_for_each_concurrent(None, |(position, chunk)| {
                let (blob, brought) = (&blob, &brought);
                async move {
                    let _place = at_once.acquire().await.map_err(|_| CacheError::Aborted)?;
                    // Others read: whoever brings a whole tree stands back for them.
                    self.chunk_for(blob, position, false).await?;
                    // Somebody wants to have it here.
                    self.store.uses.add(chunk.digest, READ_AGAIN);
                    brought(chunk.size);
                    Ok(())
                }
            })
            .await
    }
}
