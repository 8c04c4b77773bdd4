//! Decides what to fetch before it is asked for.
//!
//! - [`Prefetch`]: is told of each read that comes here (the kernel's cache hides the others), and wants what comes next
//! - `window`: readers of one file, numbers to numbers
//! - `walk`: readers who go from file to file
//! - [`Profile`]: what was read of a tree; the `profiler` has it recorded (`recorder`) and fetched ahead (`replay`)
//! - `listing`: directories
//! - `queue`: what waits to be fetched, in which order
//! - `scheduler`: how much of it is under way at once; `job` is one thing to fetch, `bring` fetches it
//! - `fill`: the whole tree, in the background
//! - `ledger`: what of it was read in the end
//! - [`Tree`]: what a mount shows, and finding paths in it
//! - `tracer`: what happened, for somebody who wants to see it
//! - [`Kind`]: the reasons for fetching ahead, and their counters

mod bring;
mod fill;
mod job;
mod kind;
mod ledger;
mod listing;
mod profile;
mod profiler;
mod queue;
mod recorder;
mod replay;
mod scheduler;
mod tracer;
mod tree;
mod walk;
mod window;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use self::{
    job::Source, listing::Listings, profiler::Profiler, scheduler::Scheduler, walk::Walks,
    window::Cursors,
};
pub use self::{
    kind::Kind,
    profile::{Entry, Profile, ProfileError},
    profiler::Profiles,
    tracer::{Event, Trace, TracedFile, What},
    tree::{Tree, node_at},
    walk::Place,
};
use crate::{
    cache::{Blob, Cache, ClockCache},
    model::{Digest, Directory},
};

/// Files whose readers are followed.
const FOLLOWED: u64 = 1024;

/// What is done for readers before they ask.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    pub mode: Mode,
    pub profiles: Profiles,
}

/// How much is fetched ahead.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing.
    Off,
    /// What is about to be read, as far as anybody can say.
    #[default]
    Auto,
    /// That, and all that is missing of the tree when nobody waits for anything.
    Tree,
    /// The same for parts of the tree: paths from the root, names with `/` between.
    Paths(Arc<[Vec<u8>]>),
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

    /// The file's path from the root, where it is known.
    fn path(&self) -> Option<Vec<u8>>;
}

/// Follows the readers of a mount.
#[derive(Debug)]
pub struct Prefetch {
    cache: Arc<Cache>,
    mode: Mode,
    scheduler: Arc<Scheduler>,
    cursors: ClockCache<Digest, Arc<Mutex<Cursors>>>,
    walks: Arc<Walks>,
    listings: Listings,
    profiler: Arc<Profiler>,
    /// Ends the filling of the tree that is shown. The lock is held for a look only.
    filling: Mutex<Arc<AtomicBool>>,
}

impl Prefetch {
    /// Must be called within a tokio runtime, in which the fetches will run.
    #[must_use]
    pub fn new(cache: Arc<Cache>, settings: Settings) -> Self {
        let Settings { mut mode, profiles } = settings;
        if cache.is_offline() {
            mode = Mode::Off;
        }
        let scheduler = Scheduler::start(Arc::clone(&cache));
        let profiler = Profiler::start(
            Arc::clone(&cache),
            Arc::clone(&scheduler),
            profiles,
            mode != Mode::Off,
        );
        Self {
            profiler,
            scheduler,
            cache,
            mode,
            cursors: ClockCache::new(FOLLOWED),
            walks: Arc::default(),
            listings: Listings::default(),
            filling: Mutex::default(),
        }
    }

    /// The mount shows a tree from now on; `name` is what it is called, where it is by a name.
    pub fn show(&self, tree: Tree, name: Option<String>) {
        let stop = self.stop_filling();
        self.profiler.show(tree.clone(), name);
        let paths = match &self.mode {
            Mode::Off | Mode::Auto => return,
            Mode::Tree => None,
            Mode::Paths(paths) => Some(Arc::clone(paths)),
        };
        let (cache, scheduler) = (Arc::clone(&self.cache), Arc::clone(&self.scheduler));
        self.scheduler.runtime().spawn(async move {
            fill::fill(&cache, &scheduler, &tree, paths.as_deref(), &stop).await;
        });
    }

    /// The mount shows nothing that can be fetched ahead.
    pub fn show_none(&self) {
        self.stop_filling();
        self.profiler.show_none();
    }

