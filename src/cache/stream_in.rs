use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use super::{Blob, Cache, CacheError, Counter, store::Command};
use crate::{
    model::{Digest, Manifest},
    remote::{Fault, Object, RemoteError},
};

/// A blob above this size, in bytes, that its remote does not cut is taken in as a stream and cut here: it may be larger
/// than memory, and a part of it can be verified and evicted only when the part has a digest.
pub(super) const STREAMED: u64 = 4 << 20;
/// Length of the parts, in bytes.
const PART: u64 = 1 << 20;
/// A stream that breaks off is begun again so many times without getting any further.
const ATTEMPTS: u32 = 5;

impl Cache {
    /// Takes in a blob that its remote does not cut, and gives the manifest that it was cut by. Nothing of it is served
    /// before its whole was verified: only then a manifest names its parts. `wanted` is a part to hand out in any case,
    /// however little the tiers can hold.
    ///
    /// # Errors
    /// When the remote does not send it, or sends something else.
    pub(super) async fn stream_in(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        wanted: Option<Digest>,
    ) -> Result<(Manifest, Option<Bytes>), CacheError> {
        let kept = Arc::new(Mutex::new(None));
        let task = |_| {
            let (cache, kept) = (Arc::clone(self), Arc::clone(&kept));
            async move { cache.take_stream(digest, size, wanted, &kept).await }
        };
        let manifest = self.streams.join((digest, size), true, task).await?;
        let mut found = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(wanted) = wanted.filter(|_| found.is_none()) {
            // Somebody else's stream went by.
            found = self.memory.chunks.get(&wanted);
            if found.is_none() {
                self.take_stream(digest, size, Some(wanted), &kept).await?;
                found = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        }
        Ok((manifest, found))
    }

    async fn take_stream(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        wanted: Option<Digest>,
        kept: &Mutex<Option<Bytes>>,
    ) -> Result<Manifest, CacheError> {
        // Where the parts will be is known before their digests are.
        let planned = (0..size.div_ceil(PART)).map(|part| (digest, PART.min(size - part * PART)));
        let planned = Manifest::new(planned).map_err(|_| CacheError::Aborted)?;
        let places = vec![None; planned.chunks().len()];
        let blob = Arc::new(Blob::new(digest, planned, places));
        let mut parts = Vec::new();
        let mut attempts = 0;
        loop {
            let before = parts.len();
            let result = self.take_stream_once(&blob, &mut parts, wanted, kept).await;
            let error = match result {
                Ok(()) => break,
                Err(error) => error,
            };
            attempts = if parts.len() > before {
                0
            } else {
                attempts + 1
            };
            if attempts >= ATTEMPTS || !error.is_transient() {
                return Err(self.failed(digest, error));
            }
            tracing::info!(%error, "a blob breaks off; reading it again");
        }
        let manifest = Manifest::new(parts).map_err(|_| CacheError::Aborted)?;
        self.send(Command::Manifest(digest, manifest.clone()));
        let places = vec![None; manifest.chunks().len()];
        let whole = Arc::new(Blob::new(digest, manifest.clone(), places));
        self.send(Command::Judged(whole, true));
        Ok(manifest)
    }

    /// Reads the stream once, from its beginning: what came before it broke off is compared, not trusted. `parts` are
    /// digest and size of what was taken in.
    async fn take_stream_once(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        parts: &mut Vec<(Digest, u64)>,
        wanted: Option<Digest>,
        kept: &Mutex<Option<Bytes>>,
    ) -> Result<(), RemoteError> {
        let (digest, size) = (blob.digest(), blob.manifest().size());
        let corrupt = |cause: String| RemoteError::Corrupt {
            remote: self.remote.address().into(),
            object: Object::Blob(digest),
            cause: Arc::new(std::io::Error::other(cause)),
        };
        let mut pieces = self.remote.pieces(digest, Some(size)).await?;
        let mut hasher = blake3::Hasher::new();
        let mut part = BytesMut::new();
        let (mut received, mut position) = (0, 0);
        while received < size {
            let Some(piece) = pieces.next().await else {
                return Err(RemoteError::Read {
                    remote: self.remote.address().into(),
                    object: Object::Blob(digest),
                    fault: Fault::Unavailable,
                    cause: Arc::new(std::io::Error::other(format!(
                        "{received} of {size} bytes came"
                    ))),
                });
            };
            let mut piece = piece?;
            received += piece.len() as u64;
            if received > size {
                return Err(corrupt(format!("it has more than {size} bytes")));
            }
            while !piece.is_empty() {
                let Some(expected) = blob.chunk(position).map(|chunk| chunk.size) else {
                    break;
                };
                let room = usize::try_from(expected).unwrap_or(usize::MAX) - part.len();
                part.extend_from_slice(&piece.split_to(room.min(piece.len())));
                if (part.len() as u64) < expected {
                    break;
                }
                let bytes = part.split().freeze();
                let whole_part = bytes.clone();
                let task = tokio::task::spawn_blocking(move || {
                    hasher.update(&whole_part);
                    (Digest::of(&whole_part), hasher)
                });
                let (part_digest, so_far) =
                    task.await.map_err(|_| corrupt("not hashed".to_owned()))?;
                hasher = so_far;
                if wanted == Some(part_digest) {
                    *kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.clone());
                }
                if parts.get(position).map(|part| part.0) != Some(part_digest) {
                    parts.truncate(position);
                    parts.push((part_digest, expected));
                    let permit = self.memory.reserve(expected).await;
                    self.take_in(blob, position, part_digest, bytes, permit);
                }
                position += 1;
            }
        }
        let actual = Digest::from(hasher.finalize());
        if actual != digest {
            self.stats().add(Counter::RejectedObjects, 1);
            return Err(corrupt(format!("its bytes have the digest {actual}")));
        }
        Ok(())
    }
}
