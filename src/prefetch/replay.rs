use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use super::{
    fill::Spare,
    kind::Kind,
    profile::{Entry, Profile},
    scheduler::{Job, Scheduler, Source},
};
use crate::{
    cache::Cache,
    model::{Digest, Name, Node, StorePath},
};

/// Bytes that are fetched beyond what readers have come to, at the most; and before one has read anything.
const LEAD: u64 = 256 << 20;
const FIRST_LEAD: u64 = 64 << 20;
/// Jobs that wait at once.
const WAITING: usize = 256;
/// A file that is another one by now is fetched as a whole up to this size, in bytes; of a larger one, what was read of the old.
const WHOLE: u64 = 1 << 20;
/// How often it is looked whether there is room for more.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// After so many files …
const JUDGED: usize = 64;
/// … one in so many must have been in the profile, or it is given up.
const MATCHING: usize = 4;

/// What a mount shows.
#[derive(Debug, Clone)]
pub enum Tree {
    Directory(Digest),
    /// A single file, with its size in bytes.
    File(Digest, u64),
    Names,
    StorePaths,
}

impl Tree {
    /// As profiles name it.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Directory(digest) | Self::File(digest, _) => digest.to_string(),
            Self::Names => "all".to_owned(),
            Self::StorePaths => "nix".to_owned(),
        }
    }
}

/// Fetches what a profile says, in its order, ahead of those who read.
#[derive(Debug, Default)]
pub(super) struct Replay {
    /// The lock is held for a look only.
    state: Mutex<State>,
    stopped: AtomicBool,
    /// Whether it goes on, so that reads matter to it.
    runs: AtomicBool,
    /// Told when a reader has come further, and when it is stopped.
    advanced: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// Where each file is in the profile: bytes of all entries up to its first.
    places: HashMap<Digest, u64>,
    /// The furthest of the files that were read.
    reached: u64,
    /// Files that were read, each once.
    files: HashSet<Digest>,
    /// How many of those are in the profile.
    matched: usize,
}

impl Replay {
    /// A file is read.
    pub(super) fn read(&self, file: Digest, scheduler: &Scheduler) {
        if !self.runs.load(Ordering::Relaxed) {
            return;
        }
        let mut state = self.state();
        if !state.files.insert(file) {
            return;
        }
        if let Some(place) = state.places.get(&file).copied() {
            state.matched += 1;
            if place > state.reached || state.matched == 1 {
                state.reached = state.reached.max(place);
                self.advanced.notify_one();
            }
        }
        let (all, matched) = (state.files.len(), state.matched);
        drop(state);
        if all >= JUDGED && matched * MATCHING < all {
            tracing::debug!(matched, all, "the profile does not match");
            self.stop(scheduler);
        }
    }

