use std::{
    sync::{Arc, PoisonError, mpsc::RecvTimeoutError},
    time::Duration,
};

use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    Cache, CacheError, Usage,
    at_hand::WriterThread,
    blob,
    index::{self, Location},
    store::Command,
};
use crate::model::{Digest, Manifest};

/// At the end, the writer is waited for no longer: for a round of syncs, and what comes before and after it.
const CLOSE_WITHIN: Duration = Duration::from_secs(30);

// What the index knows, and having it know what was fetched.
impl Cache {
    /// How many bytes of a blob are on disk. Asks no remote.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn cached_bytes(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<u64, CacheError> {
        let cache = Arc::clone(self);
        self.query(move |connection| {
            let manifest = index::manifest(connection, digest)?
                .map(|(manifest, _)| manifest)
                .filter(|manifest| manifest.size() == size)
                .unwrap_or_else(|| Manifest::whole(digest, size));
            let mut bytes = 0;
            for chunk in manifest.chunks() {
                let there = cache.store.pending(chunk.digest).is_some()
                    || index::chunk(connection, chunk.digest)?.is_some();
                bytes += if there { chunk.size } else { 0 };
            }
            Ok(bytes)
        })
        .await
    }

    /// Returns when all that was fetched before is committed and synced. What could not be written is not there.
    ///
    /// # Errors
    /// When the index cannot be synced, or the writer has ended.
    pub async fn sync(&self) -> Result<(), CacheError> {
        let (done, synced) = oneshot::channel();
        self.send(Command::Sync(done));
        synced.await.unwrap_or(Err(CacheError::Aborted))
    }

    /// Commits what is left to write and ends the writer thread. Blocks, but for a disk that hangs only so long that it is no matter of waiting
    /// any more.
    pub fn close(&self) {
        self.send(Command::Stop);
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let Some(WriterThread { thread, ended }) = writer else {
            return;
        };
        // It sends nothing.
        if ended.recv_timeout(CLOSE_WITHIN) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(dir = ?self.store.dir, "the disk of the cache hangs; what was fetched last may be lost");
        } else if thread.join().is_err() {
            tracing::error!("the writer of the cache panicked");
        }
    }

    /// Room taken, and counters summed over all processes that ever used this cache. Blocks on the disk.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn usage(&self) -> Result<(Usage, Vec<(String, u64)>), CacheError> {
        let (usage, counters, quota) = self.store.index.read(|connection| {
            Ok((
                index::usage(connection)?,
                index::counters(connection)?,
                index::meta(connection, "quota")?,
            ))
        })?;
        let others = self.store.others();
        let held = self.store.files.reap();
        let usage = Usage {
            other_bytes: others.staying + others.passing + held.passing + held.staying,
            foreign_bytes: others.foreign,
            quota_bytes: quota.unwrap_or_default(),
            ..usage
        };
        Ok((usage, counters))
    }

    /// Runs a query on a thread that may wait for the disk.
    pub(super) async fn query<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CacheError> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.index.read(query))
            .await
            .map_err(|_| CacheError::Aborted)?
    }

    /// As [`Cache::query`], for readers: where the index cannot be read, it knows nothing.
    pub(super) async fn look_up<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&Connection) -> rusqlite::Result<Option<T>> + Send + 'static,
    ) -> Result<Option<T>, CacheError> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.look_up(query))
            .await
            .map_err(|_| CacheError::Aborted)
    }

    /// Where the chunks of a manifest lie.
    pub(super) async fn places(
        self: &Arc<Self>,
        manifest: Manifest,
    ) -> Result<Vec<Option<Location>>, CacheError> {
        let count = manifest.chunks().len();
        let known = self.look_up(move |connection| blob::places(connection, &manifest).map(Some));
        Ok(known.await?.unwrap_or_else(|| vec![None; count]))
    }

    /// Notes a manifest, unless it is known to lie.
    pub(super) fn keep_manifest(
        &self,
        blob: Digest,
        manifest: &Manifest,
    ) -> Result<(), CacheError> {
        if self.is_lie(blob)(manifest) {
            return Err(self.mismatch(blob));
        }
        if !manifest.is_whole(blob) {
            self.send(Command::Manifest {
                blob,
                manifest: manifest.clone(),
                cut_here: false,
            });
        }
        Ok(())
    }
}
