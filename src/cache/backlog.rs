use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// A writer that has not got on for so long is stuck: the disk is slow, or another process holds the index.
const STUCK_AFTER: Duration = Duration::from_millis(100);

/// What the writer has not written yet.
#[derive(Debug)]
pub(super) struct Backlog {
    bytes: AtomicU64,
    opened: Instant,
    /// When the writer last got on, in milliseconds since `opened`.
    progress: AtomicU64,
}

/// Bytes in the backlog, until this is dropped.
#[derive(Debug)]
pub(super) struct Queued {
    backlog: Arc<Backlog>,
    bytes: u64,
}

impl Backlog {
    pub(super) fn new() -> Self {
        Self {
            bytes: AtomicU64::new(0),
            opened: Instant::now(),
            progress: AtomicU64::new(0),
        }
    }

    pub(super) fn note_progress(&self) {
        self.progress.store(self.now(), Ordering::Relaxed);
    }

    /// `None` when the writer is stuck and more than `limit` bytes wait for it.
    pub(super) fn add(self: &Arc<Self>, bytes: u64, limit: u64) -> Option<Queued> {
        let before = self.bytes.load(Ordering::Relaxed);
        if before == 0 {
            // Until now it had nothing to do.
            self.note_progress();
        }
        if self.is_stuck(limit) {
            return None;
        }
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Some(Queued {
            backlog: Arc::clone(self),
            bytes,
        })
    }

    /// Whether the writer is stuck and more than `limit` bytes wait for it.
    pub(super) fn is_stuck(&self, limit: u64) -> bool {
        let idle = self
            .now()
            .saturating_sub(self.progress.load(Ordering::Relaxed));
        self.bytes.load(Ordering::Relaxed) > limit && u128::from(idle) >= STUCK_AFTER.as_millis()
    }

    fn now(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.backlog.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn much_is_refused_while_the_writer_is_stuck() {
        let backlog = Arc::new(Backlog::new());
        let first = backlog.add(100, 50).unwrap();
        std::thread::sleep(STUCK_AFTER);
        assert!(backlog.add(1, 50).is_none());
        assert!(backlog.add(1, 100).is_some(), "it is little");
        backlog.note_progress();
        let second = backlog.add(1, 50);
        assert!(second.is_some() || backlog.now() >= 100, "it has got on");
        drop((first, second));
        assert!(backlog.add(1, 0).is_some(), "nothing waits");
    }
}
