use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    kind::Kind,
    replay::{Tree, node_at},
    scheduler::{Job, Scheduler, Source},
};
use crate::{
    cache::Cache,
    model::{Digest, Node},
};

/// Jobs that wait at once.
const WAITING: usize = 64;
/// How often it is looked whether there is room for more of them.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// And whether there is room in the cache, where there was none.
const FULL: Duration = Duration::from_secs(5);
/// The room in the cache is looked at again after so many bytes.
const MEASURED: u64 = 16 << 20;

/// Room in the cache without evicting anything: what nobody has asked for yet must not take the place of what somebody has.
#[derive(Debug, Default)]
pub(super) struct Spare {
    /// Bytes, as of the last look.
    left: u64,
}

impl Spare {
    /// Waits until there is room for `bytes`; false when it was stopped.
    ///
    /// `outstanding` tells how many have been taken and are not on disk yet.
    pub(super) async fn take(
        &mut self,
        cache: &Arc<Cache>,
        bytes: u64,
        stop: &AtomicBool,
        outstanding: impl Fn() -> u64 + Send,
    ) -> bool {
        while self.left < bytes {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            // Before the look: what comes to the disk in between counts twice rather than not at all.
            let taken = outstanding();
            let looked = Arc::clone(cache);
            let spare = tokio::task::spawn_blocking(move || looked.spare()).await;
            let spare = spare.ok().and_then(Result::ok).unwrap_or(0);
            let spare = spare.saturating_sub(taken);
            if spare < bytes {
                tracing::debug!(spare, "the cache is full; what is fetched ahead waits");
                tokio::time::sleep(FULL).await;
            } else {
                self.left = spare.min(bytes.max(MEASURED));
            }
        }
        self.left -= bytes;
        true
    }
}

/// Fetches what is missing of a tree, or of paths in it, when nothing else is to be done.
pub(super) async fn fill(
    cache: &Arc<Cache>,
    scheduler: &Scheduler,
    tree: &Tree,
    paths: Option<&[Vec<u8>]>,
    stop: &AtomicBool,
) {
    let whole = [Vec::new()];
    let mut spare = Spare::default();
    let mut seen = HashSet::new();
    for path in paths.unwrap_or(&whole) {
        let Some((node, closure)) = node_at(cache, tree, path).await else {
            let path = String::from_utf8_lossy(path);
            tracing::warn!(%path, "--prefetch: the tree has no such path, or it cannot be had");
            continue;
        };
        let mut left = vec![node];
        while let Some(node) = left.pop() {
            match node {
                Node::Directory { digest, .. } => {
                    if !seen.insert(digest) {
                        continue;
                    }
                    // What cannot be had is told to whoever asks for it.
                    if let Ok(directory) = cache.directory(digest, closure).await {
                        let entries = directory.entries().iter().rev();
                        left.extend(entries.map(|entry| entry.node.clone()));
                    }
                }
                Node::File { digest, size, .. } if size > 0 => {
                    if !want(cache, scheduler, &mut spare, digest, size, stop).await {
                        scheduler.cancel(Source::Tree);
                        return;
                    }
                }
                Node::File { .. } | Node::Symlink { .. } => {}
            }
        }
    }
}

/// False when it was stopped.
async fn want(
    cache: &Arc<Cache>,
    scheduler: &Scheduler,
    spare: &mut Spare,
    digest: Digest,
    size: u64,
    stop: &AtomicBool,
) -> bool {
    let missing = cache.missing_bytes(digest, size).await.unwrap_or(size);
    if missing == 0 {
        return !stop.load(Ordering::Relaxed);
    }
    while scheduler.waiting(Kind::Tree) >= WAITING {
        if stop.load(Ordering::Relaxed) {
            return false;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    let outstanding = || scheduler.outstanding(Kind::Tree, Source::Tree);
    if !spare.take(cache, missing, stop, outstanding).await {
        return false;
    }
    let range = 0..size;
    scheduler.push(
        Kind::Tree,
        Source::Tree,
        Job::File {
            digest,
            size,
            range,
        },
    );
    true
}
