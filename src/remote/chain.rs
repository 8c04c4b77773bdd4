use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use backon::{BackoffBuilder, ExponentialBuilder};
use bytes::Bytes;
use futures::{
    FutureExt, StreamExt,
    future::BoxFuture,
    stream::{FuturesUnordered, Stream},
};
use tokio::sync::Notify;

use super::{
    Closure, Fault, Object, Outage, PathInfo, Pieces, Policy, Remote, RemoteError, Urgency,
    health::{Health, RemoteStatus},
    probe,
};
use crate::model::{Digest, Manifest, Name, Node, OutputHash, StorePath};

/// A remote that is overloaded is waited for this many times as long as one that is away: it is not out of order.
const OVERLOAD_PATIENCE: u32 = 10;
/// A remote that asked for a longer pause than this is asked after the others.
const SHORT_PAUSE: Duration = Duration::from_millis(20);
/// A wait for a remote to come back looks again after this time, in case it missed the news.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// A closure that breaks off is asked for again so many times without a new directory.
const CLOSURE_ATTEMPTS: u32 = 5;
/// That nobody has an object is remembered for this time, so that many who ask for it ask the remotes once.
const MISSING_FOR: Duration = Duration::from_secs(2);
/// Objects of which that is remembered.
const MISSING: u64 = 100_000;
/// Bytes that are allowed for in the deadline of what has no announced size: manifests, closures.
const METADATA: u64 = 64 << 20;
/// Encoded directories of which a broken closure remembers that they went by.
type Seen = std::collections::HashSet<Digest>;

/// One or several remotes in order of preference: what one does not have, cannot give or gives damaged, the next one is
/// asked for. Requests have deadlines and are tried again while that can help; a remote that does not answer is skipped
/// until it does. Chunks that come out of a chain have been verified.
#[derive(Debug, Clone)]
pub struct Chain(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// In order of preference; the members of a group share the work.
    groups: Vec<Vec<Arc<Member>>>,
    address: Arc<str>,
    policy: Policy,
    offline: bool,
    /// What no remote had when it was last asked for.
    missing: moka::sync::Cache<Object, ()>,
    /// Told when a remote that was skipped answers again.
    back: Arc<Notify>,
}

/// A remote and its state.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) remote: Arc<dyn Remote>,
    pub(super) health: Health,
}

/// How long to go on when no remote gives a proper answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// Each remote is asked once.
    Once,
    /// As the policy says.
    Policy,
}

/// What remotes are asked, and on whose behalf.
struct Question<'a, T> {
    object: Object,
    /// What decides which member of a group is asked first.
    key: Option<Digest>,
    patience: Patience,
    /// Bytes of the answer, where known.
    bytes: u64,
    /// Remotes to pass over.
    skip: usize,
    /// Whether it is remembered for a while that nobody has it.
    remembered: bool,
    /// Where it may be that no reader waits.
    urgency: Option<&'a Urgency>,
    ask: &'a Ask<T>,
}