    pub(super) fn stop(&self, scheduler: &Scheduler) {
        self.stopped.store(true, Ordering::Relaxed);
        self.advanced.notify_one();
        scheduler.cancel(|source| *source == Source::Profile);
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// How far it may go, in bytes of the profile.
    fn until(&self) -> u64 {
        let state = self.state();
        match state.matched {
            0 => FIRST_LEAD,
            _ => state.reached.saturating_add(LEAD),
        }
    }

    /// Goes through a profile to its end, or until it is stopped. What it fetches may take the place of what was last used
    /// before `recorded_at`, in seconds since 1970, and of nothing else.
    pub(super) async fn run(
        &self,
        cache: &Arc<Cache>,
        scheduler: &Scheduler,
        tree: &Tree,
        profile: &Profile,
        recorded_at: u64,
    ) {
        {
            let mut state = self.state();
            let mut bytes = 0_u64;
            for entry in &profile.entries {
                bytes = bytes.saturating_add(entry.range.end - entry.range.start);
                state.places.entry(entry.digest).or_insert(bytes);
            }
        }
        self.runs.store(true, Ordering::Relaxed);
        let (mut walked, mut spare) = (Walked::default(), Spare::new(recorded_at));
        let mut come_to = 0_u64;
        for entry in &profile.entries {
            while come_to > self.until() && !self.is_stopped() {
                self.advanced.notified().await;
            }
            while scheduler.waiting(Kind::Profile) >= WAITING && !self.is_stopped() {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            if self.is_stopped() {
                break;
            }
            come_to = come_to.saturating_add(entry.range.end - entry.range.start);
            // What is not there any more, or cannot be had, is left out.
            let Some((digest, size)) = walked.find(cache, tree, &entry.path).await else {
                continue;
            };
            self.state().places.entry(digest).or_insert(come_to);
            let Some(range) = wanted(entry, digest, size) else {
                continue;
            };
            let missing = missing(cache, digest, size, &range);
            let outstanding = || scheduler.outstanding(Kind::Profile, Source::Profile);
            // What there is no room for is left out, too.
            if missing == 0 || !spare.take(cache, missing, outstanding).await {
                continue;
            }
            if self.is_stopped() {
                break;
            }
            let job = Job::File {
                digest,
                size,
                range,
            };
            scheduler.push(Kind::Profile, Source::Profile, job);
        }
        // It can be stopped until all that it wanted has been begun.
        while scheduler.wants(Kind::Profile, Source::Profile) && !self.is_stopped() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.runs.store(false, Ordering::Relaxed);
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of a part of a file that are not here, as far as can be said at once.
fn missing(cache: &Cache, digest: Digest, size: u64, range: &Range<u64>) -> u64 {
    let Some(blob) = cache.blob_at_hand(digest, size) else {
        return range.end - range.start;
    };
    let slices = blob.manifest().slices(range.start, range.end - range.start);
    let missing = slices.filter(|slice| !cache.is_near(&blob, slice.index));
    missing.map(|slice| slice.len).sum()
}

/// The bytes to fetch of a file, which may be another one than the profile's.
fn wanted(entry: &Entry, digest: Digest, size: u64) -> Option<Range<u64>> {
    let range = if digest == entry.digest {
        entry.range.clone()
    } else if size <= WHOLE || entry.range.end == entry.size && entry.range.start == 0 {
        0..size
    } else {
        entry.range.start..entry.range.end.min(size)
    };
    (!range.is_empty()).then_some(range)
}

/// The directory that was looked at last: the next path is often in it, too.
#[derive(Default)]
struct Walked {
    path: Vec<u8>,
    /// Digest and closure.
    directory: Option<(Digest, Digest)>,
}

impl Walked {
    /// The file at a path: its digest and size.
    async fn find(
        &mut self,
        cache: &Arc<Cache>,
        tree: &Tree,
        path: &[u8],
    ) -> Option<(Digest, u64)> {
        let split = path.iter().rposition(|byte| *byte == b'/');
        let (above, name) = match split {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&path[..0], path),
        };
        if above.is_empty() && !matches!(tree, Tree::Directory(_)) {
            return match node_at(cache, tree, path).await? {
                (Node::File { digest, size, .. }, _) if size > 0 => Some((digest, size)),
                _ => None,
            };
        }
        let (directory, closure) = match self.directory {
            Some(known) if self.path == above => known,
            _ => {
                let found = directory_at(cache, tree, above).await?;
                above.clone_into(&mut self.path);
                *self.directory.insert(found)
            }
        };
        let directory = cache.directory(directory, closure).await.ok()?;
        match directory.get(name)? {
            Node::File { digest, size, .. } if *size > 0 => Some((*digest, *size)),
            Node::File { .. } | Node::Directory { .. } | Node::Symlink { .. } => None,
        }
    }
}

/// The node at a path, and the root of a closure that has it. No path is the tree's root, or none where that is made of names.
pub async fn node_at(cache: &Arc<Cache>, tree: &Tree, path: &[u8]) -> Option<(Node, Digest)> {
    let (above, name) = match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    };
    if let Tree::File(digest, size) = *tree {
        let node = Node::File {
            digest,
            size,
            executable: false,
        };
        return above.is_empty().then_some((node, Digest::empty()));
    }
    if path.is_empty() {
        let (digest, closure) = directory_at(cache, tree, path).await?;
        return Some((Node::Directory { digest, size: 0 }, closure));
    }
    if above.is_empty() && !matches!(tree, Tree::Directory(_)) {
        let node = named(cache, tree, Name::new(name.to_vec()).ok()?).await?;
        let closure = match node {
            Node::Directory { digest, .. } => digest,
            Node::File { .. } | Node::Symlink { .. } => Digest::empty(),
        };
        return Some((node, closure));
    }
    let (digest, closure) = directory_at(cache, tree, above).await?;
    let found = cache.directory(digest, closure).await.ok()?;
    Some((found.get(name)?.clone(), closure))
}

/// What a name stands for where the root is made of names.
async fn named(cache: &Arc<Cache>, tree: &Tree, name: Name) -> Option<Node> {
    match tree {
        Tree::StorePaths => {
            let path = StorePath::from_basename(name).ok()?;
            cache.store_path(&path).await.ok()
        }
        Tree::Names => cache.root(&name).await.ok(),
        Tree::Directory(_) | Tree::File(..) => None,
    }
}

async fn directory_at(cache: &Arc<Cache>, tree: &Tree, path: &[u8]) -> Option<(Digest, Digest)> {
    let mut names = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty());
    let mut at = match tree {
        Tree::Directory(digest) => *digest,
        Tree::File(..) => return None,
        Tree::Names | Tree::StorePaths => {
            let name = Name::new(names.next()?.to_vec()).ok()?;
            let Node::Directory { digest, .. } = named(cache, tree, name).await? else {
                return None;
            };
            digest
        }
    };
    let closure = at;
    for name in names {
        let directory = cache.directory(at, closure).await.ok()?;
        let Some(Node::Directory { digest, .. }) = directory.get(name) else {
            return None;
        };
        at = *digest;
    }
    Some((at, closure))
}
