use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    job::{Job, Source},
    kind::Kind,
    scheduler::Scheduler,
};
use crate::{
    cache::Cache,
    model::{Digest, Directory, NodeRef},
};

/// Files that are fetched at first.
const FIRST: u64 = 8;
/// And at the most, before one of them is read.
const MOST: u64 = 512;
/// Bytes of those at the least, where the line does not ask for more.
const BYTES: u64 = 4 << 20;
/// A larger file is fetched so far; its own readers do the rest.
const OF_ONE: u64 = 1 << 20;
/// A reader who skips more entries than this is not the one who read the entry before.
const SKIP: usize = 8;
/// A directory up to this size, in bytes and files, is fetched as a whole when two of its files are read in any order; a larger one
/// when as many times that size were, and one in so many of its files.
const WHOLE: u64 = 512 << 10;
const WHOLE_FILES: usize = 256;
const ONE_IN: usize = 16;
/// Directories in which reads are remembered, and walks that are followed.
const REMEMBERED: usize = 64;
/// Files that are looked at in one go, when nearly all are here already; other tasks have their turn after so many.
const LOOKED_AT: usize = 1024;
const YIELD: usize = 64;
/// Directories that a walk may find empty on its way to the next file.
const EMPTY: usize = 4096;

/// Where a file is in the tree.
#[derive(Debug, Clone)]
pub struct Place {
    /// The inode of its directory, and that one's.
    pub directory: u64,
    pub above: u64,
    /// The directories from the root's to its own, each with the position of the entry that leads on.
    pub stack: Vec<(Arc<Directory>, usize)>,
    /// Root of a closure that has them.
    pub closure: Digest,
}

/// Follows those who go from file to file: in the order of a directory, or of a tree; or through a small directory in any
/// order.
#[derive(Debug, Default)]
pub(super) struct Walks {
    /// The lock is held for a look only.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The last read in each directory, the latest last.
    seen: VecDeque<Seen>,
    walks: HashMap<u64, Walk>,
    next: u64,
}

#[derive(Debug, Clone)]
struct Seen {
    directory: u64,
    above: u64,
    /// Of the file, and of its directory in the one above.
    at: usize,
    above_at: usize,
    /// Files that were read here and not in order.
    misses: usize,
    /// It was fetched as a whole.
    whole: bool,
}

#[derive(Debug)]
struct Walk {
    /// What comes next; `None` while somebody is fetching along it.
    frontier: Option<Frontier>,
    /// Files that were asked for and not read.
    ahead: u64,
    /// Bytes of those.
    ahead_bytes: u64,
    /// Files that were read.
    read: u64,
    /// When it last went on.
    turn: u64,
}

/// Files of a tree in the order of its entries, each directory's where it stands.
#[derive(Debug)]
struct Frontier {
    stack: Vec<(Arc<Directory>, usize)>,
    closure: Digest,
}

/// What a walk has to do.
struct Along {
    walk: u64,
    frontier: Frontier,
    files: u64,
    bytes: u64,
}

impl Walks {
    /// Somebody begins to read a file. `ahead_of` is the walk that fetched it, or is about to.
    pub(super) fn read(
        this: &Arc<Self>,
        scheduler: &Arc<Scheduler>,
        cache: &Arc<Cache>,
        bytes: u64,
        ahead_of: Option<u64>,
        place: impl FnOnce() -> Option<Place>,
    ) {
        let most_bytes = cache.pace().product().saturating_mul(4).max(BYTES);
        let along = match ahead_of {
            Some(walk) => this.went_on(walk, bytes, most_bytes),
            None => place().and_then(|place| this.missed(scheduler, place, most_bytes)),
        };
        if let Some(along) = along {
            let (walks, scheduler, cache) =
                (Arc::clone(this), Arc::clone(scheduler), Arc::clone(cache));
            let runtime = scheduler.runtime().clone();
            runtime.spawn(async move { walks.fetch_along(&scheduler, &cache, along).await });
        }
    }

    /// A file that a walk fetched is read.
    fn went_on(&self, number: u64, bytes: u64, most_bytes: u64) -> Option<Along> {
        let mut state = self.state();
        state.next += 1;
        let turn = state.next;
        let walk = state.walks.get_mut(&number)?;
        walk.turn = turn;
        walk.read += 1;
        walk.ahead = walk.ahead.saturating_sub(1);
        walk.ahead_bytes = walk.ahead_bytes.saturating_sub(bytes.min(OF_ONE));
        along(number, walk, most_bytes)
    }

