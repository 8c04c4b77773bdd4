use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use futures::{
    StreamExt,
    future::BoxFuture,
    stream::{FuturesUnordered, Stream},
};

use super::{
    Fault, Object, Outage, Patience, Policy, Remote, RemoteError, Urgency,
    chain::{Chain, Member},
    probe,
};
use crate::model::Digest;

/// A remote that is overloaded is waited for this many times as long as one that is away: it is not out of order.
const OVERLOAD_PATIENCE: u32 = 4;
/// A remote that asked for a longer pause than this is asked after the others.
const SHORT_PAUSE: Duration = Duration::from_millis(20);
/// A wait for a remote to come back looks again after this time, in case it missed the news.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Who waits longer than this is told for what, in the log.
const TELL_AFTER: Duration = Duration::from_secs(5);

/// What remotes are asked, and on whose behalf.
pub(super) struct Question<'a, T> {
    pub(super) object: Object,
    /// What decides which member of a group is asked first.
    pub(super) key: Option<Digest>,
    pub(super) patience: Patience,
    /// Bytes of the answer, where known.
    pub(super) bytes: u64,
    /// Remotes to pass over.
    pub(super) skip: usize,
    /// Whether it is remembered for a while that nobody has it.
    pub(super) remembered: bool,
    /// Where it may be that no reader waits.
    pub(super) urgency: Option<&'a Urgency>,
    pub(super) ask: &'a Ask<T>,
}

impl<'a, T> Question<'a, T> {
    pub(super) fn new(object: Object, ask: &'a Ask<T>) -> Self {
        let key = match object {
            Object::Blob(digest) | Object::Chunk(digest) | Object::Directory(digest) => {
                Some(digest)
            }
            Object::Root(_)
            | Object::Roots
            | Object::StorePath(_)
            | Object::StorePaths
            | Object::Store => None,
        };
        Self {
            object,
            // Names are asked for again each time: they change.
            remembered: key.is_some(),
            key,
            patience: Patience::Policy,
            bytes: 0,
            skip: 0,
            urgency: None,
            ask,
        }
    }
}

/// Asks one remote.
pub(super) type Ask<T> =
    dyn Fn(Arc<dyn Remote>) -> BoxFuture<'static, Result<T, RemoteError>> + Send + Sync;

