use std::sync::{Arc, PoisonError};

use tokio::sync::watch;

use super::{
    Blob, Cache, CacheError, ChunkData,
    stream_in::{Intake, PLANNED, planned},
};
use crate::{
    model::{Digest, Manifest},
    remote::Urgency,
};

/// A blob that its remote does not cut and whose parts are served as they come, because the remote is trusted
/// (`--trust stream`): what a reader of a part waits for.
#[derive(Debug)]
pub(super) struct Arriving(watch::Sender<State>);

#[derive(Debug, Default)]
struct State {
    /// The parts that came, in order.
    parts: Vec<Digest>,
    ended: Option<Result<(), CacheError>>,
}

impl Default for Arriving {
    fn default() -> Self {
        Self(watch::Sender::new(State::default()))
    }
}

impl Arriving {
    /// A part came; those after it are not known any more.
    pub(super) fn arrived(&self, position: usize, part: Digest) {
        self.0.send_modify(|state| {
            state.parts.truncate(position);
            state.parts.push(part);
        });
    }

    fn end(&self, result: Result<(), CacheError>) {
        self.0.send_modify(|state| state.ended = Some(result));
    }

    /// Whether nothing more comes: the blob's own manifest is known now, or it was wrong.
    pub(super) fn is_over(&self) -> bool {
        self.0.borrow().ended.is_some()
    }

    /// The digest of a part, once it has come.
    async fn part(&self, position: usize) -> Result<Digest, CacheError> {
        let mut state = self.0.subscribe();
        let state = state
            .wait_for(|state| state.parts.len() > position || state.ended.is_some())
            .await
            .map_err(|_| CacheError::Aborted)?;
        match (state.parts.get(position), &state.ended) {
            (Some(part), _) => Ok(*part),
            (None, Some(Err(error))) => Err(error.clone()),
            (None, _) => Err(CacheError::Aborted),
        }
    }
}

impl Cache {
    /// Begins to take a blob in and gives it at once. When its bytes turn out to be wrong, whoever listens to
    /// [`Cache::wrong_blobs`] is told, and readers get errors from then on.
    pub(super) fn open_arriving(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<Arc<Blob>, CacheError> {
        let mut intake = Intake::new(digest, Some(size))?;
        let arriving = Arc::new(Arriving::default());
        intake.arriving = Some(Arc::clone(&arriving));
        let planned = planned(digest, size)?;
        let blob = Arc::new(Blob::arriving(digest, planned, Arc::clone(&arriving)));
        let (cache, shown) = (Arc::downgrade(self), Arc::clone(&blob));
        tokio::spawn(async move {
            let Some(cache) = cache.upgrade() else {
                return;
            };
            match cache.take_stream(intake).await {
                Ok(manifest) => {
                    let places = vec![None; manifest.chunks().len()];
                    let blob = Blob::new(digest, manifest, places).verified();
                    cache.memory.keep_blob(digest, size, &Arc::new(blob));
                    arriving.end(Ok(()));
                }
                Err(error) => {
                    if error.is_damage() {
                        shown.set_wrong();
                        cache.was_wrong(digest, &error);
                    }
                    cache.memory.forget_blob(digest, size);
                    arriving.end(Err(error));
                }
            }
        });
        Ok(blob)
    }

    /// Whether a blob may be served as it comes: not one that was wrong when it was, and none that is too large to plan.
    pub(super) fn trusts(&self, digest: Digest, size: u64) -> bool {
        let untrusted = self
            .untrusted
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.trust_streams && size <= PLANNED && !untrusted.contains(&digest)
    }

    /// What was served of a blob was wrong, or may have been.
    pub(super) fn was_wrong(&self, digest: Digest, cause: &dyn std::error::Error) {
        tracing::error!(%digest, %cause, "what was served of it as it came is dropped");
        self.untrusted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(digest);
        // Nobody may be listening.
        let _ = self.wrong.send(digest);
    }

    /// A part of a blob that arrives.
    pub(super) async fn arriving_part(
        self: &Arc<Self>,
        arriving: &Arriving,
        position: usize,
        size: u64,
    ) -> Result<ChunkData, CacheError> {
        let part = arriving.part(position).await?;
        let blob = Arc::new(Blob::new(part, Manifest::whole(part, size), vec![None]));
        self.find_chunk(&blob, 0, &Urgency::reader()).await
    }
}
