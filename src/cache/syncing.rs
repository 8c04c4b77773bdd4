//! Syncing what was written, on a thread of its own: neither the writer nor a reader waits for a slow disk. No reader relies on a sync,
//! since after a reboot every byte is verified before it is served; what is synced outlasts a power cut.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rusqlite::Connection;

use super::{
    CacheError, DataFile,
    eviction::{self, Victim},
    index::{LOG_MAX, PROMISED},
    store::Store,
    writer::Writer,
};

/// A round begins at the latest so long after something was written …
const SYNC_AFTER: Duration = Duration::from_secs(5);
/// … or after so many bytes of data files.
const SYNC_BYTES: u64 = 128 << 20;
/// A process that wrote less, in bytes, and was asked for no sync leaves it to the kernel.
const SYNC_AT_END: u64 = 1 << 20;
/// From so many files on, one sync of the whole filesystem costs less.
const MANY_FILES: usize = 32;

/// What is told of the end of a round: whether the index and the names of files were synced.
pub(super) type Told = Box<dyn FnOnce(&Result<(), CacheError>) + Send>;

/// The thread that syncs. It ends when this is dropped, after the rounds that it was given.
pub(super) struct Syncer {
    rounds: mpsc::Sender<Round>,
    shared: Arc<Shared>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// Rounds that have not ended.
    running: AtomicUsize,
    /// Files that could not be synced, whose rows are gone. The lock is held for a list operation only.
    failed: Mutex<Vec<Victim>>,
}

/// What is synced together: data files, then the index.
#[derive(Default)]
pub(super) struct Round {
    pub(super) files: HashMap<u64, Arc<DataFile>>,
    /// Whether there are new names in the directory of the data files.
    pub(super) new_files: bool,
    /// Whether what other processes have written is synced too.
    pub(super) all: bool,
    pub(super) told: Vec<Told>,
}

impl Syncer {
    pub(super) fn start(store: Arc<Store>) -> Result<Self, CacheError> {
        let connection = store.index.connect()?;
        let shared = Arc::<Shared>::default();
        let (rounds, receiver) = mpsc::channel();
        let dir = store.dir.clone();
        let task = Task {
            store,
            connection,
            shared: Arc::clone(&shared),
        };
        let thread = thread::Builder::new()
            .name("cache-syncer".to_owned())
            .spawn(move || task.run(&receiver))
            .map_err(|error| CacheError::io(&dir, error))?;
        Ok(Self {
            rounds,
            shared,
            thread,
        })
    }

    pub(super) fn begin(&self, round: Round) {
        self.shared.running.fetch_add(1, Ordering::Relaxed);
        if let Err(mpsc::SendError(round)) = self.rounds.send(round) {
            // The thread has panicked, which was logged. Nobody is to wait for it.
            self.shared.running.fetch_sub(1, Ordering::Relaxed);
            let aborted = Err(CacheError::Aborted);
            round.told.into_iter().for_each(|told| told(&aborted));
        }
    }

    /// Ends the thread, after the rounds that it was given.
    pub(super) fn end(self) {
        drop(self.rounds);
        if self.thread.join().is_err() {
            tracing::error!("the syncer of the cache panicked");
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        self.shared.running.load(Ordering::Relaxed) > 0
    }

    /// Files that could not be synced since this was asked last. The index does not name them any more.
    pub(super) fn failed(&self) -> Vec<Victim> {
        std::mem::take(&mut *self.shared.failed())
    }
}

impl Shared {
    fn failed(&self) -> std::sync::MutexGuard<'_, Vec<Victim>> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a round.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Task {
    store: Arc<Store>,
    connection: Connection,
    shared: Arc<Shared>,
}

impl Task {
    fn run(mut self, rounds: &mpsc::Receiver<Round>) {
        // Also after a panic, so that nobody takes it for busy for ever.
        let shared = Arc::clone(&self.shared);
        for round in rounds {
            let ended = Ended(&shared);
            let synced = self.sync(&round);
            if let Err(error) = &synced {
                tracing::warn!(%error, "sync failed");
            }
            drop(ended);
            round.told.into_iter().for_each(|told| told(&synced));
        }
    }

    fn sync(&mut self, round: &Round) -> Result<(), CacheError> {
        let (failed, whole) = self.sync_files(round);
        self.give_up(&failed);
        if round.all {
            // What other processes have written cannot be given up here.
            whole.map_err(|error| CacheError::io(&self.store.dir, error))?;
        }
        if round.new_files {
            let synced = self.store.files.sync();
            synced.map_err(|error| CacheError::io(&self.store.dir, error))?;
        }
        self.store.index.sync(&self.connection)
    }

