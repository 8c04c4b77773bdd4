use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{FutureExt, StreamExt};
use tokio::sync::Notify;

use super::{
    Closure, Object, PathInfo, Pieces, Policy, Remote, RemoteError, Urgency,
    ask::{Question, within},
    health::{Health, RemoteStatus},
};
use crate::model::{Digest, Manifest, Name, Node, OutputHash, StorePath};

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
pub struct Chain(pub(super) Arc<Inner>);

#[derive(Debug)]
pub(super) struct Inner {
    /// In order of preference; the members of a group share the work.
    pub(super) groups: Vec<Vec<Arc<Member>>>,
    pub(super) address: Arc<str>,
    pub(super) policy: Policy,
    pub(super) offline: bool,
    /// What no remote had when it was last asked for.
    pub(super) missing: moka::sync::Cache<Object, ()>,
    /// Told when a remote that was skipped answers again.
    pub(super) back: Arc<Notify>,
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
    /// As the policy says of who has waited since then.
    Since(Instant),
}

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

    /// Whether the closure of each directory can be had, and not only those of roots.
    #[must_use]
    pub fn has_parts_of_closures(&self) -> bool {
        let mut members = self.0.groups.iter().flatten();
        members.all(|member| member.remote.has_parts_of_closures())
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
                        tracing::debug!(%error, "a tree's directories break off; asking again");
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

    /// The names of all remotes that answer, sorted, and whether all did; one that several know is what the first says.
    ///
    /// # Errors
    /// When none answers.
    pub async fn roots(&self) -> Result<(Vec<(Name, Node)>, bool), RemoteError> {
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
            failed => Ok((all.into_iter().collect(), failed.is_none())),
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
