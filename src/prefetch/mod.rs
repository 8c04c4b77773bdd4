//! Decides what to fetch before it is asked for. So far one rule: a reader that goes through a blob in order gets the
//! chunks that come next.
//!
//! - [`Prefetch`]: notes misses and starts fetches, within limits
//! - `window`: the decision itself, numbers to numbers

mod window;

use std::sync::{Arc, Mutex, PoisonError};

use moka::sync::Cache as Bounded;
use tokio::{runtime::Handle, sync::Semaphore};

use self::window::Window;
use crate::{
    cache::{Blob, Cache},
    model::Digest,
};

/// Blobs whose readers are followed.
const FOLLOWED: u64 = 1024;
/// Fetches under way at once, over all blobs. What does not fit is dropped: a full queue never holds up a read.
const AT_ONCE: usize = 48;

/// Follows the readers of blobs.
#[derive(Debug)]
pub struct Prefetch {
    cache: Arc<Cache>,
    runtime: Handle,
    windows: Bounded<Digest, Arc<Mutex<Window>>>,
    slots: Arc<Semaphore>,
}

impl Prefetch {
    /// Must be called within a tokio runtime, in which the fetches will run.
    #[must_use]
    pub fn new(cache: Arc<Cache>) -> Self {
        Self {
            cache,
            runtime: Handle::current(),
            windows: Bounded::new(FOLLOWED),
            slots: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }

    /// Notes that a reader has to wait for chunks, and fetches those that it will want next.
    pub fn missed(&self, blob: &Arc<Blob>, positions: &[usize]) {
        let (Some(first), Some(last)) = (positions.first(), positions.last()) else {
            return;
        };
        let window = self.windows.get_with(blob.digest(), Arc::default);
        let next = {
            let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
            window.missed(*first, *last, blob.manifest().chunks().len())
        };
        for position in next {
            let Ok(slot) = Arc::clone(&self.slots).try_acquire_owned() else {
                return;
            };
            let (cache, blob) = (Arc::clone(&self.cache), Arc::clone(blob));
            self.runtime.spawn(async move {
                // A failure is told to the reader who asks for the chunk, not to nobody.
                if let Err(error) = cache.prefetch(&blob, position).await {
                    tracing::debug!(%error, "prefetch failed");
                }
                drop(slot);
            });
        }
    }
}
