use std::sync::Arc;

use super::{
    job::{Job, Source},
    kind::Kind,
    ledger::Ledger,
    scheduler::Scheduler,
    tracer::What,
};
use crate::{
    cache::{Blob, CacheError, ONE_CHUNK, Prefetched, STREAMED},
    model::Digest,
};

// What a job does once its turn has come.
impl Scheduler {
    /// Does a job.
    ///
    /// # Errors
    /// When what it wants is not to be had.
    pub(super) async fn fetch(
        &self,
        number: u64,
        kind: Kind,
        source: Source,
        job: Job,
    ) -> Result<(), CacheError> {
        match job {
            Job::Chunk(blob, position) => self.fetch_chunk(kind, source, &blob, position).await,
            Job::File {
                digest,
                size,
                range,
            } => {
                let known = self.cache.blob_at_hand(digest, size);
                if known.is_none() && size > STREAMED && kind != Kind::Tree {
                    // One that its remote does not cut comes as a whole: too much for what is perhaps not wanted.
                    if self.cache.manifest_of(digest).await?.is_none() {
                        return Ok(());
                    }
                }
                let blob = match known {
                    Some(blob) => blob,
                    None => self.cache.blob(digest, size).await?,
                };
                let slices = blob.manifest().slices(range.start, range.end - range.start);
                let wanted: Vec<_> = slices
                    .map(|slice| slice.index)
                    .filter(|position| !self.cache.is_near(&blob, *position))
                    .collect();
                if let [only] = wanted[..]
                    && size <= ONE_CHUNK
                {
                    return self.fetch_chunk(kind, source, &blob, only).await;
                }
                self.push_parts(number, kind, source, &blob, wanted);
                Ok(())
            }
        }
    }

    async fn fetch_chunk(
        &self,
        kind: Kind,
        source: Source,
        blob: &Arc<Blob>,
        position: usize,
    ) -> Result<(), CacheError> {
        let Some(chunk) = blob.manifest().chunks().get(position) else {
            return Ok(());
        };
        // Somebody may have been faster.
        if self.cache.is_near(blob, position) {
            return Ok(());
        }
        if kind == Kind::Profile {
            self.cache.note_known_use(blob, position);
        }
        self.ledger.began(chunk.digest, chunk.size, kind, source);
        let entry = Open(&self.ledger, chunk.digest);
        if let Prefetched::Came { awaited } = self.cache.prefetch(blob, position).await? {
            self.ledger.came(chunk.digest, awaited);
            let range = chunk.offset..chunk.offset + chunk.size;
            let (file, size) = (blob.digest(), blob.manifest().size());
            self.tracer
                .note(file, size, What::Prefetched, range, || None);
        }
        drop(entry);
        Ok(())
    }
}

/// An entry of the ledger: what has not come when this is dropped is gone.
struct Open<'a>(&'a Ledger, Digest);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.gone(self.1);
    }
}
