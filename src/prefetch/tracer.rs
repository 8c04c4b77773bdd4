use std::{
    collections::HashMap,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::model::Digest;

/// Events that are kept; then it ends by itself.
const EVENTS: usize = 200_000;

/// Notes what is read and what is fetched ahead, while somebody wants to see it.
#[derive(Debug, Default)]
pub(super) struct Tracer {
    on: AtomicBool,
    next: AtomicU64,
    /// The lock is held for a look only.
    state: Mutex<Option<State>>,
}

#[derive(Debug)]
struct State {
    /// Which of all traces it is.
    number: u64,
    began: Instant,
    files: HashMap<Digest, usize>,
    trace: Trace,
}

/// What was seen.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    pub files: Vec<TracedFile>,
    pub events: Vec<Event>,
    /// There was more than can be kept.
    pub cut_short: bool,
}

/// A file of a trace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedFile {
    /// Its path from the root, where it was read; otherwise its digest.
    pub path: String,
    /// In bytes.
    pub size: u64,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Microseconds since the beginning.
    pub at: u64,
    /// Position in [`Trace::files`].
    pub file: usize,
    pub what: What,
    /// In bytes.
    pub range: Range<u64>,
}

/// What happened to a part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// It was fetched ahead.
    Prefetched,
    /// It was read, and was there.
    Read,
    /// It was read, and had to be waited for.
    Missed,
}

impl Tracer {
    /// Begins anew, and gives the number of the trace.
    pub(super) fn start(&self) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        *self.state() = Some(State {
            number,
            began: Instant::now(),
            files: HashMap::new(),
            trace: Trace::default(),
        });
        self.on.store(true, Ordering::Relaxed);
        number
    }

    /// What was seen since it began; `None` when another one has begun since.
    pub(super) fn stop(&self, number: u64) -> Option<Trace> {
        let mut state = self.state();
        let ended = state.take_if(|state| state.number == number)?;
        self.on.store(false, Ordering::Relaxed);
        Some(ended.trace)
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    pub(super) fn note(
        &self,
        file: Digest,
        size: u64,
        what: What,
        range: Range<u64>,
        path: impl FnOnce() -> Option<Vec<u8>>,
    ) {
        if !self.is_on() {
            return;
        }
        let mut guard = self.state();
        let Some(state) = &mut *guard else {
            return;
        };
        let trace = &mut state.trace;
        if trace.events.len() >= EVENTS {
            trace.cut_short = true;
            self.on.store(false, Ordering::Relaxed);
            return;
        }
        let at = u64::try_from(state.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let next = trace.files.len();
        let file_index = *state.files.entry(file).or_insert(next);
        let unread = || file.to_string();
        if file_index == next {
            trace.files.push(TracedFile {
                path: unread(),
                size,
            });
        }
        let known = &mut trace.files[file_index];
        if what != What::Prefetched
            && known.path == unread()
            && let Some(path) = path()
        {
            known.path = String::from_utf8_lossy(&path).into_owned();
        }
        trace.events.push(Event {
            at,
            file: file_index,
            what,
            range,
        });
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
