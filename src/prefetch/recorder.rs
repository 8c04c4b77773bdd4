use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use super::profile::{ENTRIES, Entry};
use crate::{cache::Blob, model::Digest};

/// Bytes of paths that are remembered.
const PATHS: usize = 4 << 20;

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
    /// Which chunks of a file were read.
    seen: HashMap<Digest, Box<[u64]>>,
    paths: usize,
    /// Something was noted since it was last taken.
    grown: bool,
}

impl Recorder {
    /// Chunks `first` to `last` of a file are read.
    pub(super) fn note(
        &self,
        blob: &Blob,
        first: usize,
        last: usize,
        path: impl FnOnce() -> Option<Vec<u8>>,
    ) {
        if self.full.load(Ordering::Relaxed) {
            return;
        }
        let chunks = blob.manifest().chunks();
        let mut state = self.state();
        if state.seen.len() > ENTRIES {
            self.fill(&mut state);
            return;
        }
        let seen = state
            .seen
            .entry(blob.digest())
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
            return;
        };
        let (Some(first), Some(last)) = (chunks.get(first), chunks.get(last)) else {
            return;
        };
        let range = first.offset..last.offset + last.size;
        state.grown = true;
        if let Some(entry) = state.entries.last_mut()
            && entry.digest == blob.digest()
            && entry.range.end == range.start
        {
            entry.range.end = range.end;
            return;
        }
        let Some(path) = path() else {
            return;
        };
        state.paths += path.len();
        if state.entries.len() >= ENTRIES || state.paths > PATHS {
            self.fill(&mut state);
            return;
        }
        state.entries.push(Entry {
            path,
            digest: blob.digest(),
            size: blob.manifest().size(),
            range,
        });
    }

    /// All that was noted, where there is more than when it was last taken.
    pub(super) fn take(&self) -> Option<Vec<Entry>> {
        let mut state = self.state();
        let grown = std::mem::take(&mut state.grown);
        grown.then(|| state.entries.clone())
    }

    fn fill(&self, state: &mut State) {
        self.full.store(true, Ordering::Relaxed);
        state.seen = HashMap::new();
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
