use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use rusqlite::{Connection, params};

use super::{
    CacheError, DataFile,
    index::{self, Location, PROMISED, WRITER_WAITS},
    placing::Places,
    ranges::Ranges,
    rows::Row,
    space::{self, Room, Victim},
    store::{Command, IfSlow, NewChunk, Pending, Store},
    syncing::{Round, Syncer},
    writing::{OpenForWriting, Plan, Planned, Segment},
};
use crate::model::Digest;

/// Chunks are committed at the latest after this time …
const COMMIT_AFTER: Duration = Duration::from_millis(500);
/// … or this many bytes.
const COMMIT_BYTES: u64 = 64 << 20;
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
    /// The segment that this process appends to. It holds the lock of the file.
    pub(super) segment: Option<Segment>,
    /// Blob files that this process writes to, locked, until the next commit.
    pub(super) blob_files: HashMap<Digest, OpenForWriting>,
    /// Written, not committed.
    pub(super) uncommitted: Vec<(Digest, Location, u64)>,
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
    /// Whether a sync was asked for.
    pub(super) promised: bool,
    pub(super) counted: Vec<u64>,
    paused_until: Option<Instant>,
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
            segment: None,
            blob_files: HashMap::new(),
            uncommitted: Vec::new(),
            uncommitted_bytes: 0,
            written: Ranges::default(),
            oldest: None,
            changed: HashMap::new(),
            unsynced: Round::default(),
            unsynced_bytes: 0,
            unsynced_since: None,
            written_bytes: 0,
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
            if due || self.uncommitted_bytes >= COMMIT_BYTES {
                self.commit();
            }
            self.sync_if_due();
            if Instant::now() >= self.housekeeping_at {
                self.housekeeping();
            }
        }
        self.commit();
        self.housekeeping();
        self.end();
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
                true => WRITER_WAITS,
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
        for file in verified.values() {
            self.note_verified(file);
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

    fn chunks(&mut self, chunks: Vec<NewChunk>) {
        let mut left = self.new_ones(chunks);
        let waits = left.iter().any(|chunk| chunk.if_slow == IfSlow::Wait);
        if self
            .paused_until
            .is_some_and(|until| Instant::now() < until)
            || self.is_behind(waits)
        {
            self.give_up(left);
            return;
        }
        self.paused_until = None;
        while !left.is_empty() {
            let plan = match self.reserve(&mut left) {
                Ok(Some(plan)) => plan,
                Ok(None) => {
                    tracing::warn!(
                        dir = ?self.store.dir,
                        "no room for the cache (see --cache-size and --min-free); reading goes on without it"
                    );
                    self.pause();
                    self.give_up(left);
                    return;
                }
                Err(error) => {
                    tracing::warn!(%error, "no room can be reserved; reading goes on without the cache");
                    self.pause();
                    self.give_up(left);
                    return;
                }
            };
            self.remove(&plan.victims);
            self.write(plan);
            // They are open, and so are their locks, until they are committed.
            if self.blob_files.len() >= self.store.files.most_written() / 2 {
                self.commit();
            }
        }
    }

    /// Leaves out what another fetch or another process has written meanwhile.
    fn new_ones(&self, chunks: Vec<NewChunk>) -> Vec<NewChunk> {
        let mut seen = HashSet::new();
        let mut new = Vec::with_capacity(chunks.len());
        for chunk in chunks {
            let known = match self.store.pending(chunk.digest) {
                Some(Pending::Written(location, _)) => Some(location),
                Some(Pending::Queued(_)) | None => index::chunk(&self.connection, chunk.digest)
                    .ok()
                    .flatten()
                    .map(|(location, _)| location),
            };
            if let Some(location) = known {
                chunk.blob.set_place(chunk.position, Some(location));
                if matches!(self.store.pending(chunk.digest), Some(Pending::Queued(_))) {
                    self.store.remove_pending(chunk.digest);
                }
            } else if seen.insert(chunk.digest) {
                new.push(chunk);
            }
        }
        new
    }

    /// Reserves room for as many of the chunks as go into one batch and takes those out of `left`; `None` when there is
    /// no room.
    fn reserve(&mut self, left: &mut Vec<NewChunk>) -> Result<Option<Plan>, CacheError> {
        let store = Arc::clone(&self.store);
        let segment = self.segment.as_ref().map(|segment| segment.number);
        let blob_files = self.blob_files.values();
        let locked = blob_files.map(|open| open.file.number()).collect();
        let mut taken = 0;
        let result = store.index.write(&mut self.connection, |connection| {
            let room = Room::now(&store, connection)?;
            let mut need = 0;
            let mut files = HashSet::new();
            while let Some(chunk) = left.get(taken) {
                let size = chunk.bytes.len() as u64;
                files.insert(chunk.blob.digest());
                let too_many = room.has_blob_file(chunk.blob.manifest().size())
                    && files.len() > store.files.most_written();
                if taken > 0 && (need + size > room.batch() || too_many) {
                    break;
                }
                need += size;
                taken += 1;
            }
            let uses = || store.files.uses();
            let Some(victims) = space::make_room(connection, &room, need, uses)? else {
                return Ok(None);
            };
            // It may have been evicted, or take no more.
            let segment = match segment {
                Some(number) => index::file(connection, number)?,
                None => None,
            };
            let mut plan = Places {
                connection,
                store: &store,
                room,
                segment: segment.as_ref().map(Into::into),
                grown: HashMap::new(),
                locked,
                written: &self.written,
                planned: Ranges::default(),
                made: Vec::new(),
            };
            let places = left
                .iter()
                .take(taken)
                .map(|chunk| plan.place(chunk))
                .collect::<rusqlite::Result<Vec<_>>>()?;
            plan.write_grown()?;
            Ok(Some((places, plan.made, victims)))
        })?;
        let Some((places, made, victims)) = result else {
            return Ok(None);
        };
        let chunks = left
            .drain(..taken)
            .zip(places)
            .map(|(chunk, (target, offset))| Planned {
                chunk,
                target,
                offset,
            })
            .collect();
        Ok(Some(Plan {
            chunks,
            made,
            victims,
        }))
    }

    /// Names what was written in the index.
    pub(super) fn commit(&mut self) {
        self.commit_within(WRITER_WAITS);
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
                let mut there = HashSet::new();
                let mut evicted = Vec::new();
                for (number, file) in &changed {
                    if index::file(connection, *number)?.is_none() {
                        evicted.push(Victim {
                            number: *number,
                            bytes: 0,
                        });
                    } else {
                        there.insert(*number);
                        connection
                            .prepare_cached("UPDATE files SET stamp = ? WHERE number = ?")?
                            .execute(params![file.stamp(), index::signed(*number)?])?;
                    }
                }
                for (digest, location, size) in &uncommitted {
                    if there.contains(&location.file) {
                        index::insert_chunk(connection, *digest, *location, *size)?;
                    }
                }
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
        for (digest, ..) in uncommitted {
            self.store.remove_pending(digest);
        }
    }

    pub(super) fn pause(&mut self) {
        self.paused_until = Some(Instant::now() + PAUSE);
    }
}
