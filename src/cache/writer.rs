use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, atomic::AtomicBool, mpsc},
    time::{Duration, Instant},
};

use rusqlite::{Connection, params};

use super::{
    CacheError, DataFile,
    eviction::{self, Victim},
    index::{self, PROMISED, WRITER_WAITS},
    placing::Growing,
    ranges::Ranges,
    rows::Row,
    store::{Command, NewChunk, Store},
    syncing::{Round, Syncer},
    writing::{OpenForWriting, Segment, Written},
};
use crate::model::Digest;

/// Chunks are committed at the latest after this time: other processes may wait for them …
const COMMIT_AFTER: Duration = Duration::from_millis(100);
/// … or this many bytes.
const COMMIT_BYTES: u64 = 64 << 20;
/// Of chunks that other processes may wait for, so many are committed at once.
const COMMIT_SHARED: usize = 64;
/// After the disk failed or was full, nothing is written for this time.
const PAUSE: Duration = Duration::from_secs(5);
/// Commands that are looked at together.
const MAX_BATCH: usize = 512;

/// The one thread of a process that writes to the cache directory.
///
/// A chunk passes three points: its room is reserved in the index (which may evict), its bytes are written and can be
/// read from the mapping by this process, and a row of the index names it. It is synced some seconds later ([`Syncer`]).
pub(super) struct Writer {
    pub(super) store: Arc<Store>,
    pub(super) connection: Connection,
    /// The segments that this process appends to, by queue. It holds the locks of the files.
    pub(super) segments: [Option<Segment>; 2],
    /// Blob files that this process writes to, locked, until the next commit.
    pub(super) blob_files: HashMap<Digest, OpenForWriting>,
    pub(super) growing: Growing,
    /// Written, not committed.
    pub(super) uncommitted: Vec<Written>,
    pub(super) uncommitted_bytes: u64,
    /// Where that was written.
    pub(super) written: Ranges,
    pub(super) oldest: Option<Instant>,
    /// Files that were written to since the last commit.
    pub(super) changed: HashMap<u64, Arc<DataFile>>,
    pub(super) syncer: Syncer,
    /// What the next round of syncs has.
    pub(super) unsynced: Round,
    pub(super) unsynced_bytes: u64,
    /// When the first of it was written, or a row.
    pub(super) unsynced_since: Option<Instant>,
    /// Bytes that this process has written.
    pub(super) written_bytes: u64,
    /// Of them, those that were copied out of evicted files.
    pub(super) copied_bytes: u64,
    /// Chunks of evicted files that stay, and could not be written yet.
    pub(super) kept: Vec<NewChunk>,
    /// Bytes of files that went, and that the filesystem has not given back yet; and whether it was synced since.
    pub(super) late: Option<(Arc<AtomicBool>, u64)>,
    /// Whether a sync was asked for.
    pub(super) promised: bool,
    pub(super) counted: Vec<u64>,
    pub(super) paused_until: Option<Instant>,
    pub(super) housekeeping_at: Instant,
}

impl Writer {
    pub(super) fn new(store: Arc<Store>) -> Result<Self, CacheError> {
        let connection = store.index.connect()?;
        Ok(Self {
            syncer: Syncer::start(Arc::clone(&store))?,
            counted: vec![0; store.stats.iter().count()],
            store,
            connection,
            segments: [None, None],
            blob_files: HashMap::new(),
            growing: Growing::default(),
            uncommitted: Vec::new(),
            uncommitted_bytes: 0,
            written: Ranges::default(),
            oldest: None,
            changed: HashMap::new(),
            unsynced: Round::default(),
            unsynced_bytes: 0,
            unsynced_since: None,
            written_bytes: 0,
            copied_bytes: 0,
            kept: Vec::new(),
            late: None,
            promised: false,
            paused_until: None,
            housekeeping_at: Instant::now(),
        })
    }

