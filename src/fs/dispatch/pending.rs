use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{Notify, oneshot};

use super::reply::Reply;

/// An INTERRUPT that comes before its request waits is remembered for so long.
const REMEMBERED_FOR: Duration = Duration::from_secs(1);
/// And so many of them: more than a kernel has threads that overtake each other.
const REMEMBERED: usize = 256;

/// Requests that wait for a fetch. Whoever takes a request off the table answers it, so each is answered once.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Nothing is called while it is held.
    state: Mutex<State>,
    /// Told when a request is interrupted.
    interrupted: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// By the request's unique number.
    waiting: HashMap<u64, Waiting>,
    /// Requests that have ever waited.
    number: u64,
    /// INTERRUPTs for requests that were not waiting, the oldest first.
    early: VecDeque<(u64, Instant)>,
}

/// Which request waits. A guest that begins anew gives the same unique numbers again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WaitId {
    unique: u64,
    number: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    reply: Reply<'static>,
    /// Thread id of the caller as this process sees it, 0 where it cannot.
    caller: u32,
    /// Since when a signal waits for the caller.
    interrupted: Option<Instant>,
    /// Dropped with the request: then nobody waits for what is fetched for it.
    _abandon: oneshot::Sender<()>,
}

/// A request whose caller was interrupted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Interrupted {
    pub(super) id: WaitId,
    pub(super) caller: u32,
    pub(super) since: Instant,
}

impl Pending {
    /// The second of what is returned resolves when the request was taken off the table, by whomever.
    pub(super) fn insert(
        &self,
        reply: Reply<'static>,
        caller: u32,
    ) -> (WaitId, oneshot::Receiver<()>) {
        let (abandon, abandoned) = oneshot::channel();
        let unique = reply.unique();
        let mut state = self.state();
        state.drop_old();
        let early = state.early.iter().position(|(early, _)| *early == unique);
        let interrupted = early.and_then(|at| state.early.remove(at));
        state.number += 1;
        let number = state.number;
        let waiting = Waiting {
            number,
            reply,
            caller,
            interrupted: interrupted.map(|(_, at)| at),
            _abandon: abandon,
        };
        let replaced = state.waiting.insert(unique, waiting);
        drop(state);
        // A kernel never does that; whoever does gets an answer for each.
        drop(replaced);
        if interrupted.is_some() {
            self.interrupted.notify_one();
        }
        (WaitId { unique, number }, abandoned)
    }

    /// The request's reply, if it still waits.
    pub(super) fn take(&self, id: WaitId) -> Option<Reply<'static>> {
        let mut state = self.state();
        let entry = state.waiting.entry(id.unique);
        let Entry::Occupied(found) = entry else {
            return None;
        };
        (found.get().number == id.number).then(|| found.remove().reply)
    }

    /// Notes that the caller of a request got a signal.
    pub(super) fn interrupt(&self, unique: u64) {
        let mut state = self.state();
        let now = Instant::now();
        if let Some(waiting) = state.waiting.get_mut(&unique) {
            waiting.interrupted.get_or_insert(now);
        } else {
            // It was answered just now, or is about to wait.
            state.drop_old();
            if state.early.len() >= REMEMBERED {
                state.early.pop_front();
            }
            state.early.push_back((unique, now));
            return;
        }
        drop(state);
        self.interrupted.notify_one();
    }

    /// Requests whose callers were interrupted.
    pub(super) fn interrupted(&self) -> Vec<Interrupted> {
        let state = self.state();
        let waiting = state.waiting.iter();
        waiting
            .filter_map(|(unique, waiting)| {
                Some(Interrupted {
                    id: WaitId {
                        unique: *unique,
                        number: waiting.number,
                    },
                    caller: waiting.caller,
                    since: waiting.interrupted?,
                })
            })
            .collect()
    }

    /// Resolves when a request is interrupted, or was since the last time.
    pub(super) async fn next_interrupt(&self) {
        self.interrupted.notified().await;
    }

    /// Takes all requests off the table.
    pub(super) fn take_all(&self) -> Vec<Reply<'static>> {
        let waiting = std::mem::take(&mut self.state().waiting);
        waiting.into_values().map(|waiting| waiting.reply).collect()
    }

    /// Whether a request still waits.
    pub(super) fn contains(&self, id: WaitId) -> bool {
        let state = self.state();
        let found = state.waiting.get(&id.unique);
        found.is_some_and(|found| found.number == id.number)
    }

    /// How many requests wait.
    pub(super) fn len(&self) -> usize {
        self.state().waiting.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn drop_old(&mut self) {
        while self
            .early
            .front()
            .is_some_and(|(_, at)| at.elapsed() > REMEMBERED_FOR)
        {
            self.early.pop_front();
        }
    }
}
