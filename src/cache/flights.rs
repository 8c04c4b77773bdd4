use std::{
    collections::HashMap,
    future::Future,
    hash::Hash,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use tokio::task::AbortHandle;

use super::CacheError;
use crate::remote::Urgency;

/// One task for each missing object. The task outlives any one of its waiters, so one that goes away harms nobody; when
/// the last has gone, the task is ended.
pub(super) struct Flights<K, V> {
    table: Arc<Table<K, V>>,
    next: AtomicU64,
}

/// Flights by what they bring, with a number of their own. The lock is never held across an await, nor while a flight is dropped.
type Table<K, V> = Mutex<HashMap<K, (u64, Weak<Flight<V>>)>>;

/// Held by its waiters.
struct Flight<V> {
    result: Shared<BoxFuture<'static, Result<V, CacheError>>>,
    task: AbortHandle,
    /// The highest among the waiters.
    urgency: Urgency,
}

impl<V> Drop for Flight<V> {
    fn drop(&mut self) {
        // Does nothing to a task that has ended.
        self.task.abort();
    }
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self {
            table: Arc::default(),
            next: AtomicU64::default(),
        }
    }
}

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Whether there is one.
    pub(super) fn has(&self, key: &K) -> bool {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        table.contains_key(key)
    }

    /// Joins the flight for `key`, or starts it with `task`. The flight is over before its result is seen, so a failure
    /// is not seen by whoever asks after it.
    pub(super) async fn join<F>(
        &self,
        key: K,
        is_reader: bool,
        task: impl FnOnce(Urgency) -> F,
    ) -> Result<V, CacheError>
    where
        F: Future<Output = Result<V, CacheError>> + Send + 'static,
    {
        let flight = {
            let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
            // One whose last waiter is just going away is not joined any more.
            if let Some(flight) = table.get(&key).and_then(|(_, flight)| flight.upgrade()) {
                drop(task); // Not kept for as long as this waits.
                flight
            } else {
                let urgency = Urgency::default();
                let task = task(urgency.clone());
                let landing = Landing {
                    table: Arc::clone(&self.table),
                    key: key.clone(),
                    number: self.next.fetch_add(1, Ordering::Relaxed),
                };
                let number = landing.number;
                let handle = tokio::spawn(async move {
                    // Dropped also when the task panics or is ended.
                    let _landing = landing;
                    task.await
                });
                let flight = Arc::new(Flight {
                    task: handle.abort_handle(),
                    urgency,
                    result: handle
                        .map(|result| result.unwrap_or(Err(CacheError::Aborted)))
                        .boxed()
                        .shared(),
                });
                table.insert(key, (number, Arc::downgrade(&flight)));
                flight
            }
        };
        if is_reader {
            flight.urgency.raise();
        }
        flight.result.clone().await
    }
}

/// Takes a flight off the table, unless another one has taken its place.
struct Landing<K: Eq + Hash, V> {
    table: Arc<Table<K, V>>,
    key: K,
    number: u64,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        if table
            .get(&self.key)
            .is_some_and(|(number, _)| *number == self.number)
        {
            table.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

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
                    let task = |_| async move {
                        started.fetch_add(1, Ordering::SeqCst);
                        go.notified().await;
                        Ok(7)
                    };
                    flights.join(1, true, task).await
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
        let failed = flights
            .join(1, true, |_| async { Err(CacheError::Aborted) })
            .await;
        assert!(failed.is_err());
        let panicked = flights
            .join(1, true, |_| async { panic!("on purpose") })
            .await;
        assert!(matches!(panicked, Err(CacheError::Aborted)));
        let third = flights.join(1, true, |_| async { Ok(3) }).await;
        assert_eq!(third.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_flight_ends_with_its_last_waiter_and_the_next_is_a_new_one() {
        let flights = Arc::new(Flights::<u32, u32>::default());
        let (alive, gone) = (Arc::new(()), Arc::new(Notify::new()));
        let waiters: Vec<_> = (0..2)
            .map(|_| {
                let (flights, alive, gone) = (flights.clone(), alive.clone(), gone.clone());
                tokio::spawn(async move {
                    let task = |_| async move {
                        gone.notified().await;
                        drop(alive);
                        Ok(1)
                    };
                    flights.join(1, false, task).await
                })
            })
            .collect();
        tokio::task::yield_now().await;
        waiters[0].abort();
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&alive), 2, "one still waits");
        waiters[1].abort();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(Arc::strong_count(&alive), 1, "the task has ended");
        let next = flights.join(
            1,
            true,
            |urgency| async move { Ok(urgency.is_reader().into()) },
        );
        assert_eq!(next.await.unwrap(), 1);
        assert!(flights.table.lock().unwrap().is_empty());
    }
}