impl Chain {
    /// Asks remotes until one gives a proper answer, or patience ends.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: Question<'_, T>,
    ) -> Result<T, RemoteError> {
        if self.0.offline {
            let object = question.object;
            return Err(RemoteError::Offline { object });
        }
        let remembered = question.remembered && question.skip == 0;
        if remembered && self.0.missing.contains_key(&question.object) {
            return Err(self.not_found(question.object));
        }
        let (started, mut is_first) = match question.patience {
            Patience::Since(started) => (started, false),
            Patience::Once | Patience::Policy => (Instant::now(), true),
        };
        let mut delays = delays();
        let mut told = false;
        loop {
            let begun = Instant::now();
            let error = match self.round(&question).await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            let fault = error.fault().filter(|_| error.is_transient());
            let Some(fault) = fault else {
                if remembered && error.is_not_found() {
                    self.0.missing.insert(question.object, ());
                }
                return Err(error);
            };
            let until = self.give_up_at(started, fault);
            let now = Instant::now();
            if let Fault::Shed(pause) = fault
                && let Some(urgency) = question.urgency.filter(|urgency| !urgency.is_reader())
                && now < until
            {
                // Turned away for the sake of readers: later, or as soon as a reader waits for it too.
                stand_back(urgency, pause.or_else(|| delays.next())).await;
                continue;
            }
            // Of a round that would end after the time is over, if nothing comes for as long again, half may be over it. A first one may have
            // broken off after it had brought something for long: it is tried again.
            let silent = match std::mem::take(&mut is_first) {
                true => Duration::ZERO,
                false => (now - begun).min(self.0.policy.idle()),
            };
            if question.patience == Patience::Once || now + silent / 2 >= until {
                return Err(error);
            }
            // A person who waits for long wants to know for what.
            if !told && now > started + TELL_AFTER {
                told = true;
                tracing::info!(%error, "no answer yet; asking again");
            }
            let all_skipped = {
                let mut members = self.0.groups.iter().flatten();
                members.all(|member| member.health.skipped().is_some())
            };
            let left = until - now;
            if all_skipped {
                // Whoever watches the remotes tells when one is back.
                let back = self.0.back.notified();
                let _ = tokio::time::timeout(left.min(LOOK_AGAIN), back).await;
            } else {
                let delay = delays.next().unwrap_or(LOOK_AGAIN);
                tokio::time::sleep(delay.min(left)).await;
            }
        }
    }

    fn not_found(&self, object: Object) -> RemoteError {
        RemoteError::NotFound {
            remote: Arc::clone(&self.0.address),
            object,
        }
    }

    /// Until when an object is asked for.
    fn give_up_at(&self, started: Instant, fault: Fault) -> Instant {
        let Policy {
            timeout, outage, ..
        } = self.0.policy;
        match (fault, outage) {
            (Fault::Overload(_) | Fault::Shed(_), Outage::Fail) => {
                started + timeout * OVERLOAD_PATIENCE
            }
            (Fault::Overload(_) | Fault::Shed(_), Outage::Wait(time)) => {
                started + time.max(timeout * OVERLOAD_PATIENCE)
            }
            // As long as the remotes are away, and not anew for each reader: the kernel asks again for what it has read ahead.
            (Fault::Unavailable, Outage::Wait(time)) => self.answered_last(started) + time,
            (_, Outage::Wait(time)) => started + time,
            // The remote has waited for them already.
            (Fault::Upstream, Outage::Fail) => started,
            (Fault::Pending | Fault::Refused, Outage::Fail) => started + timeout,
            (Fault::Unavailable, Outage::Fail) => {
                // A remote that has been away for the whole time-out is not waited for once more by each reader.
                self.answered_last(started) + timeout
            }
        }
    }

    /// When a remote was last found to answer, and no later than `now`.
    fn answered_last(&self, now: Instant) -> Instant {
        let members = self.0.groups.iter().flatten();
        // Those that answer do not have it.
        let mut last = None;
        for member in members.filter(|member| member.health.is_failing()) {
            match member.health.away_since() {
                Some(since) => last = last.max(Some(since)),
                // It may be back in a moment.
                None => return now,
            }
        }
        last.unwrap_or(now).min(now)
    }

    /// Asks each remote at most once, the next when one has failed or takes too long.
    async fn round<T: Send + 'static>(&self, question: &Question<'_, T>) -> Result<T, RemoteError> {
        let mut next = self.order(question.key).into_iter();
        for _ in 0..question.skip {
            next.next();
        }
        let mut running = FuturesUnordered::new();
        let mut worst: Option<RemoteError> = None;
        loop {
            if running.is_empty() {
                let Some(member) = next.next() else {
                    break;
                };
                running.push(self.attempt(member, question));
            }
            let hedge = async {
                match self.0.policy.hedge {
                    Some(delay) if next.len() > 0 => tokio::time::sleep(delay).await,
                    _ => std::future::pending().await,
                }
            };
            let result = tokio::select! {
                result = running.next() => result,
                () = hedge => {
                    if let Some(member) = next.next() {
                        running.push(self.attempt(member, question));
                    }
                    continue;
                }
            };
            match result {
                Some(Ok(value)) => return Ok(value),
                Some(Err(error)) => {
                    if let RemoteError::Corrupt { .. } = error {
                        tracing::warn!(%error, "another remote is asked, if there is one");
                    }
                    // What may go well later tells more than "damaged", and that more than "not found".
                    let rank = |error: &RemoteError| match error {
                        RemoteError::NotFound { .. } => 0,
                        error if error.is_transient() => 2,
                        _ => 1,
                    };
                    if worst
                        .as_ref()
                        .is_none_or(|worst| rank(worst) < rank(&error))
                    {
                        worst = Some(error);
                    }
                    if let Some(member) = next.next() {
                        running.push(self.attempt(member, question));
                    }
                }
                None => {}
            }
        }
        match worst {
            Some(error) if !error.is_not_found() => Err(error),
            _ => Err(self.not_found(question.object.clone())),
        }
    }

    fn order(&self, key: Option<Digest>) -> Vec<&Arc<Member>> {
        let mut order = Vec::new();
        for group in &self.0.groups {
            let mut members: Vec<_> = group.iter().collect();
            if let Some(key) = key
                && members.len() > 1
            {
                members.sort_by_cached_key(|member| score(member.remote.address(), key));
            }
            order.extend(members);
        }
        // Whoever asked to be left alone comes last.
        let now = Instant::now();
        order.sort_by_key(|member| member.health.pause(now) > SHORT_PAUSE);
        order
    }

    /// Asks one remote once, with a deadline, and notes how it went.
    pub(super) async fn attempt<T: Send + 'static>(
        &self,
        member: &Arc<Member>,
        question: &Question<'_, T>,
    ) -> Result<T, RemoteError> {
        let failed = |cause: String| RemoteError::Read {
            remote: member.remote.address().into(),
            object: question.object.clone(),
            fault: Fault::Unavailable,
            cause: Arc::new(std::io::Error::other(cause)),
        };
        if let Some(reason) = member.health.skipped() {
            return Err(failed(reason.to_string()));
        }
        let pause = member.health.pause(Instant::now());
        // A timer rounds up to a millisecond, which is longer than many a request takes.
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let deadline = self.0.policy.deadline(question.bytes);
        let result =
            tokio::time::timeout(deadline, (question.ask)(Arc::clone(&member.remote))).await;
        let result = result.unwrap_or_else(|_| Err(failed(format!("no answer in {deadline:?}"))));
        let now = Instant::now();
        match result.as_ref().err().and_then(RemoteError::fault) {
            None | Some(Fault::Refused | Fault::Upstream | Fault::Pending | Fault::Shed(_)) => {
                member.health.answered(now);
            }
            Some(Fault::Overload(pause)) => member.health.overloaded(now, pause),
            Some(Fault::Unavailable) => {
                let reason = match &result {
                    Err(RemoteError::Read { cause, .. }) => cause.to_string(),
                    _ => String::new(),
                };
                if member.health.failed(now, &reason) {
                    probe::start(member, &self.0.back, self.0.policy.idle());
                }
            }
        }
        result
    }
}

