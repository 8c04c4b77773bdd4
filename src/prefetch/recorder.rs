use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::profile::{ENTRIES, Entry};
use crate::cache::Blob;

/// Bytes of paths that are remembered.
const PATHS: usize = 8 << 20;

/// Notes what a mount reads for the first time, in order.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    /// No more is noted.
    full: AtomicBool,
    /// The lock is held for a look only.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: Vec<Entry>,
    /// Which chunks of a file were read, by inode.
    seen: HashMap<u64, Box<[u64]>>,
    paths: usize,
    /// Entries when they were last taken.
    taken: usize,
}

impl Recorder {
    /// Chunks `first` to `last` of a file are read. True when some of them had not been.
    pub(super) fn note(
        &self,
        inode: u64,
        blob: &Blob,
        first: usize,
        last: usize,
        path: impl FnOnce() -> Option<Vec<u8>>,
    ) -> bool {
        if self.full.load(Ordering::Relaxed) {
            return false;
        }
        let chunks = blob.manifest().chunks();
        let mut state = self.state();
        let seen = state
            .seen
            .entry(inode)
            .or_insert_with(|| vec![0; chunks.len().div_ceil(64)].into());
        let mut new = None;
        for position in first..=last {
            // A blob may have come to be cut in another way.
            let Some(word) = seen.get_mut(position / 64) else {
                continue;
            };
            let bit = 1 << (position % 64);
            if *word & bit == 0 {
                *word |= bit;
                new = Some((new.map_or(position, |(first, _)| first), position));
            }
        }
        let Some((first, last)) = new else {
            return false;
        };
        let (Some(first), Some(last)) = (chunks.get(first), chunks.get(last)) else {
            return false;
        };
        let range = first.offset..last.offset + last.size;
        if let Some(entry) = state.entries.last_mut()
            && entry.digest == blob.digest()
            && entry.range.end == range.start
        {
            entry.range.end = range.end;
            return true;
        }
        let Some(path) = path() else {
            return true;
        };
        state.paths += path.len();
        if state.entries.len() >= ENTRIES || state.paths > PATHS {
            self.full.store(true, Ordering::Relaxed);
            state.seen = HashMap::new();
            return true;
        }
        state.entries.push(Entry {
            path,
            digest: blob.digest(),
            size: blob.manifest().size(),
            range,
        });
        true
    }

    /// All that was noted, where there is more than when it was last taken.
    pub(super) fn take(&self) -> Option<Vec<Entry>> {
        let mut state = self.state();
        let grown = state.entries.len() > state.taken;
        state.taken = state.entries.len();
        grown.then(|| state.entries.clone())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