    /// A file is read that no walk has fetched.
    fn missed(&self, scheduler: &Scheduler, place: Place, most_bytes: u64) -> Option<Along> {
        let (directory, at) = place.stack.last().cloned()?;
        let above_at = match place.stack.len() {
            0 | 1 => 0,
            depth => place.stack[depth - 2].1,
        };
        let mut state = self.state();
        let in_order = |from: usize, to: usize| from < to && to <= from + SKIP;
        let before = state
            .seen
            .iter()
            .position(|seen| seen.directory == place.directory)
            .and_then(|index| state.seen.remove(index));
        let in_directory = before.as_ref().is_some_and(|seen| in_order(seen.at, at));
        let from_neighbour = before.is_none()
            && state
                .seen
                .iter()
                .any(|seen| seen.above == place.above && in_order(seen.above_at, above_at));
        let (mut whole, misses) = match &before {
            Some(seen) => {
                let out_of_order = seen.at != at && !in_order(seen.at, at);
                (seen.whole, seen.misses + usize::from(out_of_order))
            }
            None => (false, 1),
        };
        let mut files = Vec::new();
        if before.as_ref().is_some_and(|seen| seen.at != at) && !whole {
            let most = (WHOLE * misses as u64).min(most_bytes).max(WHOLE);
            let most_files = (ONE_IN * misses).max(WHOLE_FILES);
            if let Some(found) = small_files(&directory, most, most_files) {
                files = found;
                whole = true;
            }
        }
        let fetch_whole = whole && !files.is_empty();
        state.seen.push_back(Seen {
            directory: place.directory,
            above: place.above,
            at,
            above_at,
            misses,
            whole,
        });
        if state.seen.len() > REMEMBERED {
            state.seen.pop_front();
        }
        let starts = in_directory || from_neighbour;
        if !starts && !fetch_whole {
            return None;
        }
        state.next += 1;
        let number = state.next;
        let mut walk = Walk {
            frontier: starts.then(|| {
                let mut stack = place.stack;
                for (_, position) in &mut stack {
                    *position += 1;
                }
                Frontier {
                    stack,
                    closure: place.closure,
                }
            }),
            ahead: 0,
            ahead_bytes: 0,
            read: 0,
            turn: number,
        };
        let along = along(number, &mut walk, most_bytes);
        if state.walks.len() == REMEMBERED
            && let Some(oldest) = state
                .walks
                .iter()
                .min_by_key(|(_, walk)| walk.turn)
                .map(|(number, _)| *number)
        {
            state.walks.remove(&oldest);
        }
        state.walks.insert(number, walk);
        drop(state);
        if fetch_whole {
            for (digest, size) in files {
                scheduler.push(
                    Kind::Siblings,
                    Source::Walk(number),
                    beginning(digest, size),
                );
            }
        }
        along
    }

    /// Fetches what comes next on a walk.
    async fn fetch_along(&self, scheduler: &Scheduler, cache: &Arc<Cache>, along: Along) {
        let Along {
            walk,
            mut frontier,
            files,
            bytes,
        } = along;
        let (mut asked, mut asked_bytes, mut looked) = (0, 0, 0);
        while asked < files && asked_bytes < bytes && looked < LOOKED_AT {
            let Some((digest, size)) = frontier.next(cache).await else {
                break;
            };
            looked += 1;
            if looked % YIELD == 0 {
                tokio::task::yield_now().await;
            }
            if !cache.begins_here(digest, size) {
                // It may be wanted already, which is as good.
                let source = Source::Walk(walk);
                scheduler.push(Kind::Siblings, source, beginning(digest, size));
                asked += 1;
                asked_bytes += size.min(OF_ONE);
            }
        }
        let mut state = self.state();
        if let Some(walk) = state.walks.get_mut(&walk) {
            walk.ahead += asked;
            walk.ahead_bytes += asked_bytes;
            if !frontier.stack.is_empty() {
                walk.frontier = Some(frontier);
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes what is to be done for a walk, once half of what was asked for has been read.
fn along(number: u64, walk: &mut Walk, most_bytes: u64) -> Option<Along> {
    let window = (2 * walk.read).clamp(FIRST, MOST);
    if walk.ahead > window / 2 || walk.ahead_bytes > most_bytes / 2 {
        return None;
    }
    Some(Along {
        walk: number,
        frontier: walk.frontier.take()?,
        files: window - walk.ahead,
        bytes: most_bytes - walk.ahead_bytes,
    })
}

/// What a walk fetches of a file.
fn beginning(digest: Digest, size: u64) -> Job {
    Job::File {
        digest,
        size,
        range: of_beginning(size),
    }
}

/// The bytes of that.
pub(super) fn of_beginning(size: u64) -> Range<u64> {
    0..size.min(OF_ONE)
}

/// The files of a directory, `None` where they have more bytes or are more than that.
fn small_files(directory: &Directory, bytes: u64, count: usize) -> Option<Vec<(Digest, u64)>> {
    let (mut files, mut sum) = (Vec::new(), 0_u64);
    for entry in directory.entries() {
        if let NodeRef::File { digest, size, .. } = entry.node
            && size > 0
        {
            sum = sum.saturating_add(size);
            if sum > bytes || files.len() == count {
                return None;
            }
            files.push((digest, size));
        }
    }
    Some(files)
}

impl Frontier {
    /// The next file, with its size.
    async fn next(&mut self, cache: &Arc<Cache>) -> Option<(Digest, u64)> {
        let mut empty = 0;
        loop {
            let (directory, position) = self.stack.last_mut()?;
            let Some(entry) = directory.at(*position) else {
                self.stack.pop();
                continue;
            };
            *position += 1;
            match entry.node {
                NodeRef::File { digest, size, .. } if size > 0 => return Some((digest, size)),
                NodeRef::File { .. } | NodeRef::Symlink { .. } => {}
                NodeRef::Directory { digest, .. } => {
                    empty += 1;
                    if empty > EMPTY {
                        return None;
                    }
                    // What cannot be had is told to whoever asks for it.
                    if let Ok(below) = cache.directory(digest, self.closure).await {
                        self.stack.push((below, 0));
                    }
                }
            }
        }
    }
}
