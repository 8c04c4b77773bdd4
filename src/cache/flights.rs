use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};

use super::CacheError;

type Flight<V> = Shared<BoxFuture<'static, Result<V, CacheError>>>;

/// One task for each missing object. The task outlives any of its waiters: one that goes away harms nobody.
pub(super) struct Flights<K, V> {
    /// The lock is never held across an await.
    table: Arc<Mutex<HashMap<K, Flight<V>>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self {
            table: Arc::default(),
        }
    }
}

impl<K, V> Flights<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the flight for `key`, or starts it with `task`. The flight is over before its result is seen, so a failure
    /// is not seen by whoever asks after it.
    pub(super) async fn join<F>(&self, key: K, task: impl FnOnce() -> F) -> Result<V, CacheError>
    where
        F: Future<Output = Result<V, CacheError>> + Send + 'static,
    {
        let flight = {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(flight) = table.get(&key) {
                flight.clone()
            } else {
                let task = task();
                let landing = Landing {
                    table: Arc::clone(&self.table),
                    key,
                };
                let handle = tokio::spawn(async move {
                    // Dropped also when the task panics.
                    let _landing = landing;
                    task.await
                });
                let flight = handle
                    .map(|result| result.unwrap_or(Err(CacheError::Aborted)))
                    .boxed()
                    .shared();
                table.insert(key, flight.clone());
                flight
            }
        };
        flight.await
    }
}

struct Landing<K: Eq + Hash, V> {
    table: Arc<Mutex<HashMap<K, Flight<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.table
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn a_hundred_waiters_start_one_task() {
        let flights = Arc::new(Flights::<u32, u32>::default());
        let (started, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let waiters: Vec<_> = (0..100)
            .map(|_| {
                let (flights, started, go) = (flights.clone(), started.clone(), go.clone());
                tokio::spawn(async move {
                    let task = || async move {
                        started.fetch_add(1, Ordering::SeqCst);
                        go.notified().await;
                        Ok(7)
                    };
                    flights.join(1, task).await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        // The one that started it goes away, and the others still get their value.
        waiters[0].abort();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        go.notify_one();
        for waiter in waiters.into_iter().skip(1) {
            assert_eq!(waiter.await.unwrap().unwrap(), 7);
        }
        assert_eq!(started.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn a_failure_or_a_panic_is_not_kept() {
        let flights = Flights::<u32, u32>::default();
        let failed = flights.join(1, || async { Err(CacheError::Aborted) }).await;
        assert!(failed.is_err());
        let panicked = flights.join(1, || async { panic!("on purpose") }).await;
        assert!(matches!(panicked, Err(CacheError::Aborted)));
        assert_eq!(flights.join(1, || async { Ok(3) }).await.unwrap(), 3);
    }
}
