use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::{
    job::{Job, Source},
    kind::Kind,
    scheduler::Scheduler,
    tree::{Tree, node_at},
};
use crate::{
    cache::{Cache, Check},
    model::{Digest, Node},
};

/// Jobs that wait at once.
const WAITING: usize = 64;
/// How often it is looked whether there is room for more of them.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// What is still missing after all was asked for is asked for again after this time, doubled each time up to the other one.
const AGAIN: Duration = Duration::from_secs(10);
const AGAIN_AT_MOST: Duration = Duration::from_secs(600);
/// The room in the cache is looked at again after so many bytes.
const MEASURED: u64 = 16 << 20;
/// And after this time, where there was none.
const FULL: Duration = Duration::from_secs(5);

/// Room in the cache for what nobody has asked for yet: it must not take the place of what somebody has.
#[derive(Debug)]
pub(super) struct Spare {
    /// What was last used before that, in seconds since 1970, may go.
    older_than: u64,
    /// Bytes, as of the last look.
    left: u64,
    /// When there was no room.
    full: Option<Instant>,
}

impl Spare {
    pub(super) const fn new(older_than: u64) -> Self {
        Self {
            older_than,
            left: 0,
            full: None,
        }
    }

    /// Takes room for `bytes`; false when there is none. `outstanding` tells how many bytes have been taken and are not on disk
    /// yet.
    pub(super) async fn take(
        &mut self,
        cache: &Arc<Cache>,
        bytes: u64,
        outstanding: impl Fn() -> u64 + Send,
    ) -> bool {
        if self.left < bytes {
            if self.full.is_some_and(|full| full.elapsed() < FULL) {
                return false;
            }
            // Before the look: what comes to the disk in between counts twice rather than not at all.
            let taken = outstanding();
            let (looked, older_than) = (Arc::clone(cache), self.older_than);
            let spare = tokio::task::spawn_blocking(move || looked.spare(older_than)).await;
            let spare = spare.ok().and_then(Result::ok).unwrap_or(0);
            let spare = spare.saturating_sub(taken);
            if spare < bytes {
                self.full = (spare < MEASURED).then(Instant::now);
                return false;
            }
            self.full = None;
            self.left = spare.min(bytes.max(MEASURED));
        }
        self.left -= bytes;
        true
    }
}

/// Fetches what is missing of a tree, or of paths in it, when nothing else is to be done; and again, until nothing is missing.
pub(super) async fn fill(
    cache: &Arc<Cache>,
    scheduler: &Scheduler,
    tree: &Tree,
    paths: Option<&[Vec<u8>]>,
    stop: &AtomicBool,
) {
    let mut pause = AGAIN;
    let mut told = false;
    while !stop.load(Ordering::Relaxed) {
        let is_complete = pass(cache, scheduler, tree, paths, stop, &mut told).await;
        while scheduler.wants(Kind::Tree, Source::Tree) && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        if is_complete {
            break;
        }
        let until = Instant::now() + pause;
        while Instant::now() < until && !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        pause = (pause * 2).min(AGAIN_AT_MOST);
    }
}

/// Asks for what is missing, once; true when nothing was.
async fn pass(
    cache: &Arc<Cache>,
    scheduler: &Scheduler,
    tree: &Tree,
    paths: Option<&[Vec<u8>]>,
    stop: &AtomicBool,
    told: &mut bool,
) -> bool {
    let whole = [Vec::new()];
    let mut spare = Spare::new(0);
    let mut seen = HashSet::new();
    let mut is_complete = true;
    for path in paths.unwrap_or(&whole) {
        let Some((node, closure)) = node_at(cache, tree, path).await else {
            is_complete = false;
            if !std::mem::replace(told, true) {
                let path = String::from_utf8_lossy(path);
                tracing::warn!(%path, "--prefetch: the tree has no such path, or it cannot be had");
            }
            continue;
        };
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            match node {
                Node::Directory { digest, .. } => {
                    // A tree may have the same directory in many places.
                    if !seen.insert(digest.prefix()) {
                        continue;
                    }
                    // What cannot be had is told to whoever asks for it.
                    match cache.directory(digest, closure).await {
                        Ok(directory) => {
                            let entries = directory.entries().rev();
                            left.extend(entries.map(|entry| entry.node.to_node()));
                        }
                        Err(_) => is_complete = false,
                    }
                }
                Node::File { digest, size, .. } if size > 0 => {
                    is_complete &= want(cache, scheduler, &mut spare, digest, size, stop).await;
                    if spare.full.is_some() {
                        return false;
                    }
                }
                Node::File { .. } | Node::Symlink { .. } => {}
            }
        }
    }
    is_complete
}

/// True when nothing of it was missing.
async fn want(
    cache: &Arc<Cache>,
    scheduler: &Scheduler,
    spare: &mut Spare,
    digest: Digest,
    size: u64,
    stop: &AtomicBool,
) -> bool {
    let missing = cache
        .missing_bytes(digest, size, Check::Stamp)
        .await
        .unwrap_or(size);
    if missing == 0 {
        return true;
    }
    while scheduler.waiting(Kind::Tree) >= WAITING && !stop.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let outstanding = || scheduler.outstanding(Kind::Tree, Source::Tree);
    if !spare.take(cache, missing, outstanding).await || stop.load(Ordering::Relaxed) {
        return false;
    }
    let job = Job::File {
        digest,
        size,
        range: 0..size,
    };
    scheduler.push(Kind::Tree, Source::Tree, job);
    false
}
