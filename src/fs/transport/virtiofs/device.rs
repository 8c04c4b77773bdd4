use std::{
    collections::HashMap,
    fmt, io,
    sync::{
        Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use vhost_user_backend::VringT;
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::{Ring, SharedMemory, chain::Chain};
use crate::fs::dispatch::{Answer, Capabilities, MAX_TRANSFER, Transport};

/// A device for the filesystem of one guest: its memory, and its requests that are not answered yet.
pub struct Device {
    memory: SharedMemory,
    /// Numbers of requests.
    next: AtomicU64,
    /// Held, shared, while a request is taken off its ring or its answer is put there: a ring that was stopped is not written to.
    /// Taken before the others.
    running: RwLock<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Requests that are not answered yet, by their numbers.
    unanswered: HashMap<u64, Unanswered>,
    /// Rings that were stopped, and where they were then.
    stopped: HashMap<usize, Position>,
}

struct Unanswered {
    /// Of its ring.
    number: usize,
    ring: Ring,
    chain: Chain,
    /// Its answer came while the ring was stopped.
    is_lost: bool,
}

/// Where a ring is: the next entries that are available and used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    available: u16,
    used: u16,
}

/// A request that was taken off a ring.
pub(super) struct Taken {
    pub(super) slot: u64,
}

/// What a ring gives.
pub(super) enum Next {
    Request(Taken),
    /// Something that is no request, and was given back.
    Rubbish,
    Nothing,
}

/// What was found when a ring started.
pub(super) enum Started {
    /// It went on without a stop.
    Running,
    /// The machine was paused: these requests lost their answers meanwhile, and are to be run again.
    Resumed(Vec<Taken>),
    /// The guest began anew.
    Anew,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").finish_non_exhaustive()
    }
}

impl Device {
    pub(super) fn new(memory: SharedMemory) -> Self {
        Self {
            memory,
            next: AtomicU64::new(1),
            running: RwLock::new(()),
            state: Mutex::default(),
        }
    }

    pub(super) fn memory(&self) -> SharedMemory {
        self.memory.clone()
    }

    /// Takes the next request off a ring and copies it.
    pub(super) fn take(&self, number: usize, ring: &Ring, request: &mut Vec<u8>) -> Next {
        let _running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        let mut state = ring.get_mut();
        let size = usize::from(state.get_queue().size());
        let queue = state.get_queue_mut();
        let Some(descriptors) = queue.pop_descriptor_chain(self.memory.memory()) else {
            return Next::Nothing;
        };
        drop(state);
        let (head, chain) = Chain::new(descriptors);
        let chain = chain.filter(|chain| chain.read(&self.memory.memory(), request).is_ok());
        let mut state = self.state();
        let under_way = state.unanswered.values();
        // A driver has no more on their way than a ring has entries.
        let is_full = state.unanswered.len() >= size
            && under_way.filter(|other| other.number == number).count() >= size;
        let Some(chain) = chain.filter(|_| !is_full) else {
            drop(state);
            put(ring, head, 0);
            return Next::Rubbish;
        };
        let slot = self.next.fetch_add(1, Ordering::Relaxed);
        let ring = ring.clone();
        let unanswered = Unanswered {
            number,
            ring,
            chain,
            is_lost: false,
        };
        state.unanswered.insert(slot, unanswered);
        Next::Request(Taken { slot })
    }

    /// Copies a request again.
    pub(super) fn read(&self, slot: u64, request: &mut Vec<u8>) -> bool {
        let state = self.state();
        let unanswered = state.unanswered.get(&slot);
        unanswered.is_some_and(|found| found.chain.read(&self.memory.memory(), request).is_ok())
    }

    /// Gives a request back that has no answer.
    pub(super) fn give_back(&self, slot: u64) {
        let _running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        let unanswered = self.state().unanswered.remove(&slot);
        if let Some(Unanswered { ring, chain, .. }) = unanswered {
            put(&ring, chain.head(), 0);
        }
    }

    /// A ring was stopped: from now on nothing is written to it.
    pub(super) fn stop(&self, number: usize, ring: Option<&Ring>) {
        let _none_runs = self.running.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(ring) = ring {
            self.state().stopped.insert(number, position(ring));
        }
    }

    /// A ring may have been started. What was on its way when it was stopped is still there where it goes on from where it was.
    pub(super) fn start(&self, number: usize, ring: &Ring) -> Started {
        let mut state = self.state();
        let Some(stopped) = state.stopped.remove(&number) else {
            return Started::Running;
        };
        if position(ring) != stopped {
            state.unanswered.retain(|_, found| found.number != number);
            return Started::Anew;
        }
        let of_ring = state.unanswered.iter_mut();
        let lost = of_ring.filter(|(_, found)| found.number == number && found.is_lost);
        let mut taken: Vec<_> = lost
            .map(|(slot, found)| {
                found.is_lost = false;
                Taken { slot: *slot }
            })
            .collect();
        taken.sort_unstable_by_key(|taken| taken.slot);
        Started::Resumed(taken)
    }

    /// Forgets all requests; none is answered.
    pub(super) fn forget(&self) {
        let _none_runs = self.running.write().unwrap_or_else(PoisonError::into_inner);
        *self.state() = State::default();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// A request that is answered now. One whose ring was stopped stays, and is run again when that goes on.
    fn answer(&mut self, slot: u64) -> Option<Unanswered> {
        let found = self.unanswered.get_mut(&slot)?;
        if self.stopped.contains_key(&found.number) {
            found.is_lost = true;
            return None;
        }
        self.unanswered.remove(&slot)
    }
}

impl Transport for Device {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_transfer: MAX_TRANSFER,
            interrupts: false,
            notifications: false,
            backing_files: false,
        }
    }

    fn send(&self, answer: &Answer<'_>) -> io::Result<()> {
        let _running = self.running.read().unwrap_or_else(PoisonError::into_inner);
        let unanswered = self.state().answer(answer.to.slot);
        let unanswered = unanswered.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))?;
        match unanswered.chain.write(&self.memory.memory(), answer) {
            Ok(len) => {
                put(&unanswered.ring, unanswered.chain.head(), len);
                Ok(())
            }
            Err(error) => {
                // It still waits for an answer.
                self.state().unanswered.insert(answer.to.slot, unanswered);
                Err(error)
            }
        }
    }

    fn notify(&self, _: i32, _: &[&[u8]]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
}

/// Puts an entry into a ring's list of what was used, and tells the guest if it wants to know.
fn put(ring: &Ring, head: u16, len: u32) {
    let mut state = ring.get_mut();
    let put = state.add_used(head, len);
    let told = match (put, state.needs_notification()) {
        (Ok(()), Ok(true)) => state.signal_used_queue(),
        (Ok(()), Ok(false)) => Ok(()),
        (Err(error), _) | (_, Err(error)) => Err(io::Error::other(error)),
    };
    if let Err(error) = told {
        tracing::debug!(%error, "an answer did not reach the guest");
    }
}

fn position(ring: &Ring) -> Position {
    let state = ring.get_ref();
    let queue = state.get_queue();
    Position {
        available: queue.next_avail(),
        used: queue.next_used(),
    }
}
