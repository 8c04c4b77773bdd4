use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use tokio::sync::oneshot;

/// Requests that wait for a fetch. Whoever takes a request off the table answers it, so that each is answered once.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// By the request's unique number. The lock is held for a map operation only.
    waiting: Mutex<HashMap<u64, oneshot::Sender<()>>>,
}

impl Pending {
    /// What is given back resolves when the request is interrupted.
    pub(super) fn insert(&self, unique: u64) -> oneshot::Receiver<()> {
        let (interrupt, interrupted) = oneshot::channel();
        self.waiting().insert(unique, interrupt);
        interrupted
    }

    /// Whether the request was still waiting: the caller must answer it then, and only then.
    pub(super) fn take(&self, unique: u64) -> bool {
        self.waiting().remove(&unique).is_some()
    }

    /// As [`Pending::take`], and ends the wait.
    pub(super) fn interrupt(&self, unique: u64) -> bool {
        let waiting = self.waiting().remove(&unique);
        waiting.is_some_and(|interrupt| {
            let _ = interrupt.send(());
            true
        })
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<()>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
