//! What readers come for. What a reader came for once more is kept when room is made (`eviction`).

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::model::Digest;

/// A reader who comes so many seconds later comes once more, wherever in the chunk he reads.
const APART: u64 = 60;
/// Passes that are told from each other within that time.
const PASSES: u64 = 3;
/// A chunk that so many readers came for was read again.
pub(super) const READ_AGAIN: u8 = 2;
/// Chunks whose last pass is remembered, at the most: a power of two. Where two have one place, a pass over one is forgotten.
const PLACES: usize = 1 << 14;
/// Times are compared modulo 34 years.
const TIME: u64 = (1 << 30) - 1;
/// Passes that are written to the index at once, at the most.
pub(super) const AT_ONCE: usize = 2048;
/// Digests that are remembered until the index has them, at the most.
const MOST: usize = 1 << 16;

/// Passes of readers over chunks, as one process sees them.
#[derive(Debug)]
pub(super) struct Uses {
    /// The last pass over a chunk: a part of its digest (32 bits), the time in seconds (30), and how many there were (2).
    last: Box<[AtomicU64]>,
    /// The lock is held for a map operation only.
    unwritten: Mutex<Unwritten>,
}

/// What the index does not know of yet.
#[derive(Debug, Default)]
struct Unwritten {
    /// Passes.
    counted: HashMap<Digest, u8>,
    /// Chunks that are wanted, and on their way perhaps.
    expected: HashSet<Digest>,
}

impl Default for Uses {
    fn default() -> Self {
        Self {
            last: (0..PLACES).map(|_| AtomicU64::new(0)).collect(),
            unwritten: Mutex::default(),
        }
    }
}

impl Uses {
    /// Notes that a reader comes for a chunk. It is another pass where it is the first one, a minute after the last one, or two seconds after
    /// it and for its first byte (`begins`), which a reader in order reads once. `now`: seconds since 1970.
    pub(super) fn note(&self, chunk: Digest, begins: bool, now: u64) {
        let (place, tag) = place_of(chunk);
        let last = &self.last[place];
        let (now, before) = (now & TIME, last.load(Ordering::Relaxed));
        let count = match before >> 32 == tag {
            true => before & PASSES,
            false => 0,
        };
        let since = now.wrapping_sub(before >> 2) & TIME;
        if count > 0 && since < APART && !(begins && since > 1 && count < PASSES) {
            return;
        }
        // Two readers at the same moment are one pass or two.
        let pass = tag << 32 | now << 2 | (count + 1).min(PASSES);
        last.store(pass, Ordering::Relaxed);
        self.add(chunk, 1);
    }

    /// Notes passes that this process has not seen.
    pub(super) fn add(&self, chunk: Digest, passes: u8) {
        let mut uses = self.lock();
        if uses.counted.len() < MOST || uses.counted.contains_key(&chunk) {
            let count = uses.counted.entry(chunk).or_default();
            *count = count.saturating_add(passes);
        }
    }

    /// Whether readers came for a chunk more than once, as far as the index does not know.
    pub(super) fn is_read_again(&self, chunk: Digest) -> bool {
        let uses = self.lock();
        let counted = uses.counted.get(&chunk);
        uses.expected.contains(&chunk) || counted.is_some_and(|count| *count >= READ_AGAIN)
    }

    /// Notes that a chunk is wanted that may not be here yet: when it comes, it is as if it had been read again.
    pub(super) fn expect(&self, chunk: Digest) {
        let mut uses = self.lock();
        if uses.expected.len() >= MOST {
            // Most of those never came.
            uses.expected.clear();
        }
        uses.expected.insert(chunk);
    }

    /// The passes over a chunk that the index does not know of. They are forgotten here.
    pub(super) fn take(&self, chunk: Digest) -> u8 {
        let mut uses = self.lock();
        let counted = uses.counted.remove(&chunk).unwrap_or_default();
        match uses.expected.remove(&chunk) {
            true => counted.saturating_add(READ_AGAIN),
            false => counted,
        }
    }

    /// Some of them, but not those over chunks that `stays` says are not in the index yet.
    pub(super) fn take_some(&self, stays: impl Fn(Digest) -> bool) -> Vec<(Digest, u8)> {
        let all = std::mem::take(&mut self.lock().counted);
        let (mut taken, mut left) = (Vec::new(), Vec::new());
        for (chunk, count) in all {
            match taken.len() < AT_ONCE && !stays(chunk) {
                true => taken.push((chunk, count)),
                false => left.push((chunk, count)),
            }
        }
        let mut uses = self.lock();
        for (chunk, count) in left {
            let counted = uses.counted.entry(chunk).or_default();
            *counted = counted.saturating_add(count);
        }
        taken
    }

    fn lock(&self) -> MutexGuard<'_, Unwritten> {
        self.unwritten
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a chunk, and what tells it from others there.
fn place_of(chunk: Digest) -> (usize, u64) {
    let parts = chunk.as_bytes().as_chunks::<4>().0;
    let [place, tag] = [parts[0], parts[1]].map(u32::from_le_bytes);
    (place as usize % PLACES, tag.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_is_counted_once() {
        let uses = Uses::default();
        let chunk = Digest::of(b"chunk");
        let counts = |begins, now: u64| {
            uses.note(chunk, begins, now);
            uses.take(chunk) == 1
        };
        let now = 1_800_000_000;
        assert!(counts(false, now), "the first reader");
        assert!(!counts(false, now), "the rest of the chunk");
        assert!(!counts(true, now), "the same one again, by the kernel");
        assert!(!counts(true, now + 1));
        assert!(counts(true, now + 2), "its beginning, once more");
        assert!(counts(true, now + 4));
        assert!(!counts(true, now + 6), "that is enough for a minute");
        assert!(!counts(false, now + 63));
        assert!(counts(false, now + 64));
        assert!(!counts(true, now + 66));
    }

    #[test]
    fn what_is_not_in_the_index_yet_stays() {
        let uses = Uses::default();
        let [early, late] = [Digest::of(b"early"), Digest::of(b"late")];
        uses.note(early, false, 100);
        uses.note(early, false, 200);
        uses.note(late, false, 100);
        assert_eq!(uses.take_some(|chunk| chunk == late), [(early, 2)]);
        assert_eq!(uses.take(late), 1);
        assert_eq!(uses.take(late), 0);
        uses.expect(late);
        assert!(uses.is_read_again(late));
        assert_eq!(uses.take_some(|_| false), [], "it has not come");
        assert_eq!(uses.take(late), READ_AGAIN);
        assert!(!uses.is_read_again(late));
    }
}
