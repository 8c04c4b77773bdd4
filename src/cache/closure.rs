use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::{Notify, oneshot};

use super::{Cache, CacheError, Counter, store::Command};
use crate::{
    model::{Digest, Directory, SizeRule},
    remote::Urgency,
};

/// A closure with more entries than this is not asked for as a whole, where its parts can be had: what nobody looks at may be
/// most of it.
const HUGE: u64 = 200_000;
/// Encoded directories that are written to the index at once, in bytes.
const BATCH: usize = 1 << 20;
/// Readers wait so long for a batch to be written.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A closure on its way. Whoever waits for a directory gets it as soon as it has arrived.
#[derive(Default)]
pub(super) struct ClosureFlight {
    /// The lock is held for a map operation only.
    state: Mutex<State>,
    /// Told when the last who waited has gone.
    abandoned: Notify,
}

#[derive(Default)]
struct State {
    /// How many use the flight.
    users: usize,
    waiters: HashMap<Digest, Vec<oneshot::Sender<Arc<Directory>>>>,
    /// How it ended. Nobody waits any more from then on.
    ended: Option<Result<(), CacheError>>,
}

impl ClosureFlight {
    /// `None` when the flight is over.
    fn wait(&self, digest: Digest) -> Option<oneshot::Receiver<Arc<Directory>>> {
        let mut state = self.state();
        if state.ended.is_some() {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        state.waiters.entry(digest).or_default().push(sender);
        Some(receiver)
    }

    /// Resolves when nobody waits.
    async fn abandoned(&self) {
        loop {
            let told = self.abandoned.notified();
            if self.state().users == 0 {
                return;
            }
            told.await;
        }
    }

    fn arrived(&self, digest: Digest, directory: &Arc<Directory>) {
        for waiter in self.state().waiters.remove(&digest).unwrap_or_default() {
            let _ = waiter.send(Arc::clone(directory));
        }
    }

    fn end(&self, result: Result<(), CacheError>) {
        let mut state = self.state();
        state.ended = Some(result);
        state.waiters.clear();
    }

    /// Why it failed, once it is over.
    fn failure(&self) -> Option<CacheError> {
        self.state().ended.clone().and_then(Result::err)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// A directory. `root` is the root of a closure that has it: stores may know closures by their roots only.
    ///
    /// # Errors
    /// When it is neither in the index nor to be had from a remote.
    pub async fn directory(
        self: &Arc<Self>,
        digest: Digest,
        root: Digest,
    ) -> Result<Arc<Directory>, CacheError> {
        if let Some(directory) = self.local_directory(digest).await? {
            return Ok(directory);
        }
        let closures = if digest == root {
            vec![root]
        } else if self.is_huge(root) {
            vec![digest]
        } else if self.closures().contains_key(&root) {
            // While the whole closure is on its way, nobody asks for a part of it.
            vec![root, digest]
        } else {
            vec![digest, root]
        };
        let mut failure = None;
        for closure in closures {
            // A second round, when the directory went by just before it was waited for and was not kept.
            for _ in 0..2 {
                match self.from_closure(digest, closure).await {
                    Ok(Some(directory)) => return Ok(directory),
                    // One that was just given up, because nobody waited for it, is begun again.
                    Ok(None) | Err(CacheError::Aborted) => {}
                    Err(error) => {
                        failure = Some(error);
                        break;
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| CacheError::IncompleteClosure {
            root,
            digest,
            remote: self.remote.address().to_owned(),
        }))
    }

    /// Returns when no closure is on its way any more, and what came of them is in the index. That one failed says nothing of a
    /// directory: stores may know closures by their roots only, so a part is asked for, and then the whole.
    pub async fn closures_end(&self) {
        let flights: Vec<_> = self.closures().values().cloned().collect();
        for flight in flights {
            // As long as somebody uses it, it is not given up.
            let _user = User::of(&flight);
            // Whatever comes, it is told when the flight ends.
            while let Some(waiter) = flight.wait(Digest::empty()) {
                let _ = waiter.await;
            }
        }
    }

    /// `None` when the flight ended without failing and the directory is not at hand.
    async fn from_closure(
        self: &Arc<Self>,
        digest: Digest,
        root: Digest,
    ) -> Result<Option<Arc<Directory>>, CacheError> {
        let user = self.start_closure(root);
        let flight = &user.0;
        if let Some(waiter) = flight.wait(digest) {
            if let Some(directory) = self.directory_at_hand(digest) {
                return Ok(Some(directory));
            }
            if let Ok(directory) = waiter.await {
                return Ok(Some(directory));
            }
        }
        if let Some(directory) = self.local_directory(digest).await? {
            return Ok(Some(directory));
        }
        flight.failure().map_or(Ok(None), Err)
    }

    fn start_closure(self: &Arc<Self>, root: Digest) -> User {
        let mut closures = self.closures();
        // One that has ended is taken off the table a moment later, and brings nothing any more.
        if let Some(flight) = closures.get(&root)
            && let Some(user) = User::of_running(flight)
        {
            return user;
        }
        let flight = Arc::new(ClosureFlight::default());
        let user = User::of(&flight);
        closures.insert(root, Arc::clone(&flight));
        let landing = Landing {
            cache: Arc::clone(self),
            flight: Arc::clone(&flight),
            root,
        };
        tokio::spawn(async move {
            let mut result = landing.cache.fetch_closure(root, &landing.flight, 0).await;
            for attempt in 1..=landing.cache.remote.len() {
                if !result.as_ref().is_err_and(CacheError::is_damage) {
                    break;
                }
                // Damaged on its way, perhaps: once more, then from the next.
                let skip = attempt - 1;
                result = landing
                    .cache
                    .fetch_closure(root, &landing.flight, skip)
                    .await;
            }
            landing.flight.end(result);
        });
        user
    }

    async fn fetch_closure(
        self: &Arc<Self>,
        root: Digest,
        flight: &ClosureFlight,
        skip: usize,
    ) -> Result<(), CacheError> {
        let mut batch = Vec::new();
        let taken = self.take_closure(root, flight, skip, &mut batch).await;
        // Also of one that has broken off: it was shown.
        self.write_directories(batch).await;
        taken
    }

    /// `batch` is what was not written yet.
    async fn take_closure(
        self: &Arc<Self>,
        root: Digest,
        flight: &ClosureFlight,
        skip: usize,
        batch: &mut Vec<(Digest, Bytes)>,
    ) -> Result<(), CacheError> {
        let remote = || self.remote.address().to_owned();
        // Once it comes, the rest is taken too: whoever was shown a directory asks for those in it.
        let records = tokio::select! {
            records = self.remote.closure(root, skip) => records,
            () = flight.abandoned() => return Err(CacheError::Aborted),
        };
        let mut records = records.map_err(|error| self.failed(root, error))?;
        // Only what something before it refers to may come.
        let mut expected = HashSet::from([root]);
        let mut seen = HashSet::new();
        let mut batch_bytes = 0;
        while let Some(record) = records.next().await {
            let bytes = record?;
            let digest = Digest::of(&bytes);
            if !expected.contains(&digest) {
                self.stats().add(Counter::RejectedObjects, 1);
                return Err(CacheError::UnexpectedDirectory {
                    root,
                    digest,
                    remote: remote(),
                });
            }
            if !seen.insert(digest) {
                continue;
            }
            let directory = Directory::decode(&bytes[..]).map_err(|cause| {
                self.stats().add(Counter::RejectedObjects, 1);
                CacheError::BadDirectory {
                    digest,
                    remote: remote(),
                    cause,
                }
            })?;
            let mut has_directories = false;
            for (digest, _) in directory.directories() {
                expected.insert(digest);
                has_directories = true;
            }
            let is_cut = digest == root
                && has_directories
                && directory.size(SizeRule::Protocol) > HUGE
                && self.remote.has_parts_of_closures();
            if is_cut {
                self.huge().insert(root);
            }
            let directory = Arc::new(directory);
            self.memory.keep_directory(digest, &directory);
            flight.arrived(digest, &directory);
            self.stats().add(Counter::DirectoryMisses, 1);
            batch_bytes += bytes.len();
            batch.push((digest, bytes));
            if is_cut {
                tracing::debug!(%root, "a huge tree; its directories are asked for as they are looked at");
                return Ok(());
            }
            if batch_bytes >= BATCH {
                let bytes = batch_bytes as u64;
                self.throttle
                    .pass(bytes, &Urgency::reader(), self.opened)
                    .await;
                self.write_directories(std::mem::take(batch)).await;
                batch_bytes = 0;
            }
        }
        let missing = expected
            .difference(&seen)
            .find(|digest| **digest != Digest::empty());
        match missing {
            Some(digest) => Err(CacheError::IncompleteClosure {
                root,
                digest: *digest,
                remote: remote(),
            }),
            None => Ok(()),
        }
    }

    /// Returns when they can be found in the index, so that no more of a closure is in memory than a batch. Where the writer is stuck they are
    /// left out: readers wait for them.
    async fn write_directories(&self, directories: Vec<(Digest, Bytes)>) {
        if directories.is_empty() {
            return;
        }
        let (done, written) = oneshot::channel();
        let waits = self.store.keeps;
        let limit = if waits { u64::MAX } else { self.most_queued() };
        let bytes = directories.iter().map(|(_, encoded)| encoded.len() as u64);
        let Some(queued) = self.store.backlog.add(bytes.sum(), limit) else {
            return;
        };
        self.send(Command::Directories(directories, queued, done));
        if waits {
            let _ = written.await;
        } else {
            let _ = tokio::time::timeout(LONGEST_WAIT, written).await;
        }
    }

    /// Whether a closure was found to be one that is not taken as a whole.
    fn is_huge(&self, root: Digest) -> bool {
        self.huge().contains(&root)
    }

    fn huge(&self) -> std::sync::MutexGuard<'_, HashSet<Digest>> {
        self.huge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn closures(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<ClosureFlight>>> {
        self.closures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody who uses a flight.
struct User(Arc<ClosureFlight>);

impl User {
    fn of(flight: &Arc<ClosureFlight>) -> Self {
        flight.state().users += 1;
        Self(Arc::clone(flight))
    }

    /// `None` when the flight has ended.
    fn of_running(flight: &Arc<ClosureFlight>) -> Option<Self> {
        let mut state = flight.state();
        if state.ended.is_some() {
            return None;
        }
        state.users += 1;
        drop(state);
        Some(Self(Arc::clone(flight)))
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.users -= 1;
        if state.users == 0 {
            self.0.abandoned.notify_waiters();
        }
    }
}

/// Takes a flight off the table, also when its task panics.
struct Landing {
    cache: Arc<Cache>,
    flight: Arc<ClosureFlight>,
    root: Digest,
}

impl Drop for Landing {
    fn drop(&mut self) {
        {
            let mut closures = self.cache.closures();
            let current = closures.get(&self.root);
            if current.is_some_and(|current| Arc::ptr_eq(current, &self.flight)) {
                closures.remove(&self.root);
            }
        }
        if self.flight.state().ended.is_none() {
            self.flight.end(Err(CacheError::Aborted));
        }
    }
}
