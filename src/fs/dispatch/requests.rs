use std::sync::atomic::{AtomicU64, Ordering};

use super::opcode;

/// Threads that count apart; more share.
const THREADS: usize = 8;

/// Requests since the start, by the number of their operation. Each thread counts for itself: one counter for all would travel
/// between the processors with each request.
#[derive(Debug, Default)]
pub(super) struct Requests([OfThread; THREADS]);

#[derive(Debug)]
#[repr(align(128))]
struct OfThread([AtomicU64; opcode::NUMBERS]);

impl Default for OfThread {
    fn default() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl Requests {
    pub(super) fn count(&self, opcode: u32, thread: usize) {
        if let Some(counter) = self.0[thread % THREADS].0.get(opcode as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn of(&self, opcode: u32) -> u64 {
        let counters = self
            .0
            .iter()
            .filter_map(|thread| thread.0.get(opcode as usize));
        counters
            .map(|counter| counter.load(Ordering::Relaxed))
            .sum()
    }
}