    /// Notes a read that has come here, and wants what is likely to come after it.
    pub fn read(&self, read: &Read<'_>, whereabouts: &impl Whereabouts) {
        let mut slices = read.blob.manifest().slices(read.offset, read.len);
        if let Some(first) = slices.next() {
            let last = slices.last().map_or(first.index, |slice| slice.index);
            self.profiler
                .read(read.blob, first.index, last, || whereabouts.path());
        }
        if self.scheduler.tracer.is_on() {
            self.note(read, whereabouts);
        }
        if self.mode == Mode::Off {
            return;
        }
        let met = self.meet(read);
        // What is on disk and only has to be verified first is not missing, nor is what is on its way.
        let mut missing = read.missing.iter();
        let waits = missing.any(|position| !self.cache.is_near(read.blob, *position));
        if read.blob.manifest().chunks().len() > 1 {
            let may_be_new = met.is_some() || !read.missing.is_empty();
            self.follow(read, may_be_new, waits);
        }
        // Each file once, as it is begun; who reads what a profile says has no need of more.
        let is_foreseen = matches!(met, Some(Source::Profile | Source::Tree));
        if read.offset == 0 && !is_foreseen && (waits || met.is_some()) {
            let digest = read.blob.digest();
            let size = read.blob.manifest().size();
            let walk = if let Some(Source::Walk(walk)) = met {
                Some(walk)
            } else {
                let beginning = walk::of_beginning(size);
                self.scheduler.walk_that_wants(digest, beginning)
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

    /// Somebody waits for a directory: the one at `position` of `parent`, whose digest is `digest`.
    pub fn missed_directory(
        &self,
        digest: Digest,
        parent: &Directory,
        position: usize,
        closure: Digest,
    ) {
        if self.mode != Mode::Off {
            let runtime = self.scheduler.runtime();
            let parent = (digest, parent);
            self.listings
                .missed(&self.cache, runtime, parent, position, closure);
        }
    }

    /// Begins to note what happens, and gives the number of the trace.
    pub fn trace(&self) -> u64 {
        self.scheduler.tracer.start()
    }

    /// What happened since; `None` when another trace has begun meanwhile.
    #[must_use]
    pub fn traced(&self, number: u64) -> Option<Trace> {
        self.scheduler.tracer.stop(number)
    }

    /// A file is not open any more: what was wanted for its readers is not.
    pub fn closed(&self, file: Digest) {
        self.cursors.remove(&file);
        self.scheduler.closed(&HashSet::from([file]));
    }

    /// Nobody reads any more.
    pub fn close(&self) {
        self.stop_filling();
        self.profiler.show_none();
        self.scheduler.close();
    }

    /// Notes a read in the trace.
    fn note(&self, read: &Read<'_>, whereabouts: &impl Whereabouts) {
        let what = match read.missing {
            [] => What::Read,
            _ => What::Missed,
        };
        let size = read.blob.manifest().size();
        let range = read.offset..read.offset.saturating_add(read.len).min(size);
        let tracer = &self.scheduler.tracer;
        tracer.note(read.blob.digest(), size, what, range, || whereabouts.path());
    }

    /// Ends the filling that goes on; gives what ends the next.
    fn stop_filling(&self) -> Arc<AtomicBool> {
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        filling.store(true, Ordering::Relaxed);
        self.scheduler.cancel(|source| *source == Source::Tree);
        *filling = Arc::default();
        Arc::clone(&filling)
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

    /// Wants what comes next in a file; of one whose readers are not followed yet if it may have something to fetch.
    fn follow(&self, read: &Read<'_>, may_be_new: bool, waits: bool) {
        let digest = read.blob.digest();
        let cursors = match self.cursors.get(&digest) {
            Some(cursors) => cursors,
            None if may_be_new => self.cursors.get_or_insert(&digest, Arc::default(), 1),
            // Of a file in which nothing is missed nothing is to be fetched.
            None => return,
        };
        let size = read.blob.manifest().size();
        let end = read.offset.saturating_add(read.len).min(size);
        let most = self.scheduler.most_ahead();
        let ahead = {
            let mut cursors = cursors.lock().unwrap_or_else(PoisonError::into_inner);
            cursors.read(read.offset..end, size, most)
        };
        // What a reader has to wait for was not wanted in time, or it failed, or was cancelled: then so was what comes after it.
        let wanted = match waits {
            true => ahead.all,
            false => ahead.new,
        };
        if waits || !wanted.is_empty() {
            self.scheduler.note_reader(digest);
        }
        if !wanted.is_empty() {
            let len = wanted.end - wanted.start;
            let slices = read.blob.manifest().slices(wanted.start, len);
            let positions = slices.map(|slice| slice.index);
            let (kind, source) = (Kind::Sequential, Source::File(digest, ahead.reader));
            self.scheduler
                .push_chunks(kind, source, read.blob, positions);
        }
    }
}
