use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use moka::{notification::RemovalCause, policy::EvictionPolicy, sync::Cache as Bounded};

use super::{job::Source, kind::Kind};
use crate::{
    cache::{Cache, Counter},
    model::Digest,
};

/// Chunks that are remembered as fetched ahead and not read; an older one counts as wasted.
const REMEMBERED: u64 = 1 << 16;
/// And so does one that was not read in this time.
const FOR: Duration = Duration::from_secs(15 * 60);

const UNDER_WAY: u8 = 0;
/// Under way, and somebody waits for it.
const AWAITED: u8 = 1;
const THERE: u8 = 2;
/// Counted as read.
const TAKEN: u8 = 3;

/// What was fetched ahead and has not been read yet, to count what is used, late and wasted.
#[derive(Debug)]
pub(super) struct Ledger {
    cache: Arc<Cache>,
    entries: Bounded<Digest, Arc<Entry>>,
    /// About as many as there are, to see at once that there are none.
    len: Arc<AtomicUsize>,
}

#[derive(Debug)]
struct Entry {
    kind: Kind,
    source: Source,
    /// Of the chunk.
    bytes: u64,
    state: AtomicU8,
}

impl Ledger {
    pub(super) fn new(cache: Arc<Cache>) -> Self {
        let len = Arc::new(AtomicUsize::default());
        let (counted, counting) = (Arc::clone(&len), Arc::clone(&cache));
        let entries = Bounded::builder()
            .max_capacity(REMEMBERED)
            .eviction_policy(EvictionPolicy::lru())
            .time_to_live(FOR)
            .eviction_listener(move |_, entry: Arc<Entry>, cause| {
                counted.fetch_sub(1, Ordering::Relaxed);
                if cause != RemovalCause::Explicit {
                    wasted(&counting, &entry);
                }
            })
            .build();
        Self {
            cache,
            entries,
            len,
        }
    }

    /// A chunk is about to be fetched.
    pub(super) fn began(&self, chunk: Digest, bytes: u64, kind: Kind, source: Source) {
        let entry = Entry {
            kind,
            source,
            bytes,
            state: AtomicU8::new(UNDER_WAY),
        };
        self.len.fetch_add(1, Ordering::Relaxed);
        self.entries.insert(chunk, Arc::new(entry));
    }

    /// It was fetched; `awaited`: a reader has come to wait for it.
    pub(super) fn came(&self, chunk: Digest, awaited: bool) {
        let Some(entry) = self.entries.get(&chunk) else {
            return;
        };
        let counters = entry.kind.counters();
        self.count(counters.fetched, entry.bytes);
        let is_unread = !awaited && entry.change(UNDER_WAY, THERE);
        if !is_unread && (entry.change(AWAITED, TAKEN) || entry.change(UNDER_WAY, TAKEN)) {
            self.entries.invalidate(&chunk);
            self.count(counters.used, entry.bytes);
            self.count(counters.late, entry.bytes);
        }
    }

    /// It was not fetched: it was there, it failed, or nobody wants it any more.
    pub(super) fn gone(&self, chunk: Digest) {
        if let Some(entry) = self.entries.get(&chunk)
            && !matches!(entry.state.load(Ordering::Relaxed), THERE | TAKEN)
        {
            self.entries.invalidate(&chunk);
        }
    }

    /// Whether nothing is remembered.
    pub(super) fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    /// A chunk is read. Answers for whom it was fetched ahead, or is just being.
    pub(super) fn read(&self, chunk: Digest) -> Option<Source> {
        let entry = self.entries.get(&chunk)?;
        if !entry.change(UNDER_WAY, AWAITED) && entry.change(THERE, TAKEN) {
            self.entries.invalidate(&chunk);
            self.count(entry.kind.counters().used, entry.bytes);
        }
        Some(entry.source)
    }

    /// What has not been read by now never will be.
    pub(super) fn close(&self) {
        self.entries.run_pending_tasks();
        for (_, entry) in &self.entries {
            wasted(&self.cache, &entry);
        }
        self.entries.invalidate_all();
    }

    fn count(&self, counter: Counter, bytes: u64) {
        self.cache.stats().add(counter, bytes);
    }
}

impl Entry {
    /// True for the one who changes it.
    fn change(&self, from: u8, to: u8) -> bool {
        let changed = self
            .state
            .compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed);
        changed.is_ok()
    }
}

fn wasted(cache: &Cache, entry: &Entry) {
    if entry.state.load(Ordering::Relaxed) == THERE {
        cache.stats().add(entry.kind.counters().wasted, entry.bytes);
    }
}