impl<'a, T> Question<'a, T> {
    fn new(object: Object, ask: &'a Ask<T>) -> Self {
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
type Ask<T> = dyn Fn(Arc<dyn Remote>) -> BoxFuture<'static, Result<T, RemoteError>> + Send + Sync;

impl Chain {
    /// Of remotes in order of preference.
    #[must_use]
    pub fn new(remotes: Vec<Arc<dyn Remote>>, policy: Policy) -> Self {
        Self::of_groups(
            remotes.into_iter().map(|remote| vec![remote]).collect(),
            policy,
        )
    }

    /// Of groups in order of preference. Within a group, each object has an order of its own, by rendezvous hashing: so
    /// the members share the work, and when one goes away only its share moves.
    #[must_use]
    pub fn of_groups(groups: Vec<Vec<Arc<dyn Remote>>>, policy: Policy) -> Self {
        Self::build(groups, policy, false)
    }

    /// One that asks nobody. The addresses are those of the remotes that would be asked: names were kept under them.
    #[must_use]
    pub fn offline(groups: Vec<Vec<Arc<dyn Remote>>>) -> Self {
        Self::build(groups, Policy::default(), true)
    }

    fn build(groups: Vec<Vec<Arc<dyn Remote>>>, policy: Policy, offline: bool) -> Self {
        let addresses: Vec<_> = groups
            .iter()
            .flatten()
            .map(|remote| remote.address())
            .collect();
        let address = addresses.join(", ").into();
        let member = |remote| {
            Arc::new(Member {
                remote,
                health: Health::default(),
            })
        };
        Self(Arc::new(Inner {
            groups: groups
                .into_iter()
                .map(|group| group.into_iter().map(member).collect())
                .collect(),
            address,
            policy,
            offline,
            missing: moka::sync::Cache::builder()
                .max_capacity(MISSING)
                .time_to_live(MISSING_FOR)
                .build(),
            back: Arc::default(),
        }))
    }

    /// How long a request may take that moves so many bytes.
    #[must_use]
    pub fn deadline(&self, bytes: u64) -> Duration {
        self.0.policy.deadline(bytes)
    }

    /// What messages call the remotes.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// How many remotes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.groups.iter().map(Vec::len).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it asks nobody.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.0.offline
    }

    /// Forgets what no remote had.
    pub fn forget_missing(&self) {
        self.0.missing.invalidate_all();
    }

    /// The state of each remote.
    #[must_use]
    pub fn status(&self) -> Vec<RemoteStatus> {
        let now = Instant::now();
        let members = self.0.groups.iter().flatten();
        members
            .map(|member| member.health.status(member.remote.address(), now))
            .collect()
    }

    /// A blob's chunk list, `None` when it is not split.
    ///
    /// # Errors
    /// `size` is what the blob's node says, where known; a manifest of another size is corrupt, and so is a known lie.
    pub async fn manifest(
        &self,
        blob: Digest,
        size: Option<u64>,
        is_known_lie: impl Fn(&Manifest) -> bool + Clone + Send + Sync + 'static,
    ) -> Result<Option<Manifest>, RemoteError> {
        let ask = move |remote: Arc<dyn Remote>| {
            let is_known_lie = is_known_lie.clone();
            async move {
                let manifest = match remote.manifest(blob).await {
                    Err(RemoteError::Corrupt { .. }) => remote.manifest(blob).await?,
                    manifest => manifest?,
                };
                match (&manifest, size) {
                    (Some(manifest), Some(size)) if manifest.size() != size => {
                        Err(RemoteError::Corrupt {
                            remote: remote.address().into(),
                            object: Object::Blob(blob),
                            cause: Arc::new(std::io::Error::other(format!(
                                "its chunks have {} bytes instead of {size}",
                                manifest.size()
                            ))),
                        })
                    }
                    (Some(manifest), _) if is_known_lie(manifest) => Err(RemoteError::Corrupt {
                        remote: remote.address().into(),
                        object: Object::Blob(blob),
                        cause: Arc::new(std::io::Error::other(
                            "its chunks were found to make up another blob",
                        )),
                    }),
                    _ => Ok(manifest),
                }
            }
            .boxed()
        };
        self.ask(Question {
            bytes: METADATA,
            ..Question::new(Object::Blob(blob), &ask)
        })
        .await
    }

    /// A chunk's bytes, verified.
    ///
    /// # Errors
    /// `size` in bytes, where known; other bytes are corrupt.
    pub async fn chunk(
        &self,
        chunk: Digest,
        size: Option<u64>,
        urgency: &Urgency,
    ) -> Result<Bytes, RemoteError> {
        let asked = urgency.clone();
        let ask = move |remote: Arc<dyn Remote>| {
            let urgency = asked.clone();
            async move {
                // Damaged on its way, perhaps: once more, before the next remote is asked.
                match verified(remote.as_ref(), chunk, size, &urgency).await {
                    Err(RemoteError::Corrupt { .. }) => {
                        verified(remote.as_ref(), chunk, size, &urgency).await
                    }
                    result => result,
                }
            }
            .boxed()
        };
        self.ask(Question {
            bytes: size.unwrap_or(16 << 20),
            urgency: Some(urgency),
            ..Question::new(Object::Chunk(chunk), &ask)
        })
        .await
    }

    /// All bytes of a blob as one stream, not verified; it may break off. `skip` remotes are passed over, because what
    /// they sent was wrong.
    ///
    /// # Errors
    /// When no remote begins to send.
    pub async fn pieces(
        &self,
        blob: Digest,
        size: Option<u64>,
        skip: usize,
    ) -> Result<Pieces, RemoteError> {
        let ask =
            move |remote: Arc<dyn Remote>| async move { remote.pieces(blob, size).await }.boxed();
        self.ask(Question {
            skip,
            bytes: size.unwrap_or(METADATA),
            // Under this digest there may be a chunk and no blob, and the other way round.
            remembered: false,
            ..Question::new(Object::Blob(blob), &ask)
        })
        .await
    }

    /// The directories at and below `root`, not verified, each once. Where one remote breaks off, it or the next goes on.
    /// `skip` remotes are passed over, because what they sent was wrong.
    ///
    /// # Errors
    /// When no remote has them.
    pub async fn closure(&self, root: Digest, skip: usize) -> Result<Closure, RemoteError> {
        let records = self.open_closure(root, skip).await?;
        let state = (self.clone(), records, Seen::new(), 0);
        let resumed = futures::stream::unfold(Some(state), move |state| async move {
            let (chain, mut records, mut seen, mut attempts) = state?;
            loop {
                match records.next().await {
                    None => return None,
                    Some(Ok(record)) => {
                        if seen.insert(Digest::of(&record)) {
                            return Some((Ok(record), Some((chain, records, seen, 0))));
                        }
                    }
                    Some(Err(error)) if error.is_transient() && attempts < CLOSURE_ATTEMPTS => {
                        attempts += 1;
                        tracing::info!(%error, "a tree's directories break off; asking again");
                        tokio::time::sleep(Duration::from_millis(50) * attempts).await;
                        match chain.open_closure(root, skip).await {
                            Ok(again) => records = again,
                            Err(error) => return Some((Err(error), None)),
                        }
                    }
                    Some(Err(error)) => return Some((Err(error), None)),
                }
            }
        });
        Ok(resumed.boxed())
    }

    async fn open_closure(&self, root: Digest, skip: usize) -> Result<Closure, RemoteError> {
        let idle = self.0.policy.timeout;
        let ask = move |remote: Arc<dyn Remote>| {
            async move {
                let address: Arc<str> = remote.address().into();
                let object = Object::Directory(root);
                let mut records = within(remote.closure(root).await?, idle, address, object);
                // That it is there shows at the first record.
                match records.next().await {
                    Some(Ok(first)) => {
                        Ok(futures::stream::iter([Ok(first)]).chain(records).boxed())
                    }
                    Some(Err(error)) => Err(error),
                    None => Err(RemoteError::NotFound {
                        remote: remote.address().into(),
                        object: Object::Directory(root),
                    }),
                }
            }
            .boxed()
        };
        self.ask(Question {
            skip,
            bytes: METADATA,
            ..Question::new(Object::Directory(root), &ask)
        })
        .await
    }

    /// The node that a name stands for.
    ///
    /// # Errors
    /// When no remote knows it, or none answers.
    pub async fn root(&self, name: &Name, patience: Patience) -> Result<Node, RemoteError> {
        let wanted = name.clone();
        let ask = move |remote: Arc<dyn Remote>| {
            let name = wanted.clone();
            async move { remote.root(&name).await }.boxed()
        };
        self.ask(Question {
            patience,
            ..Question::new(Object::Root(name.clone()), &ask)
        })
        .await
    }

    /// The names of all remotes that answer, sorted; one that several know is what the first says.
    ///
    /// # Errors
    /// When none answers.
    pub async fn roots(&self) -> Result<Vec<(Name, Node)>, RemoteError> {
        if self.0.offline {
            let object = Object::Roots;
            return Err(RemoteError::Offline { object });
        }
        let ask = |remote: Arc<dyn Remote>| async move { remote.roots().await }.boxed();
        let members = self.0.groups.iter().flatten();
        let question = Question::new(Object::Roots, &ask);
        let answers = members.map(|member| self.attempt(member, &question));
        let (mut all, mut failed, mut answered) = (BTreeMap::new(), None, false);
        for answer in futures::future::join_all(answers).await {
            match answer {
                Ok(roots) => {
                    answered = true;
                    for (name, node) in roots {
                        all.entry(name).or_insert(node);
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "no names from this remote");
                    failed = failed.or(Some(error));
                }
            }
        }
        match failed {
            Some(error) if !answered => Err(error),
            Some(_) | None => Ok(all.into_iter().collect()),
        }
    }

    /// What is known of a store path, which must be the one that is `expected`, where one is.
    ///
    /// # Errors
    /// When no remote knows it, or none answers.
    pub async fn path_info(
        &self,
        hash: OutputHash,
        expected: Option<StorePath>,
        patience: Patience,
    ) -> Result<PathInfo, RemoteError> {
        let ask = move |remote: Arc<dyn Remote>| {
            let expected = expected.clone();
            async move {
                let info = remote.path_info(hash).await?;
                match expected {
                    // Whoever has the hash of one path must not be shown another.
                    Some(expected) if expected != info.path => Err(RemoteError::NotFound {
                        remote: remote.address().into(),
                        object: Object::StorePath(hash),
                    }),
                    _ => Ok(info),
                }
            }
            .boxed()
        };
        self.ask(Question {
            patience,
            ..Question::new(Object::StorePath(hash), &ask)
        })
        .await
    }

    /// All store paths of the first remote that lists them.
    ///
    /// # Errors
    /// When none answers.
    pub async fn path_infos(&self) -> Result<Vec<PathInfo>, RemoteError> {
        let ask = |remote: Arc<dyn Remote>| async move { remote.path_infos().await }.boxed();
        self.ask(Question {
            bytes: METADATA,
            ..Question::new(Object::StorePaths, &ask)
        })
        .await
    }

    /// Asks remotes until one gives a proper answer, or patience ends.
    async fn ask<T: Send + 'static>(&self, question: Question<'_, T>) -> Result<T, RemoteError> {
        if self.0.offline {
            let object = question.object;
            return Err(RemoteError::Offline { object });
        }
        let remembered = question.remembered && question.skip == 0;
        if remembered && self.0.missing.contains_key(&question.object) {
            return Err(self.not_found(question.object));
        }
        let started = Instant::now();
        let mut delays = delays();
        loop {
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
            if question.patience == Patience::Once || now >= until {
                return Err(error);
            }
            tracing::debug!(%error, "asking again");
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
            (_, Outage::Wait(time)) => started + time,
            // The remote has waited for them already.
            (Fault::Upstream, Outage::Fail) => started,
            (Fault::Pending | Fault::Refused, Outage::Fail) => started + timeout,
            (Fault::Unavailable, Outage::Fail) => {
                // A remote that has been away for the whole time-out is not waited for once more by each reader.
                let members = self.0.groups.iter().flatten();
                let away = members.filter_map(|member| member.health.away_since());
                let last = away.max().unwrap_or(started);
                last.min(started) + timeout
            }
        }
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
    async fn attempt<T: Send + 'static>(
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

/// Fetches a chunk from one remote and compares it with its digest.
async fn verified(
    remote: &dyn Remote,
    chunk: Digest,
    size: Option<u64>,
    urgency: &Urgency,
) -> Result<Bytes, RemoteError> {
    let bytes = remote.chunk(chunk, size, urgency).await?;
    verify(chunk, bytes)
        .await
        .map_err(|cause| RemoteError::Corrupt {
            remote: remote.address().into(),
            object: Object::Chunk(chunk),
            cause: Arc::new(cause),
        })
}

/// Hashing more bytes than this goes to another thread: it would hold up what else runs on this one.
const HASH_HERE: usize = 1 << 20;

async fn verify(digest: Digest, bytes: Bytes) -> Result<Bytes, std::io::Error> {
    let actual = if bytes.len() > HASH_HERE {
        let bytes = bytes.clone();
        tokio::task::spawn_blocking(move || Digest::of(&bytes)).await?
    } else {
        Digest::of(&bytes)
    };
    if actual == digest {
        Ok(bytes)
    } else {
        Err(std::io::Error::other(format!(
            "its bytes have the digest {actual}"
        )))
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
