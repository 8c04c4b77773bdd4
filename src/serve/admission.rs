use std::{sync::Arc, time::Duration};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;

use super::status::overloaded;

/// When somebody who was turned away is to come back.
const COME_BACK: Duration = Duration::from_millis(250);
/// A reader is turned away after waiting for a place for this time.
const READER_WAITS: Duration = Duration::from_secs(10);

/// How much is served at once. Readers wait for a place for a while; prefetch gets one only while at least half of them
/// are free, so that a reader always overtakes it.
pub(super) struct Admission {
    places: Arc<Semaphore>,
    /// Of `places`, those that prefetch leaves free.
    kept: usize,
}

impl Admission {
    pub(super) fn new(places: usize) -> Self {
        let places = places.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            kept: places / 2,
            places: Arc::new(Semaphore::new(places)),
        }
    }

    /// A place for a read, held until it ends.
    pub(super) async fn enter(&self, is_reader: bool) -> Result<OwnedSemaphorePermit, Status> {
        let busy = || overloaded("this server has enough to do", Some(COME_BACK));
        let places = Arc::clone(&self.places);
        if is_reader {
            let place = tokio::time::timeout(READER_WAITS, places.acquire_owned()).await;
            return place.map_err(|_| busy())?.map_err(|_| busy());
        }
        if self.places.available_permits() <= self.kept {
            return Err(busy());
        }
        places.try_acquire_owned().map_err(|_| busy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn prefetch_is_turned_away_first() {
        let admission = Admission::new(4);
        let _two = [
            admission.enter(false).await.unwrap(),
            admission.enter(false).await.unwrap(),
        ];
        let refused = admission.enter(false).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(
            refused.metadata().get(crate::remote::RETRY_AFTER).unwrap(),
            "250"
        );
        assert!(admission.enter(true).await.is_ok());
    }
}