/// Waits until an overloaded remote may be asked again, or a reader waits.
async fn stand_back(urgency: &Urgency, pause: Option<Duration>) {
    const LOOK: Duration = Duration::from_millis(10);
    let pause = pause.unwrap_or(LOOK);
    let until = Instant::now() + pause.clamp(LOOK, Duration::from_secs(5));
    while Instant::now() < until && !urgency.is_reader() {
        tokio::time::sleep(LOOK).await;
    }
}

/// Rendezvous hashing: each member scores each object, and the best score is asked first.
fn score(member: &str, key: Digest) -> std::cmp::Reverse<Digest> {
    static SEED: OnceLock<[u8; 32]> = OnceLock::new();
    let seed = SEED.get_or_init(|| blake3::derive_key("castore 2026 rendezvous", b""));
    let mut hasher = blake3::Hasher::new_keyed(seed);
    hasher.update(member.as_bytes());
    hasher.update(key.as_bytes());
    std::cmp::Reverse(hasher.finalize().into())
}

/// 50 ms, doubled up to 2 s, with jitter: many clients of one remote must not come back at the same moment.
pub(super) fn delays() -> impl Iterator<Item = Duration> + Send {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .without_max_times()
        .build()
}

/// The items of a stream, and an error where none comes for too long.
pub(super) fn within<T: Send + 'static>(
    stream: impl Stream<Item = Result<T, RemoteError>> + Send + Unpin + 'static,
    idle: Duration,
    remote: Arc<str>,
    object: Object,
) -> futures::stream::BoxStream<'static, Result<T, RemoteError>> {
    futures::stream::unfold(Some(stream), move |stream| {
        let (remote, object) = (Arc::clone(&remote), object.clone());
        async move {
            let mut stream = stream?;
            if let Ok(item) = tokio::time::timeout(idle, stream.next()).await {
                return item.map(|item| (item, Some(stream)));
            }
            let error = RemoteError::Read {
                remote,
                object,
                fault: Fault::Unavailable,
                cause: Arc::new(std::io::Error::other(format!("nothing came in {idle:?}"))),
            };
            Some((Err(error), None))
        }
    })
    .boxed()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// When a member goes away, only what it was first for moves.
        #[test]
        fn rendezvous_hashing_moves_little(keys in prop::collection::vec(any::<[u8; 32]>(), 1..50)) {
            let members = ["a", "b", "c", "d"];
            for key in keys {
                let key = Digest::try_from(&key[..]).unwrap();
                let first = |members: &[&str]| {
                    members.iter().min_by_key(|member| score(member, key)).map(ToString::to_string)
                };
                let before = first(&members);
                let after = first(&members[..3]);
                prop_assert!(before == after || before.as_deref() == Some("d"));
            }
        }
    }

    #[test]
    fn delays_grow_and_stay_bounded() {
        let delays: Vec<_> = delays().take(20).collect();
        assert!(delays[0] < Duration::from_millis(150));
        assert!(
            delays[10..]
                .iter()
                .all(|delay| *delay >= Duration::from_secs(2))
        );
        assert!(delays.iter().all(|delay| *delay <= Duration::from_secs(4)));
    }
}
