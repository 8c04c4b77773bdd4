//! Decides what to fetch before it is asked for.
//!
//! - [`Prefetch`]: is told of each read that comes here (the kernel's cache hides the others), and wants what comes next
//! - `window`: readers of one file, numbers to numbers
//! - `walk`: readers who go from file to file
//! - `queue`: what waits to be fetched, in which order
//! - `scheduler`: how much of it is under way at once
//! - `ledger`: what of it was read in the end
//! - [`Kind`]: the reasons for fetching ahead, and their counters

mod kind;
mod ledger;
mod queue;
mod scheduler;
mod walk;
mod window;

use std::sync::{Arc, Mutex, PoisonError};

use moka::sync::Cache as Bounded;

pub use self::{kind::Kind, walk::Place};
use self::{
    scheduler::{Scheduler, Source},
    walk::Walks,
    window::Cursors,
};
use crate::{
    cache::{Blob, Cache},
    model::Digest,
};

/// Files whose readers are followed.
const FOLLOWED: u64 = 1024;

/// How much is fetched ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing.
    Off,
    /// What is about to be read, as far as anybody can say.
    #[default]
    Auto,
}

/// One read of a file.
#[derive(Debug)]
pub struct Read<'a> {
    pub blob: &'a Arc<Blob>,
    /// In bytes.
    pub offset: u64,
    pub len: u64,
    /// Positions of the chunks that the reader has to wait for.
    pub missing: &'a [usize],
}

/// Where a read happens, asked for when it matters.
pub trait Whereabouts {
    /// The file's place in the tree, where all of it is at hand.
    fn place(&self) -> Option<Place>;
}

/// Follows the readers of a mount.
#[derive(Debug)]
pub struct Prefetch {
    cache: Arc<Cache>,
    mode: Mode,
    scheduler: Arc<Scheduler>,
    cursors: Bounded<Digest, Arc<Mutex<Cursors>>>,
    walks: Arc<Walks>,
}

impl Prefetch {
    /// Must be called within a tokio runtime, in which the fetches will run.
    #[must_use]
    pub fn new(cache: Arc<Cache>, mode: Mode) -> Self {
        Self {
            scheduler: Scheduler::start(Arc::clone(&cache)),
            cache,
            mode,
            cursors: Bounded::new(FOLLOWED),
            walks: Arc::default(),
        }
    }

    /// Notes a read that has come here, and wants what is likely to come after it.
    pub fn read(&self, read: &Read<'_>, whereabouts: &impl Whereabouts) {
        if self.mode == Mode::Off {
            return;
        }
        let met = self.meet(read);
        let waits = !read.missing.is_empty();
        if read.blob.manifest().chunks().len() > 1 {
            self.follow(read, waits);
        }
        // Each file once, as it is begun.
        if read.offset == 0 && (waits || met.is_some()) {
            let digest = read.blob.digest();
            let size = read.blob.manifest().size();
            let walk = match met {
                Some(Source::Walk(walk)) => Some(walk),
                _ => self.scheduler.walk_that_wants(digest, size),
            };
            Walks::read(
                &self.walks,
                &self.scheduler,
                &self.cache,
                size,
                walk,
                || whereabouts.place(),
            );
        }
    }

    /// A file is not open any more: what was wanted for its readers is not.
    pub fn closed(&self, file: Digest) {
        self.cursors.invalidate(&file);
        self.scheduler.cancel(Source::File(file));
    }

    /// Nobody reads any more.
    pub fn close(&self) {
        self.scheduler.close();
    }

    /// For whom the first of the chunks was fetched that this reads and that were fetched ahead.
    fn meet(&self, read: &Read<'_>) -> Option<Source> {
        if self.scheduler.ledger.is_empty() {
            return None;
        }
        let chunks = read.blob.manifest().chunks();
        let mut first = None;
        for slice in read.blob.manifest().slices(read.offset, read.len) {
            let met = self.scheduler.ledger.read(chunks[slice.index].digest);
            first = first.or(met);
        }
        first
    }

    /// Wants what comes next in a file.
    fn follow(&self, read: &Read<'_>, waits: bool) {
        let digest = read.blob.digest();
        let cursors = match waits {
            true => self.cursors.get_with(digest, Arc::default),
            // Of a file in which nothing is missed nothing is to be fetched.
            false => match self.cursors.get(&digest) {
                Some(cursors) => cursors,
                None => return,
            },
        };
        let size = read.blob.manifest().size();
        let end = read.offset.saturating_add(read.len).min(size);
        let most = self.scheduler.most_ahead();
        let ahead = {
            let mut cursors = cursors.lock().unwrap_or_else(PoisonError::into_inner);
            cursors.read(read.offset..end, size, most)
        };
        self.scheduler.note_reader(digest);
        if !ahead.is_empty() {
            let slices = read
                .blob
                .manifest()
                .slices(ahead.start, ahead.end - ahead.start);
            let positions = slices.map(|slice| slice.index);
            let (kind, source) = (Kind::Sequential, Source::File(digest));
            self.scheduler
                .push_chunks(kind, source, read.blob, positions);
        }
    }
}
