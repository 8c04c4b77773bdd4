use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{runtime::Handle, sync::Notify, task::AbortHandle};

use super::{
    job::{Job, Key, Source},
    kind::Kind,
    ledger::Ledger,
    queue::Queue,
    tracer::Tracer,
};
use crate::{
    cache::{Blob, Cache, Pace},
    model::Digest,
};

/// Requests under way at once.
const REQUESTS: usize = 192;
/// Bytes that may be under way before anything is known of the remotes, and at the least.
const START: u64 = 2 << 20;
const LEAST: u64 = 512 << 10;
/// What the line brings in this time may be under way, too: where latency is shorter than this machine's own delays, the product says
/// little.
const JITTER: Duration = Duration::from_millis(20);
/// Bytes that may be fetched ahead of one reader at the least, where there is memory.
const AHEAD: u64 = 8 << 20;
/// As long as something waits that may not go yet, it is looked at again after this time.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// A file that nobody has read for this time has been closed, as far as anybody can say: where the kernel opens files by itself,
/// it does not tell.
const IDLE: Duration = Duration::from_secs(5);
/// Files of which that is remembered.
const FILES: usize = 1 << 16;
/// After a reader had to wait, filling a tree stands back for this time.
const STAND_BACK: Duration = Duration::from_secs(1);

/// Fetches what is wanted ahead, as fast as the line, the memory and the disk take it, and after what readers wait for:
/// that never comes by here.
#[derive(Debug)]
pub(super) struct Scheduler {
    pub(super) cache: Arc<Cache>,
    runtime: Handle,
    pub(super) ledger: Ledger,
    pub(super) tracer: Tracer,
    wake: Notify,
    /// The lock is held for a look only, and no other is taken under it.
    state: Mutex<State>,
    /// The most bytes ahead of one reader, as last reckoned.
    most_ahead: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    queue: Queue<Source, Key, Job>,
    /// Under way, by a number of their own.
    running: HashMap<u64, Running>,
    next: u64,
    /// Their cost in bytes.
    cost: u64,
    /// Files that are read, and when they were last.
    files: HashMap<Digest, Instant>,
    /// When a reader was last seen to wait.
    waited: Option<Instant>,
}

#[derive(Debug)]
struct Running {
    source: Source,
    key: Key,
    cost: u64,
    /// Of the job, with what it will want itself.
    bytes: u64,
    /// Not yet known for a moment.
    task: Option<AbortHandle>,
    /// Its source does not want it any more.
    cancelled: bool,
}

enum Next {
    Start(u64, Kind, Source, Job),
    /// Something waits that may go later.
    Later,
    /// Nothing to do before something is pushed or comes.
    Nothing,
}

impl Scheduler {
    /// Must be called within a tokio runtime.
    pub(super) fn start(cache: Arc<Cache>) -> Arc<Self> {
        let scheduler = Arc::new(Self {
            ledger: Ledger::new(Arc::clone(&cache)),
            tracer: Tracer::default(),
            cache,
            runtime: Handle::current(),
            wake: Notify::new(),
            state: Mutex::default(),
            most_ahead: AtomicU64::new(AHEAD),
        });
        scheduler
            .runtime
            .spawn(Self::run(Arc::downgrade(&scheduler)));
        scheduler
    }

    /// Wants something.
    pub(super) fn push(&self, kind: Kind, source: Source, job: Job) {
        if let Some(key) = job.key()
            && self.state().queue.push(kind, source, key, job)
        {
            self.wake.notify_one();
        }
    }

    /// Wants parts of a file whose turn has come: before what its source wanted after it. `number` is that of the file's own job,
    /// which may have been cancelled.
    pub(super) fn push_parts(
        &self,
        number: u64,
        kind: Kind,
        source: Source,
        blob: &Arc<Blob>,
        positions: Vec<usize>,
    ) {
        let mut state = self.state();
        if state.running.get(&number).is_none_or(|job| job.cancelled) {
            return;
        }
        for position in positions.into_iter().rev() {
            let job = Job::Chunk(Arc::clone(blob), position);
            if let Some(key) = job.key() {
                state.queue.push_front(kind, source, key, job);
            }
        }
    }

