use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::{Status, metadata::MetadataValue};

use super::status::overloaded;
use crate::remote::SHED;

/// When somebody who was turned away is to come back.
const COME_BACK: Duration = Duration::from_millis(250);
/// A reader is turned away after waiting for a place for this time: sooner than it takes the server for dead.
const WAITS: Duration = Duration::from_secs(2);
/// Puts under way at once: each has a thread and some megabytes.
const PUTS: usize = 32;

/// How much is served at once. Readers wait for a place for a while; prefetch gets one only while at least half of them
/// are free, so that a reader always overtakes it.
pub(super) struct Admission {
    reads: Arc<Semaphore>,
    /// Of `reads`, those that prefetch leaves free.
    kept: usize,
    puts: Arc<Semaphore>,
}

impl Admission {
    pub(super) fn new(reads: usize) -> Self {
        let reads = reads.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            kept: reads / 2,
            reads: Arc::new(Semaphore::new(reads)),
            puts: Arc::new(Semaphore::new(PUTS)),
        }
    }

    /// A place for a read, held until it ends.
    pub(super) async fn enter(&self, is_reader: bool) -> Result<OwnedSemaphorePermit, Status> {
        if is_reader {
            return wait(&self.reads).await;
        }
        let place = match self.reads.available_permits() > self.kept {
            true => Arc::clone(&self.reads).try_acquire_owned().ok(),
            false => None,
        };
        place.ok_or_else(|| {
            let mut status =
                overloaded("this server keeps its places for readers", Some(COME_BACK));
            status
                .metadata_mut()
                .insert(SHED, MetadataValue::from_static("1"));
            status
        })
    }

    /// A place for what is put.
    pub(super) async fn enter_put(&self) -> Result<OwnedSemaphorePermit, Status> {
        wait(&self.puts).await
    }
}

async fn wait(places: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit, Status> {
    let place = tokio::time::timeout(WAITS, Arc::clone(places).acquire_owned()).await;
    let place = place.ok().and_then(Result::ok);
    place.ok_or_else(|| overloaded("this server has enough to do", Some(COME_BACK)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::RETRY_AFTER;

    #[tokio::test]
    async fn prefetch_is_turned_away_first() {
        let admission = Admission::new(4);
        let _two = [
            admission.enter(false).await.unwrap(),
            admission.enter(false).await.unwrap(),
        ];
        let refused = admission.enter(false).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(refused.metadata().get(RETRY_AFTER).unwrap(), "250");
        assert!(refused.metadata().contains_key(SHED));
        assert!(admission.enter(true).await.is_ok());
    }
}
