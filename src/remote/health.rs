use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

/// A remote is skipped after so many failures in a row.
const FAILURES: u32 = 3;
/// A failure is not in a row with one before that is older than this.
const ROW: Duration = Duration::from_secs(60);
/// An overloaded remote that does not say for how long is left alone for this time, twice as long each time …
const PAUSE: Duration = Duration::from_millis(50);
/// … up to this.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The most that it can ask for.
pub(super) const MAX_ASKED: Duration = Duration::from_secs(60);

/// What is known of a remote's state: a circuit breaker, and pauses that it asked for.
#[derive(Debug, Default)]
pub(super) struct Health {
    /// The lock is held for a look only.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// In a row.
    failures: u32,
    /// When the first of those was.
    failing_since: Option<Instant>,
    last_failure: Option<Instant>,
    /// Since when the remote is skipped, until it is found to answer.
    open: Option<Instant>,
    reason: Option<Arc<str>>,
    paused_until: Option<Instant>,
    /// Overloads in a row.
    overloads: u32,
}

/// As `castore status` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteStatus {
    pub address: String,
    /// Skipped, because it does not answer.
    pub away: bool,
    /// Seconds since it last failed to answer for the first time, where it fails now.
    pub failing_for: Option<u64>,
    /// Why.
    pub reason: Option<String>,
}

impl Health {
    /// Why the remote is to be skipped now, if it is.
    pub(super) fn skipped(&self) -> Option<Arc<str>> {
        let state = self.state();
        state
            .open
            .map(|_| state.reason.clone().unwrap_or_else(|| "".into()))
    }

    /// Whether it has failed since it last answered.
    pub(super) fn is_failing(&self) -> bool {
        self.state().failures > 0
    }

    /// Since when it is skipped: then somebody watches it, and would know better. That it failed before says little: it may
    /// have been there in between.
    pub(super) fn away_since(&self) -> Option<Instant> {
        self.state().open
    }

    /// How long it wants to be left alone.
    pub(super) fn pause(&self, now: Instant) -> Duration {
        self.state()
            .paused_until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now))
    }

    /// Notes a proper answer, "not found" among them. True if it was skipped before. A pause that it has asked for goes
    /// on: the answer may be to what was asked before.
    pub(super) fn answered(&self, now: Instant) -> bool {
        let mut state = self.state();
        let was_open = state.open.is_some();
        let paused_until = state.paused_until.filter(|until| *until > now);
        *state = State {
            overloads: if paused_until.is_some() {
                state.overloads
            } else {
                0
            },
            paused_until,
            ..State::default()
        };
        was_open
    }

    /// Notes that there was no proper answer. True if it is skipped from now on and was not before.
    pub(super) fn failed(&self, now: Instant, reason: &str) -> bool {
        let mut state = self.state();
        let is_old = |last: Instant| now.saturating_duration_since(last) > ROW;
        if state.open.is_none() && state.last_failure.is_some_and(is_old) {
            state.failures = 0;
            state.failing_since = None;
        }
        state.last_failure = Some(now);
        state.failures = state.failures.saturating_add(1);
        state.failing_since.get_or_insert(now);
        state.reason = Some(reason.into());
        let opens = state.open.is_none() && state.failures >= FAILURES;
        if opens {
            state.open = Some(now);
        }
        opens
    }

    /// Notes that it is there and has too much to do, and for how long it wants to be left alone.
    pub(super) fn overloaded(&self, now: Instant, wants: Option<Duration>) {
        let mut state = self.state();
        let doubled = PAUSE.saturating_mul(1 << state.overloads.min(10));
        state.overloads = state.overloads.saturating_add(1);
        state.failures = 0;
        state.failing_since = None;
        state.open = None;
        let pause = wants.map_or(doubled.min(MAX_PAUSE), |wants| wants.min(MAX_ASKED));
        let until = now + pause;
        state.paused_until = Some(state.paused_until.map_or(until, |before| before.max(until)));
    }

    pub(super) fn status(&self, address: &str, now: Instant) -> RemoteStatus {
        let state = self.state();
        RemoteStatus {
            address: address.to_owned(),
            away: state.open.is_some(),
            failing_for: state
                .failing_since
                .map(|since| now.saturating_duration_since(since).as_secs()),
            reason: state.reason.as_deref().map(str::to_owned),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Event {
        Answered,
        Failed,
        Overloaded,
    }

    proptest! {
        /// Against a model: it is skipped after three failures in a row until an answer, and an overload is neither.
        #[test]
        fn it_opens_after_failures_in_a_row_only(
            events in prop::collection::vec(
                prop_oneof![Just(Event::Answered), Just(Event::Failed), Just(Event::Overloaded)],
                0..40,
            )
        ) {
            let health = Health::default();
            let now = Instant::now();
            let (mut row, mut open) = (0, false);
            for event in events {
                match event {
                    Event::Answered => {
                        prop_assert_eq!(health.answered(now), open);
                        (row, open) = (0, false);
                    }
                    Event::Failed => {
                        row += 1;
                        let opens = !open && row >= FAILURES;
                        prop_assert_eq!(health.failed(now, "why"), opens);
                        open |= opens;
                    }
                    Event::Overloaded => {
                        health.overloaded(now, None);
                        (row, open) = (0, false);
                        prop_assert!(health.pause(now) > Duration::ZERO);
                    }
                }
                prop_assert_eq!(health.skipped().is_some(), open);
                prop_assert_eq!(health.away_since().is_some(), open);
                prop_assert!(health.pause(now) <= MAX_PAUSE);
            }
        }
    }

    #[test]
    fn an_old_failure_does_not_count() {
        let health = Health::default();
        let now = Instant::now();
        health.failed(now, "why");
        health.failed(now, "why");
        let later = now + ROW + Duration::from_secs(1);
        assert!(!health.failed(later, "why"));
        assert!(!health.failed(later, "why"));
        assert!(health.failed(later, "why"));
        assert_eq!(health.away_since(), Some(later));
    }

    #[test]
    fn a_pause_is_as_long_as_the_remote_says() {
        let health = Health::default();
        let now = Instant::now();
        health.overloaded(now, Some(Duration::from_secs(2)));
        assert_eq!(health.pause(now), Duration::from_secs(2));
        assert_eq!(health.pause(now + Duration::from_secs(3)), Duration::ZERO);
        health.overloaded(now, Some(Duration::from_secs(3600)));
        assert_eq!(health.pause(now), MAX_ASKED);
    }
}