    /// Wants chunks of a blob, in this order; those that are near already are left out.
    pub(super) fn push_chunks(
        &self,
        kind: Kind,
        source: Source,
        blob: &Arc<Blob>,
        positions: impl Iterator<Item = usize>,
    ) {
        let wanted: Vec<_> = positions
            .filter(|position| !self.cache.is_near(blob, *position))
            .collect();
        if wanted.is_empty() {
            return;
        }
        {
            let mut state = self.state();
            for position in wanted {
                let job = Job::Chunk(Arc::clone(blob), position);
                if let Some(key) = job.key() {
                    state.queue.push(kind, source, key, job);
                }
            }
        }
        self.wake.notify_one();
    }

    /// The walk for which the beginning of a file waits in the queue, or is under way.
    pub(super) fn walk_that_wants(&self, digest: Digest, range: Range<u64>) -> Option<u64> {
        let key = Key::File(digest, range.start, range.end);
        let state = self.state();
        let mut running = state.running.values();
        let source = state
            .queue
            .source_of(&key)
            .or_else(|| running.find(|job| job.key == key).map(|job| job.source));
        match source? {
            Source::Walk(walk) => Some(walk),
            Source::File(..) | Source::Profile | Source::Tree => None,
        }
    }

    /// Where the fetches run.
    pub(super) const fn runtime(&self) -> &Handle {
        &self.runtime
    }

    /// Drops all that waits; what was fetched and not read counts as wasted.
    pub(super) fn close(&self) {
        self.cancel(|_| true);
        self.ledger.close();
    }

    /// Bytes of a kind that wait, are under way, or are not on disk yet.
    pub(super) fn outstanding(&self, kind: Kind, source: Source) -> u64 {
        let (budget, free) = self.cache.ahead();
        let state = self.state();
        let waiting = state.queue.jobs_of(kind).map(Job::bytes);
        let running = state.running.values();
        let running = running.filter(|running| running.source == source);
        let bytes = waiting.chain(running.map(|running| running.bytes));
        // Sizes are what a tree says.
        bytes.fold(budget.saturating_sub(free), u64::saturating_add)
    }

    /// Whether jobs of a kind wait, or are under way for a source.
    pub(super) fn wants(&self, kind: Kind, source: Source) -> bool {
        let state = self.state();
        let mut running = state.running.values();
        state.queue.len_of(kind) > 0 || running.any(|running| running.source == source)
    }

    /// How many jobs of a kind wait.
    pub(super) fn waiting(&self, kind: Kind) -> usize {
        self.state().queue.len_of(kind)
    }

    /// The most bytes that may be fetched ahead of one reader: what several round trips bring, and a fair share of the
    /// memory.
    pub(super) fn most_ahead(&self) -> u64 {
        self.most_ahead.load(Ordering::Relaxed)
    }

    /// A file is read.
    pub(super) fn note_reader(&self, file: Digest) {
        let mut state = self.state();
        if state.files.len() >= FILES {
            // It is only a matter of what is not fetched any more.
            state.files.clear();
        }
        state.files.insert(file, Instant::now());
    }

    /// Nobody reads these files any more.
    pub(super) fn closed(&self, files: &HashSet<Digest>) {
        self.state().files.retain(|file, _| !files.contains(file));
        self.cancel(|source| matches!(source, Source::File(file, _) if files.contains(file)));
    }

    /// Nobody wants anything for these sources any more. What somebody waits for goes on.
    pub(super) fn cancel(&self, is_cancelled: impl Fn(&Source) -> bool) {
        let tasks: Vec<_> = {
            let mut state = self.state();
            state.queue.cancel(&is_cancelled);
            let running = state.running.values_mut();
            let cancelled = running.filter(|running| is_cancelled(&running.source));
            cancelled
                .filter_map(|running| {
                    running.cancelled = true;
                    running.task.clone()
                })
                .collect()
        };
        for task in tasks {
            task.abort();
        }
    }

