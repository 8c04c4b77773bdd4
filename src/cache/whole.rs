use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use futures::{StreamExt, TryStreamExt, stream};

use super::{Blob, Cache, CacheError, Counter, Slice, index, store::Command};
use crate::model::{Digest, Manifest};

/// A blob is verified as a whole this long after its last chunk was asked for, so as not to get in its reader's way.
const AFTER: Duration = Duration::from_secs(1);
/// Chunks that are fetched at once for somebody who waits for the whole.
const AT_ONCE: usize = 32;

/// What was hashed of a blob while its chunks came in order.
#[derive(Debug, Default)]
pub(super) struct Along {
    /// Large, so it is made for those blobs alone that need it. Taken while somebody hashes.
    hasher: Option<Box<blake3::Hasher>>,
    /// The chunk that comes next.
    next: usize,
    /// Somebody hashes.
    busy: bool,
}

/// Each chunk is verified by its own digest when it is fetched, but that these chunks make up the blob is only what a
/// manifest says. Once all of them were there, they are hashed together, once for each blob and cache; a blob of which not all may
/// stay, as its chunks come. Nothing is fetched for that: a blob of which a part went meanwhile stays unproven.
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
            if blob.is_proven() || blob.is_wrong() {
                return;
            }
            match cache.hash_whole(&blob, 1, false).await {
                Ok(Some(digest)) => cache.judge(&blob, digest == blob.digest()),
                Ok(None) => {
                    if cache.store.keeps_all_of(blob.manifest().size()) {
                        blob.set_due();
                    }
                    tracing::debug!(digest = %blob.digest(), "not verified as a whole: a part of it did not stay");
                }
                Err(error) => {
                    tracing::debug!(%error, digest = %blob.digest(), "not verified as a whole yet");
                    blob.set_due();
                }
            }
        });
    }

    /// Hashes a blob as far as its chunks have come in order, where it may not all stay. `position` has just come.
    pub(super) fn hash_along(self: &Arc<Self>, blob: &Arc<Blob>, position: usize) {
        if blob.is_proven() || blob.is_wrong() || self.store.keeps_all_of(blob.manifest().size()) {
            return;
        }
        {
            let mut along = blob.along();
            if along.busy || position < along.next {
                return;
            }
            along.busy = true;
        }
        let (cache, blob) = (Arc::clone(self), Arc::clone(blob));
        tokio::spawn(async move {
            if let Err(error) = cache.advance(&blob).await {
                tracing::debug!(%error, digest = %blob.digest(), "not hashed along");
                // What was hashed is lost; it is hashed from the begin when that comes again.
                *blob.along() = Along::default();
            }
        });
    }

    async fn advance(self: &Arc<Self>, blob: &Arc<Blob>) -> Result<(), CacheError> {
        let count = blob.manifest().chunks().len();
        let mut missed = count;
        loop {
            let (next, hasher) = {
                let mut along = blob.along();
                (along.next, along.hasher.take().unwrap_or_default())
            };
            if next == count {
                blob.along().busy = false;
                self.judge(blob, Digest::from(hasher.finalize()) == blob.digest());
                return Ok(());
            }
            let here = self.find_here(blob, next).await?;
            let size = blob.manifest().chunks()[next].size;
            let Some(data) = here else {
                let mut along = blob.along();
                along.hasher = Some(hasher);
                along.busy = false;
                // It may have come after it was looked for, and found this busy. Once more is enough: what was looked for twice and is
                // not here is gone again.
                if std::mem::replace(&mut missed, next) == next || !self.is_near(blob, next) {
                    return Ok(());
                }
                along.busy = true;
                continue;
            };
            let part = Slice {
                data,
                start: 0,
                len: size,
            };
            let hasher = self.hash(hasher, part).await?;
            let mut along = blob.along();
            along.hasher = Some(hasher);
            along.next = next + 1;
        }
    }

    /// Fetches what is missing of a blob and verifies it as a whole, while somebody waits.
    ///
    /// # Errors
    /// When a part of it cannot be had. Whether the manifest lied, the blob says.
    pub async fn prove(self: &Arc<Self>, blob: &Arc<Blob>) -> Result<(), CacheError> {
        let _one = blob.proving.lock().await;
        if !blob.is_proven()
            && !blob.is_wrong()
            && let Some(digest) = self.hash_whole(blob, AT_ONCE, true).await?
        {
            self.judge(blob, digest == blob.digest());
        }
        Ok(())
    }

    /// `None` where a part is not here and nothing is to be fetched.
    async fn hash_whole(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        at_once: usize,
        fetches: bool,
    ) -> Result<Option<Digest>, CacheError> {
        let mut hasher = Box::<blake3::Hasher>::default();
        let parts = stream::iter(blob.manifest().slices(0, u64::MAX)).map(|slice| async move {
            let data = match self.data_at_hand(blob, slice.index, index::now()) {
                Some(data) => Some(data),
                None if fetches => Some(
                    self.join_chunk(blob, slice.index, true, &Arc::default())
                        .await?,
                ),
                None => self.find_here(blob, slice.index).await?,
            };
            Ok::<_, CacheError>(data.map(|data| Slice {
                data,
                start: slice.start,
                len: slice.len,
            }))
        });
        let mut parts = std::pin::pin!(parts.buffered(at_once));
        while let Some(part) = parts.try_next().await? {
            let Some(part) = part else {
                return Ok(None);
            };
            hasher = self.hash(hasher, part).await?;
        }
        Ok(Some(hasher.finalize().into()))
    }

    async fn hash(
        &self,
        mut hasher: Box<blake3::Hasher>,
        part: Slice,
    ) -> Result<Box<blake3::Hasher>, CacheError> {
        let task = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            part.append_to(&mut bytes)?;
            hasher.update(&bytes);
            Ok::<_, std::io::Error>(hasher)
        });
        task.await
            .map_err(|_| CacheError::Aborted)?
            .map_err(|error| CacheError::io(self.dir(), error))
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
