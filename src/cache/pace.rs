use std::time::Duration;

/// For how long the best bandwidth that was seen counts, at least; it may count twice as long.
const BANDWIDTH_FOR: Duration = Duration::from_secs(5);
/// And the shortest latency: longer, since a line that is kept full shows a longer one.
const LATENCY_FOR: Duration = Duration::from_secs(60);
/// What a request costs beside its bytes, in bytes: so that many small ones count like a few large ones.
const REQUEST: u64 = 8 << 10;

/// How fast the remotes are: the most bytes a second and the shortest latency of late, as BBR takes them (Cardwell et al.,
/// ACM Queue 2016). Their product is what has to be under way for a full line. Knows no clock: times are since any moment.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// Bytes that have come so far.
    delivered: u64,
    /// In bytes a second.
    bandwidth: Extreme,
    /// In seconds, negated: the greatest of that is the shortest.
    latency: Extreme,
    /// The latency of late, in seconds.
    recent: Option<f64>,
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
pub struct Begun {
    at: Duration,
    delivered: u64,
}

impl Pace {
    /// What a request of so many bytes counts, in bytes.
    #[must_use]
    pub const fn cost(bytes: u64) -> u64 {
        bytes.saturating_add(REQUEST)
    }

    #[must_use]
    pub const fn begin(&self, now: Duration) -> Begun {
        Begun {
            at: now,
            delivered: self.delivered,
        }
    }

    /// A request has brought so many bytes.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub fn done(&mut self, begun: Begun, now: Duration, bytes: u64) {
        self.delivered = self.delivered.saturating_add(Self::cost(bytes));
        let took = now.saturating_sub(begun.at).as_secs_f64();
        if took > 0.0 {
            // What came for others in the same time came over the same line.
            let came = (self.delivered - begun.delivered) as f64;
            self.bandwidth.note(now, came / took, BANDWIDTH_FOR);
            self.latency.note(now, -took, LATENCY_FOR);
            self.recent = Some(
                self.recent
                    .map_or(took, |recent| recent + (took - recent) / 8.0),
            );
        }
    }

    /// In bytes a second; `None` before anything came.
    #[must_use]
    pub fn bandwidth(&self) -> Option<f64> {
        self.bandwidth.get()
    }

    /// Bytes that come in a time; `None` before anything came.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, and a cast saturates"
    )]
    pub fn bytes_in(&self, time: Duration) -> Option<u64> {
        Some((self.bandwidth.get()? * time.as_secs_f64()) as u64)
    }

    /// How long a request of so many bytes takes, about; `None` before anything came.
    #[must_use]
    pub fn time_of(&self, bytes: u64) -> Option<Duration> {
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let seconds = bytes as f64 / self.bandwidth()?;
        Some(self.latency()? + Duration::try_from_secs_f64(seconds).ok()?)
    }

    /// Of a request when little is under way; `None` before anything came.
    #[must_use]
    pub fn latency(&self) -> Option<Duration> {
        let seconds = -self.latency.get()?;
        Duration::try_from_secs_f64(seconds).ok()
    }

    /// Whether what came last took notably longer than need be: more is under way than the line takes.
    #[must_use]
    pub fn is_queueing(&self) -> bool {
        match (self.latency.get(), self.recent) {
            (Some(latency), Some(recent)) => recent > 1.25 * -latency,
            _ => false,
        }
    }

    /// Bytes, with the cost of requests, that are under way when the line is just full; 0 before anything came.
    #[must_use]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an estimate, and a cast saturates"
    )]
    pub fn product(&self) -> u64 {
        match (self.bandwidth.get(), self.latency.get()) {
            (Some(bandwidth), Some(latency)) => (bandwidth * -latency) as u64,
            _ => 0,
        }
    }
}

/// The greatest of what was noted of late.
#[derive(Debug, Clone, Default)]
struct Extreme {
    current: Option<f64>,
    /// That of the time before.
    previous: Option<f64>,
    since: Duration,
}

impl Extreme {
    fn note(&mut self, now: Duration, value: f64, for_time: Duration) {
        if now.saturating_sub(self.since) > for_time {
            self.previous = self.current.take();
            self.since = now;
        }
        if self.current.is_none_or(|current| current < value) {
            self.current = Some(value);
        }
    }

    fn get(&self) -> Option<f64> {
        match (self.current, self.previous) {
            (Some(a), Some(b)) => Some(a.max(b)),
            (a, b) => a.or(b),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[expect(clippy::cast_precision_loss, reason = "a time")]
    fn on_line(bytes: u64, rate: f64) -> Duration {
        Duration::from_secs_f64(Pace::cost(bytes) as f64 / rate)
    }

    const MS: Duration = Duration::from_millis(1);

    /// A line of `rate` bytes a second and `latency`, with `at_once` requests of `bytes` under way for `time`.
    fn run(
        pace: &mut Pace,
        start: Duration,
        rate: f64,
        latency: Duration,
        at_once: usize,
        bytes: u64,
        time: Duration,
    ) -> Duration {
        let mut now = start;
        let mut line_free = start;
        let mut under_way = std::collections::VecDeque::new();
        while now < start + time {
            while under_way.len() < at_once {
                line_free = line_free.max(now) + on_line(bytes, rate);
                under_way.push_back((pace.begin(now), line_free + latency));
            }
            let (begun, done) = under_way.pop_front().unwrap();
            now = done;
            pace.done(begun, now, bytes);
        }
        now
    }

    #[test]
    fn it_finds_a_line_whose_requests_it_lets_grow() {
        let mut pace = Pace::default();
        assert_eq!((pace.product(), pace.latency()), (0, None));
        let (rate, latency) = (100e6, 20 * MS);
        let mut now = MS;
        for _ in 0..20 {
            let at_once = (2 * pace.product() / Pace::cost(256 << 10)).max(1);
            let at_once = usize::try_from(at_once).unwrap();
            now = run(&mut pace, now, rate, latency, at_once, 256 << 10, 100 * MS);
        }
        let found = pace.bandwidth().unwrap();
        assert!((0.9 * rate..1.1 * rate).contains(&found), "{found}");
        assert!((20 * MS..25 * MS).contains(&pace.latency().unwrap()));
    }

    #[test]
    fn it_forgets_a_line_that_has_become_slower() {
        let mut pace = Pace::default();
        let now = run(&mut pace, MS, 100e6, 20 * MS, 20, 256 << 10, 1000 * MS);
        assert!(pace.bandwidth().unwrap() > 50e6);
        run(&mut pace, now, 5e6, 20 * MS, 4, 256 << 10, 15_000 * MS);
        assert!(pace.bandwidth().unwrap() < 6e6, "{:?}", pace.bandwidth());
    }

    proptest! {
        #[test]
        fn any_numbers_give_numbers(
            steps in proptest::collection::vec((0..u64::MAX, 0..u64::MAX, 0..u64::MAX), 1..50),
        ) {
            let mut pace = Pace::default();
            for (begun, now, bytes) in steps {
                let begun = pace.begin(Duration::from_nanos(begun));
                pace.done(begun, Duration::from_nanos(now), bytes);
                let _ = pace.product();
                prop_assert!(pace.bandwidth().is_none_or(f64::is_finite));
            }
        }
    }
}