    /// Files that nobody has read for a while.
    fn idle(&self) -> HashSet<Digest> {
        if self.cache.waiting_readers() > 0 {
            return HashSet::new(); // It may be one of those.
        }
        let state = self.state();
        let idle = state.files.iter().filter(|(_, read)| read.elapsed() > IDLE);
        idle.map(|(file, _)| *file).collect()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run(this: Weak<Self>) {
        let mut cleaned = Instant::now();
        loop {
            let Some(scheduler) = this.upgrade() else {
                return;
            };
            let mut more = scheduler.next();
            while let Next::Start(number, kind, source, job) = more {
                scheduler.begin(number, kind, source, job);
                more = scheduler.next();
            }
            if cleaned.elapsed() > IDLE / 5 {
                cleaned = Instant::now();
                let idle = scheduler.idle();
                if !idle.is_empty() {
                    scheduler.closed(&idle);
                }
            }
            let is_idle = matches!(more, Next::Nothing);
            let pause = if is_idle { IDLE / 5 } else { LOOK_AGAIN };
            // A mount that is gone is noticed at the next look, since this holds no reference across the wait longer than that.
            let _ = tokio::time::timeout(pause, scheduler.wake.notified()).await;
        }
    }

    fn next(&self) -> Next {
        let (product, in_jitter, is_queueing) = {
            let pace = self.cache.pace();
            (pace.product(), pace.bytes_in(JITTER), pace.is_queueing())
        };
        let (budget, free) = self.cache.ahead();
        let readers = self.cache.waiting_readers();
        let mut state = self.state();
        if readers > 0 {
            state.waited = Some(Instant::now());
        }
        let files = state.queue.sources(Kind::Sequential).clamp(1, 64) as u64;
        let most = product.saturating_mul(4).max(AHEAD).min(budget / files);
        self.most_ahead.store(most, Ordering::Relaxed);
        let Some((kind, job)) = state.queue.peek() else {
            return Next::Nothing;
        };
        let all_bytes = job.bytes();
        let bytes = job.own_bytes();
        let cost = Pace::cost(bytes);
        let first = state.running.is_empty();
        if !first && free < bytes.min(budget) {
            return Next::Later; // The disk, or the line, is behind.
        }
        if kind == Kind::Tree {
            let disturbs = state.waited.is_some_and(|at| at.elapsed() < STAND_BACK);
            let probe = if is_queueing { 0 } else { cost };
            let full = state.cost.saturating_add(cost) > product.saturating_add(probe);
            let many = state.running.len() >= REQUESTS;
            if readers > 0 || !first && (disturbs || full || many) {
                return Next::Later;
            }
        } else {
            let limit = product
                .saturating_mul(2)
                .max(in_jitter.map_or(START, |bytes| bytes.max(LEAST)))
                .min(budget);
            if !first
                && (state.cost.saturating_add(cost) > limit || state.running.len() >= REQUESTS)
            {
                return Next::Nothing; // What is under way will wake us.
            }
        }
        let Some((kind, source, key, job)) = state.queue.pop() else {
            return Next::Nothing;
        };
        let number = state.next;
        state.next += 1;
        state.cost = state.cost.saturating_add(cost);
        let running = Running {
            source,
            key,
            cost,
            bytes: all_bytes,
            task: None,
            cancelled: false,
        };
        state.running.insert(number, running);
        Next::Start(number, kind, source, job)
    }

    fn begin(self: &Arc<Self>, number: u64, kind: Kind, source: Source, job: Job) {
        let slot = Slot {
            scheduler: Arc::clone(self),
            number,
        };
        let task = self.runtime.spawn(async move {
            let scheduler = Arc::clone(&slot.scheduler);
            // A failure is told to the reader who asks for the chunk, not to nobody.
            if let Err(error) = scheduler.fetch(number, kind, source, job).await {
                tracing::debug!(%error, kind = kind.name(), "prefetch failed");
            }
            drop(slot);
        });
        if let Some(running) = self.state().running.get_mut(&number) {
            if running.cancelled {
                task.abort();
            }
            running.task = Some(task.abort_handle());
        }
    }
}

/// A place among those under way.
struct Slot {
    scheduler: Arc<Scheduler>,
    number: u64,
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut state = self.scheduler.state();
            if let Some(running) = state.running.remove(&self.number) {
                state.cost = state.cost.saturating_sub(running.cost);
            }
        }
        self.scheduler.wake.notify_one();
    }
}