    /// The files that could not be synced, and whether the filesystem was, where that was wanted.
    fn sync_files<'a>(&self, round: &'a Round) -> (Vec<&'a Arc<DataFile>>, io::Result<()>) {
        let many = round.files.len() >= MANY_FILES;
        let whole = match many || round.all {
            true => self.store.files.sync_filesystem(),
            false => Ok(()),
        };
        match &whole {
            Ok(()) if many => return (Vec::new(), whole),
            Ok(()) => {}
            // Which file it was, if it was one of these, each sync says.
            Err(error) => tracing::warn!(dir = ?self.store.dir, %error, "sync failed"),
        }
        let is_failed = |file: &&Arc<DataFile>| {
            let synced = file.file().sync_data();
            // There is no place where it could lie.
            let synced = synced.or_else(|error| match file.is_gone() {
                true => Ok(()),
                false => Err(error),
            });
            let failed = |error: io::Error| {
                tracing::warn!(path = ?self.store.files.path(file.number()), %error, "sync failed");
            };
            synced.map_err(failed).is_err()
        };
        (round.files.values().filter(is_failed).collect(), whole)
    }

    /// What the kernel has of a file may not be what the disk has, and a second sync would say that all is well: such a file is
    /// given up.
    fn give_up(&mut self, files: &[&Arc<DataFile>]) {
        if files.is_empty() {
            return;
        }
        for file in files {
            file.distrust();
            if let Some(again) = self.store.files.get(file.number()) {
                again.distrust();
            }
        }
        let gone = self
            .store
            .index
            .write_within(PROMISED, &mut self.connection, |connection| {
                let mut numbers = files.iter().map(|file| file.number());
                numbers.try_for_each(|number| eviction::delete_file(connection, number))
            });
        if let Err(error) = gone {
            tracing::warn!(%error, "not written to the index");
        }
        for file in files {
            // Whatever became of its rows, before anybody is told that all is there.
            self.store.files.remove(file.number());
            self.store.files.condemn(file.number());
            self.shared.failed().push(Victim {
                number: file.number(),
                bytes: 0,
            });
        }
    }
}

// When the writer has what it wrote synced.
impl Writer {
    /// Syncs what was written, unless that is so little that it is no loss.
    pub(super) fn end(mut self) {
        let is_little = self.written_bytes < SYNC_AT_END && self.store.index.log_len() < LOG_MAX;
        if is_little && !self.promised {
            return;
        }
        let (told, end) = mpsc::channel();
        self.unsynced.told.push(Box::new(move |_| {
            let _ = told.send(());
        }));
        self.sync();
        if end.recv_timeout(PROMISED).is_err() {
            tracing::warn!(dir = ?self.store.dir, "the disk of the cache takes too long; what was fetched last may be lost");
            return;
        }
        self.remove_failed();
        self.syncer.end();
        // The last of all processes leaves no log behind.
        if let Err(error) = self.store.index.end_log(&self.connection) {
            tracing::debug!(%error, "the log of the index stays");
        }
    }

    pub(super) fn sync_if_due(&mut self) {
        self.remove_failed();
        let is_old = |since: Instant| since.elapsed() >= SYNC_AFTER;
        let is_long = self.store.index.log_len() > 2 * LOG_MAX;
        let is_due = is_long || self.is_full_round() || self.unsynced_since.is_some_and(is_old);
        if is_due && !self.syncer.is_busy() {
            self.sync();
        }
    }

    /// Has all that is committed synced.
    pub(super) fn sync(&mut self) {
        self.unsynced_bytes = 0;
        self.unsynced_since = None;
        self.syncer.begin(std::mem::take(&mut self.unsynced));
    }

    fn remove_failed(&mut self) {
        let failed = self.syncer.failed();
        if !failed.is_empty() {
            self.remove(&failed);
            self.pause();
        }
    }

    /// Notes that something was written that is to be synced some time.
    pub(super) fn note_unsynced(&mut self, bytes: u64) {
        self.unsynced_since.get_or_insert_with(Instant::now);
        self.unsynced_bytes += bytes;
        self.written_bytes += bytes;
    }

    /// Files that wait for a sync are open until then.
    fn is_full_round(&self) -> bool {
        self.unsynced_bytes >= SYNC_BYTES
            || self.unsynced.files.len() >= self.store.files.most_written()
    }

    /// Whether the disk is so far behind that nothing more is to be written now. With `waits`, never: it is waited for.
    pub(super) fn is_behind(&mut self, waits: bool) -> bool {
        if !self.is_full_round() || !self.syncer.is_busy() {
            return false;
        }
        if !waits {
            return true;
        }
        let (told, end) = mpsc::channel();
        self.unsynced.told.push(Box::new(move |_| {
            let _ = told.send(());
        }));
        self.commit();
        self.sync();
        end.recv_timeout(PROMISED).is_err()
    }
}