    /// Runs until [`Command::Stop`] or until nobody can send any more.
    pub(super) fn run(mut self, commands: &mpsc::Receiver<Command>) {
        self.remove_orphans();
        loop {
            let now = Instant::now();
            let deadline = self.oldest.map_or(self.housekeeping_at, |oldest| {
                (oldest + COMMIT_AFTER).min(self.housekeeping_at)
            });
            match commands.recv_timeout(deadline.saturating_duration_since(now)) {
                Ok(first) => {
                    self.store.backlog.note_progress();
                    let mut batch = vec![first];
                    while batch.len() < MAX_BATCH
                        && let Ok(command) = commands.try_recv()
                    {
                        batch.push(command);
                    }
                    if !self.batch(batch) {
                        break;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            let due = self
                .oldest
                .is_some_and(|oldest| oldest.elapsed() >= COMMIT_AFTER);
            if due || self.uncommitted_bytes >= COMMIT_BYTES || self.holds_up_others() {
                self.commit();
            }
            self.sync_if_due();
            if Instant::now() >= self.housekeeping_at {
                self.housekeeping();
            }
        }
        self.commit();
        self.housekeeping();
        let kept = std::mem::take(&mut self.kept);
        self.give_up(kept);
        self.commit();
        let store = Arc::clone(&self.store);
        self.end();
        // Nothing is held by the writer any more, and what is still read is opened again.
        store.files.close_all();
        store.files.reap();
    }

    /// Whether other processes wait for many chunks to be named: so many that the locks for them run short.
    fn holds_up_others(&self) -> bool {
        let mut uncommitted = self.uncommitted.iter();
        self.uncommitted.len() >= COMMIT_SHARED && uncommitted.any(|one| one.flight.is_some())
    }

    /// Whether to go on.
    fn batch(&mut self, batch: Vec<Command>) -> bool {
        let (mut chunks, mut rows, mut acks, mut syncs) = (vec![], vec![], vec![], vec![]);
        let mut verified = HashMap::new();
        let mut go_on = true;
        for command in batch {
            match command {
                Command::Chunk(chunk) => chunks.push(chunk),
                Command::Directories(directories, _queued, done) => {
                    rows.push(Row::Directories(directories));
                    acks.push(done);
                }
                Command::Judged(blob, right) => rows.push(Row::Judged(blob, right)),
                Command::Manifest {
                    blob,
                    manifest,
                    cut_here,
                } => rows.push(Row::Manifest(blob, manifest, cut_here)),
                Command::Row(row) => rows.push(row),
                Command::Damaged(digest, location) => {
                    rows.push(Row::Damaged(digest, location));
                }
                Command::Verified(file) => {
                    verified.insert(file.number(), file);
                }
                Command::Broken(number) => self.remove_broken(number),
                Command::Sync(done) => syncs.push(done),
                Command::Stop => go_on = false,
            }
        }
        for row in &rows {
            if let Row::Damaged(_, location) = row {
                self.let_go(location.file);
            }
        }
        if !rows.is_empty() {
            // Whoever waits was promised that they are there.
            let wait = match acks.is_empty() && syncs.is_empty() {
                true => self.patience(),
                false => PROMISED,
            };
            let written = self
                .store
                .index
                .write_within(wait, &mut self.connection, |connection| {
                    rows.iter().try_for_each(|row| row.write(connection))
                });
            match written {
                Ok(()) => self.note_unsynced(0),
                Err(error) => tracing::warn!(%error, "not written to the index"),
            }
        }
        for file in verified.into_values() {
            self.note_verified(&file);
        }
        for ack in acks {
            let _ = ack.send(());
        }
        if !chunks.is_empty() {
            self.chunks(chunks);
        }
        if !syncs.is_empty() {
            self.commit_within(PROMISED);
            self.promised = true;
            self.unsynced.all = true;
            for sync in syncs {
                self.unsynced.told.push(Box::new(move |synced| {
                    let _ = sync.send(synced.clone());
                }));
            }
            self.sync();
        }
        go_on
    }

    /// Names what was written in the index.
    pub(super) fn commit(&mut self) {
        self.commit_within(self.patience());
    }

    /// How long it is waited for other processes that write to the index.
    pub(super) fn patience(&self) -> Duration {
        match self.store.keeps {
            true => PROMISED,
            false => WRITER_WAITS,
        }
    }

    /// The same, waiting so long for other processes that write to the index.
    fn commit_within(&mut self, wait: Duration) {
        self.oldest = None;
        self.uncommitted_bytes = 0;
        self.written.clear();
        let uncommitted = std::mem::take(&mut self.uncommitted);
        let changed = std::mem::take(&mut self.changed);
        self.blob_files.clear();
        if uncommitted.is_empty() && changed.is_empty() {
            return;
        }
        let committed = self
            .store
            .index
            .write_within(wait, &mut self.connection, |connection| {
                let mut evicted = Vec::new();
                for (number, file) in &changed {
                    if index::file(connection, *number)?.is_none() {
                        evicted.push(Victim {
                            number: *number,
                            bytes: 0,
                        });
                    } else {
                        connection
                            .prepare_cached("UPDATE files SET stamp = ? WHERE number = ?")?
                            .execute(params![file.stamp(), index::signed(*number)?])?;
                    }
                }
                insert_written(connection, &self.store, &uncommitted)?;
                Ok(evicted)
            });
        match committed {
            // Another process evicted them, perhaps before they were made.
            Ok(evicted) => {
                self.note_unsynced(0);
                self.unsynced.files.extend(changed);
                self.remove(&evicted);
            }
            Err(error) => {
                tracing::warn!(%error, "written chunks could not be named in the index");
            }
        }
        for chunk in uncommitted {
            self.store.remove_pending(chunk.digest);
        }
    }

    pub(super) fn pause(&mut self) {
        self.paused_until = Some(Instant::now() + PAUSE);
    }
}

/// Names in the index what was written to files that nobody has evicted since.
pub(super) fn insert_written(
    connection: &Connection,
    store: &Store,
    written: &[Written],
) -> rusqlite::Result<()> {
    let mut there = HashMap::new();
    for chunk in written {
        let number = chunk.location.file;
        let is_there = match there.entry(number) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) => *new.insert(index::file(connection, number)?.is_some()),
        };
        if is_there {
            let passes = store.uses.take(chunk.digest);
            let reads = (chunk.reads + u32::from(passes)).min(4);
            let (location, size) = (chunk.location, chunk.size);
            if !index::insert_chunk(connection, chunk.digest, location, size, reads)? {
                eviction::note_uses(connection, [(chunk.digest, passes)])?;
            }
        }
    }
    Ok(())
}
