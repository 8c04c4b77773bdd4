use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// How many readers wait for chunks.
#[derive(Debug, Default)]
pub(super) struct Readers(Arc<AtomicUsize>);

/// A reader who waits, until it is dropped.
#[derive(Debug)]
pub struct Waiting(Arc<AtomicUsize>);

impl Readers {
    pub(super) fn enter(&self) -> Waiting {
        self.0.fetch_add(1, Ordering::Relaxed);
        Waiting(Arc::clone(&self.0))
    }

    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
