use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    fill::Spare,
    job::{Job, Source},
    kind::Kind,
    profile::{Entry, Profile},
    scheduler::Scheduler,
    tree::{Tree, Walked},
};
use crate::{cache::Cache, model::Digest};

/// Bytes that are fetched beyond what readers have come to, at the most; and before one has read anything.
const LEAD: u64 = 256 << 20;
const FIRST_LEAD: u64 = 64 << 20;
/// Jobs that wait at once.
const WAITING: usize = 256;
/// A file that is another one by now is fetched as a whole up to this size, in bytes; of a larger one, what was read of the old.
const WHOLE: u64 = 1 << 20;
/// How often it is looked whether there is room for more.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// After so many files …
const JUDGED: usize = 64;
/// … one in so many must have been in the profile, or it is given up.
const MATCHING: usize = 4;

/// Fetches what a profile says, in its order, ahead of those who read.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// The lock is held for a look only.
    state: Mutex<State>,
    stopped: AtomicBool,
    /// Whether it goes on, so that reads matter to it.
    runs: AtomicBool,
    /// Told when a reader has come further, and when it is stopped.
    advanced: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Where each file is in the profile: bytes of all entries up to its first.
    places: HashMap<Digest, u64>,
    /// The furthest of the files that were read.
    reached: u64,
    /// Files that were read, each once.
    files: HashSet<Digest>,
    /// How many of those are in the profile.
    matched: usize,
}

impl Replay {
    /// A file is read.
    pub(super) fn read(&self, file: Digest, scheduler: &Scheduler) {
        if !self.runs.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state();
        if !state.files.insert(file) {
            return;
        }
        if let Some(place) = state.places.get(&file).copied() {
            state.matched += 1;
            if place > state.reached || state.matched == 1 {
                state.reached = state.reached.max(place);
                self.advanced.notify_one();
            }
        }
        let (all, matched) = (state.files.len(), state.matched);
        drop(state);
        if all >= JUDGED && matched * MATCHING < all {
            tracing::debug!(matched, all, "the profile does not match");
            self.stop(scheduler);
        }
    }

    pub(super) fn stop(&self, scheduler: &Scheduler) {
        self.stopped.store(true, Ordering::Relaxed);
        self.advanced.notify_one();
        scheduler.cancel(|source| *source == Source::Profile);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// How far it may go, in bytes of the profile.
    fn until(&self) -> u64 {
        let state = self.state();
        match state.matched {
            0 => FIRST_LEAD,
            _ => state.reached.saturating_add(LEAD),
        }
    }

    /// Goes through a profile to its end, or until it is stopped. What it fetches may take the place of what was last used
    /// before `recorded_at`, in seconds since 1970, and of nothing else.
    pub(super) async fn run(
        &self,
        cache: &Arc<Cache>,
        scheduler: &Scheduler,
        tree: &Tree,
        profile: &Profile,
        recorded_at: u64,
    ) {
        {
            let mut state = self.state();
            let mut bytes = 0_u64;
            for entry in &profile.entries {
                bytes = bytes.saturating_add(entry.range.end - entry.range.start);
                state.places.entry(entry.digest).or_insert(bytes);
            }
        }
        self.runs.store(true, Ordering::Relaxed);
        let (mut walked, mut spare) = (Walked::default(), Spare::new(recorded_at));
        let mut come_to = 0_u64;
        for entry in &profile.entries {
            while come_to > self.until() && !self.is_stopped() {
                self.advanced.notified().await;
            }
            while scheduler.waiting(Kind::Profile) >= WAITING && !self.is_stopped() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            if self.is_stopped() {
                break;
            }
            come_to = come_to.saturating_add(entry.range.end - entry.range.start);
            // What is not there any more, or cannot be had, is left out.
            let Some((digest, size)) = walked.find(cache, tree, &entry.path).await else {
                continue;
            };
            self.state().places.entry(digest).or_insert(come_to);
            let Some(range) = wanted(entry, digest, size) else {
                continue;
            };
            let missing = missing(cache, digest, size, &range);
            let outstanding = || scheduler.outstanding(Kind::Profile, Source::Profile);
            // What there is no room for is left out, too.
            if missing == 0 || !spare.take(cache, missing, outstanding).await {
                continue;
            }
            if self.is_stopped() {
                break;
            }
            let job = Job::File {
                digest,
                size,
                range,
            };
            scheduler.push(Kind::Profile, Source::Profile, job);
        }
        // It can be stopped until all that it wanted has been begun.
        while scheduler.wants(Kind::Profile, Source::Profile) && !self.is_stopped() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.runs.store(false, Ordering::Relaxed);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a part of a file that are not here, as far as can be said at once.
fn missing(cache: &Cache, digest: Digest, size: u64, range: &Range<u64>) -> u64 {
    let Some(blob) = cache.blob_at_hand(digest, size) else {
        return range.end - range.start;
    };
    let slices = blob.manifest().slices(range.start, range.end - range.start);
    let missing = slices.filter(|slice| !cache.is_near(&blob, slice.index));
    missing.map(|slice| slice.len).sum()
}

/// The bytes to fetch of a file, which may be another one than the profile's.
fn wanted(entry: &Entry, digest: Digest, size: u64) -> Option<Range<u64>> {
    let range = if digest == entry.digest {
        entry.range.clone()
    } else if size <= WHOLE || entry.range.end == entry.size && entry.range.start == 0 {
        0..size
    } else {
        entry.range.start..entry.range.end.min(size)
    };
    (!range.is_empty()).then_some(range)
}
