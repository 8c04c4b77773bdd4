use hashbrown::HashMap;

use vhost_user_backend::VringT;
use virtio_queue::QueueT;

use super::{Ring, chain::Chain};
use crate::fs::dispatch::RequestId;

/// The requests of a guest that are not answered yet, and the rings that are not to be touched.
#[derive(Default)]
pub(super) struct State {
    /// Requests that are not answered yet, by their numbers.
    pub(super) unanswered: HashMap<u64, Unanswered>,
    /// By their numbers; those that were never stopped are not there.
    pub(super) rings: HashMap<usize, RingState>,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum RingState {
    Stopped(Position),
    /// Its driver has written nonsense.
    Broken,
}

pub(super) struct Unanswered {
    /// Of its ring.
    pub(super) number: usize,
    pub(super) ring: Ring,
    pub(super) chain: Chain,
    /// What became of it while its ring was stopped.
    pub(super) meanwhile: Option<Meanwhile>,
}

pub(super) enum Meanwhile {
    Answered {
        id: RequestId,
        errno: i32,
        body: Vec<u8>,
    },
    /// It has no answer.
    Done,
    /// Its answer is lost; nothing was changed by it, so it can be run again.
    Lost,
}

/// Where a ring is: the next entries that are available and used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    available: u16,
    used: u16,
}

impl Position {
    pub(super) fn of(ring: &Ring) -> Self {
        let state = ring.get_ref();
        let queue = state.get_queue();
        Self {
            available: queue.next_avail(),
            used: queue.next_used(),
        }
    }
}

/// Why a request cannot be answered now.
pub(super) enum NotNow {
    Stopped,
    /// It was answered, or forgotten.
    Gone,
}

impl State {
    /// A request that is answered now. One whose ring was stopped stays, and what became of it is noted.
    pub(super) fn answer(
        &mut self,
        slot: u64,
        meanwhile: impl FnOnce() -> Meanwhile,
    ) -> Result<Unanswered, NotNow> {
        let found = self.unanswered.get_mut(&slot).ok_or(NotNow::Gone)?;
        if self.rings.contains_key(&found.number) {
            found.meanwhile = Some(meanwhile());
            return Err(NotNow::Stopped);
        }
        self.unanswered.remove(&slot).ok_or(NotNow::Gone)
    }

    pub(super) fn under_way(&self, number: usize) -> usize {
        let all = self.unanswered.values();
        all.filter(|found| found.number == number).count()
    }
}
