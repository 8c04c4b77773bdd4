use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};

use super::{Blob, Cache, CacheError, Counter, Slice, store::Command};
use crate::model::{Digest, Manifest};

/// A blob is verified as a whole this long after its last chunk was asked for, so as not to get in its reader's way.
const AFTER: Duration = Duration::from_secs(1);
/// Chunks that are fetched at once for somebody who waits for the whole.
const AT_ONCE: usize = 32;

/// Each chunk is verified by its own digest when it is fetched, but that these chunks make up the blob is only what a
/// manifest says. Once all of them were there, they are hashed together, once for each blob and cache.
impl Cache {
    /// Verifies a blob in the background, if it is time.
    pub(super) fn verify_whole(self: &Arc<Self>, blob: &Arc<Blob>) {
        if !blob.take_due() {
            return;
        }
        let (cache, blob) = (Arc::downgrade(self), Arc::clone(blob));
        tokio::spawn(async move {
            tokio::time::sleep(AFTER).await;
            let Some(cache) = cache.upgrade() else {
                return;
            };
            match cache.hash_whole(&blob, 1).await {
                Ok(digest) => cache.judge(&blob, digest == blob.digest()),
                Err(error) => {
                    tracing::debug!(%error, digest = %blob.digest(), "not verified as a whole yet");
                    blob.set_due();
                }
            }
        });
    }

    /// Fetches what is missing of a blob and verifies it as a whole, while somebody waits.
    ///
    /// # Errors
    /// When a part of it cannot be had. Whether the manifest lied, the blob says.
    pub async fn prove(self: &Arc<Self>, blob: &Arc<Blob>) -> Result<(), CacheError> {
        let _one = blob.proving.lock().await;
        if !blob.is_proven() && !blob.is_wrong() {
            let digest = self.hash_whole(blob, AT_ONCE).await?;
            self.judge(blob, digest == blob.digest());
        }
        Ok(())
    }

    async fn hash_whole(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        at_once: usize,
    ) -> Result<Digest, CacheError> {
        let mut hasher = blake3::Hasher::new();
        let parts = stream::iter(blob.manifest().slices(0, u64::MAX)).map(|slice| async move {
            let data = match self.slice_at_hand(blob, slice) {
                Some(slice) => slice.data,
                None => self.chunk(blob, slice.index).await?,
            };
            Ok::<_, CacheError>(Slice {
                data,
                start: slice.start,
                len: slice.len,
            })
        });
        let mut parts = std::pin::pin!(parts.buffered(at_once));
        while let Some(part) = parts.try_next().await? {
            let task = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                part.append_to(&mut bytes)?;
                hasher.update(&bytes);
                Ok::<_, std::io::Error>(hasher)
            });
            hasher = task
                .await
                .map_err(|_| CacheError::Aborted)?
                .map_err(|error| CacheError::io(self.dir(), error))?;
        }
        Ok(hasher.finalize().into())
    }

    fn judge(&self, blob: &Arc<Blob>, right: bool) {
        self.send(Command::Judged(Arc::clone(blob), right));
        if right {
            blob.set_proven();
            return;
        }
        let error = self.mismatch(blob.digest());
        tracing::error!(%error, "its manifest names chunks that are not the blob's");
        self.stats().add(Counter::RejectedObjects, 1);
        blob.set_wrong();
        self.lies
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(key(blob.digest(), blob.manifest()));
        self.memory
            .forget_blob(blob.digest(), blob.manifest().size());
        // Nobody may be listening.
        let _ = self.wrong.send(blob.digest());
    }

    /// Whether a manifest was found to lie about its blob.
    pub(super) fn is_lie(&self, blob: Digest) -> impl Fn(&Manifest) -> bool + Clone + use<> {
        let lies = Arc::clone(&self.lies);
        move |manifest| {
            let lies = lies.lock().unwrap_or_else(PoisonError::into_inner);
            // Nearly always there are none, and nothing has to be hashed.
            !lies.is_empty() && lies.contains(&key(blob, manifest))
        }
    }
}

/// A blob and its chunk list; the encoding of a manifest does not tell one chunk from another.
fn key(blob: Digest, manifest: &Manifest) -> (Digest, Digest) {
    let mut hasher = blake3::Hasher::new();
    for chunk in manifest.chunks() {
        hasher.update(chunk.digest.as_bytes());
        hasher.update(&chunk.size.to_le_bytes());
    }
    (blob, hasher.finalize().into())
}
