use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use super::config::Bandwidth;
use crate::remote::Urgency;

/// How far ahead of its time something may be asked for: a timer is not exact.
const BURST: Duration = Duration::from_millis(20);
/// Who waits looks this often whether a reader waits for the same.
const LOOK: Duration = Duration::from_millis(10);

/// Keeps what is asked of remotes below a bandwidth. What readers wait for goes first, and what is fetched ahead makes up for it.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    all: Option<Line>,
    prefetch: Option<Line>,
}

#[derive(Debug)]
struct Line {
    /// Bytes a second.
    rate: u64,
    /// The lock is held for a look only.
    state: Mutex<Booked>,
}

/// Until when a line is taken; times are since any moment.
#[derive(Debug, Clone, Copy, Default)]
struct Booked {
    readers: Duration,
    all: Duration,
}

impl Booked {
    /// When `takes` may begin that a reader waits for.
    fn reader(&mut self, now: Duration, takes: Duration) -> Duration {
        let start = self.readers.max(now);
        self.readers = start.saturating_add(takes);
        self.all = self.all.max(now).saturating_add(takes);
        start
    }

    /// When to ask again for somebody whom nobody waits for; `None`: it may begin now, and has been booked.
    fn ahead(&mut self, now: Duration, takes: Duration) -> Option<Duration> {
        if self.all > now + BURST {
            return Some(self.all.saturating_sub(BURST));
        }
        self.all = self.all.max(now).saturating_add(takes);
        None
    }
}

impl Throttle {
    pub(super) fn new(bandwidth: Bandwidth) -> Self {
        let line = |rate: Option<u64>| {
            rate.map(|rate| Line {
                rate: rate.max(1),
                state: Mutex::default(),
            })
        };
        Self {
            all: line(bandwidth.all),
            prefetch: line(bandwidth.prefetch),
        }
    }

    /// Waits until `bytes` may be asked for.
    pub(super) async fn pass(&self, bytes: u64, urgency: &Urgency, opened: Instant) {
        for (line, is_for_all) in [(&self.prefetch, false), (&self.all, true)] {
            if let Some(line) = line {
                line.pass(bytes, urgency, opened, is_for_all).await;
            }
        }
    }
}

impl Line {
    async fn pass(&self, bytes: u64, urgency: &Urgency, opened: Instant, is_for_all: bool) {
        let takes = self.takes(bytes);
        loop {
            let now = opened.elapsed();
            if urgency.is_reader() {
                if is_for_all {
                    let start = self.booked().reader(now, takes);
                    tokio::time::sleep(start.saturating_sub(now)).await;
                }
                return;
            }
            let Some(until) = self.booked().ahead(now, takes) else {
                return;
            };
            tokio::time::sleep(
                until
                    .saturating_sub(now)
                    .clamp(Duration::from_millis(1), LOOK),
            )
            .await;
        }
    }

    /// For how long `bytes` take the line; they are what a manifest says, which may be anything.
    #[expect(clippy::cast_precision_loss, reason = "a time to wait")]
    fn takes(&self, bytes: u64) -> Duration {
        Duration::try_from_secs_f64(bytes as f64 / self.rate as f64).unwrap_or(Duration::MAX)
    }

    fn booked(&self) -> std::sync::MutexGuard<'_, Booked> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn readers_go_first_and_the_rest_makes_up_for_it() {
        let second = Duration::from_secs(1);
        let mut booked = Booked::default();
        assert_eq!(booked.ahead(second, second), None);
        // Booked until 2 s: what is ahead waits, a reader does not.
        assert_eq!(
            booked.ahead(second, second),
            Some((2 * second).saturating_sub(BURST))
        );
        assert_eq!(booked.reader(second, second), second);
        assert_eq!(booked.reader(second, second), 2 * second);
        assert_eq!(
            booked.ahead(2 * second, second),
            Some((4 * second).saturating_sub(BURST))
        );
    }

    #[test]
    fn no_size_is_too_large() {
        let line = Line {
            rate: 1,
            state: Mutex::default(),
        };
        let takes = line.takes(u64::MAX);
        let mut booked = Booked::default();
        assert_eq!(booked.ahead(Duration::ZERO, takes), None);
        for _ in 0..2 {
            booked.reader(Duration::from_secs(1), takes);
        }
        assert!(booked.ahead(Duration::from_secs(2), takes).is_some());
    }

    proptest! {
        /// In the long run, no more passes than the line takes.
        #[test]
        fn it_keeps_to_the_rate(
            steps in proptest::collection::vec((0..50_u64, 1..20_u64, any::<bool>()), 1..100),
        ) {
            let ms = Duration::from_millis;
            let (mut booked, mut now, mut taken) = (Booked::default(), ms(0), ms(0));
            for (pause, takes, is_reader) in steps {
                now += ms(pause);
                if is_reader {
                    prop_assert!(booked.reader(now, ms(takes)) >= now);
                    taken += ms(takes);
                } else if booked.ahead(now, ms(takes)).is_none() {
                    taken += ms(takes);
                    prop_assert!(taken <= now + BURST + ms(takes));
                }
                prop_assert!(booked.all >= taken && booked.all >= booked.readers);
            }
        }
    }
}
