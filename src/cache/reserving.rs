//! From chunks that came to places for them: room is reserved in the index, which all processes share, and files are evicted for it.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    CacheError,
    eviction::{self, Evicted, MAX_VISITS, Means, Queue},
    index::{self, LOG_AT_REST},
    placing::Places,
    ranges::Ranges,
    space::Room,
    store::{IfSlow, NewChunk, Pending},
    writer::{Writer, insert_written},
    writing::{Plan, Planned},
};

/// Whoever is to keep what it fetches waits so long for other processes to close what they have open of evicted files.
const HELD: Duration = Duration::from_secs(20);
/// Evictions for one batch, at the most: from then on, what is used goes too.
const MAX_TURNS: u32 = 256;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What became of a reservation.
enum Reserved {
    Placed(Plan),
    /// Files went. It is to be tried again once they are gone.
    Evicted(Evicted),
    /// Enough was evicted, and other processes have it open.
    Held,
    /// Even an empty cache would have too little room.
    NoRoom,
}

impl Writer {
    pub(super) fn chunks(&mut self, chunks: Vec<NewChunk>) {
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
        // What is used comes first, and may have waited.
        let kept = std::mem::take(&mut self.kept);
        left.splice(0..0, kept);
        let mut held_since = None;
        let mut turns = 0;
        while !left.is_empty() {
            let visits = if turns < MAX_TURNS { MAX_VISITS } else { 0 };
            match self.reserve(&mut left, visits) {
                Ok(Reserved::Placed(plan)) => {
                    held_since = None;
                    let are_copies = plan.chunks.iter().any(|one| one.chunk.stays.is_some());
                    self.write(plan);
                    // Other processes look for copies, whose rows went with their file. Blob files are open, and so are their locks, until they
                    // are committed.
                    if are_copies || self.blob_files.len() >= self.store.files.most_written() / 2 {
                        self.commit();
                    }
                }
                Ok(Reserved::Evicted(evicted)) => {
                    turns += 1;
                    let kept = self.evict(evicted);
                    left.splice(0..0, kept);
                }
                Ok(Reserved::Held) => {
                    let since = *held_since.get_or_insert_with(Instant::now);
                    // Some of it may be open here.
                    self.commit();
                    self.close_gone();
                    // The log may be what takes the room.
                    if self.store.index.log_len() > LOG_AT_REST && !self.syncer.is_busy() {
                        self.sync();
                    }
                    self.sync_if_due();
                    if !self.store.keeps || since.elapsed() >= HELD {
                        tracing::debug!(dir = ?self.store.dir, "evicted files are open elsewhere");
                        self.put_off(left);
                        return;
                    }
                    thread::sleep(LOOK_EVERY);
                }
                Ok(Reserved::NoRoom) => {
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
                    self.put_off(left);
                    return;
                }
            }
        }
    }

    /// Gives up all but copies of what is used, which are tried again.
    fn put_off(&mut self, chunks: Vec<NewChunk>) {
        let (mut kept, given_up): (Vec<_>, _) =
            chunks.into_iter().partition(|chunk| chunk.stays.is_some());
        for chunk in &mut kept {
            // Nobody waits for them.
            chunk.queued = None;
        }
        self.kept = kept;
        self.give_up(given_up);
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

    /// Reserves room for as many of the chunks as go into one batch and takes those out of `left`, or evicts for them.
    fn reserve(&mut self, left: &mut Vec<NewChunk>, visits: u32) -> Result<Reserved, CacheError> {
        let store = Arc::clone(&self.store);
        let mut held = store.files.reap();
        if held.passing > 0 {
            self.close_gone();
            held = store.files.reap();
        }
        let late = self.late();
        let are_copies = left.iter().all(|chunk| chunk.stays.is_some());
        let means = Means {
            copies: self.copies_beside(left),
            visits,
        };
        self.growing.expire();
        let segments = self
            .segments
            .each_ref()
            .map(|segment| segment.as_ref().map(|segment| segment.number));
        let blob_files = self.blob_files.values();
        let locked = blob_files.map(|open| open.file.number()).collect();
        let mut taken = 0;
        let uncommitted = &self.uncommitted;
        let patience = self.patience();
        let decided = store
            .index
            .write_within(patience, &mut self.connection, |connection| {
                let room = Room {
                    late,
                    ..Room::now(&store, connection, held)?
                };
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
                if are_copies && !room.fits(index::data_bytes(connection)?, 0, need) {
                    // Room was made for them once.
                    return Ok(Err(Reserved::Held));
                }
                let made = eviction::make_room(connection, &room, need, means, || {
                    // What was just written is known when it goes, and so is what is read at this moment.
                    insert_written(connection, &store, uncommitted)?;
                    eviction::note_uses(connection, store.uses())
                })?;
                if made.unfinished || !made.victims.is_empty() {
                    return Ok(Err(Reserved::Evicted(made)));
                }
                if made.not_enough {
                    return Ok(Err(Reserved::NoRoom));
                }
                if !room.grants(index::data_bytes(connection)?, need) {
                    return Ok(Err(Reserved::Held));
                }
                // They may have been evicted, or moved to another queue.
                let row = |number: Option<u64>, queue| {
                    let found = number.map(|number| index::file_in(connection, number, queue));
                    found.transpose().map(Option::flatten)
                };
                let [probation, main] = segments;
                let segments = [row(probation, Queue::Probation)?, row(main, Queue::Main)?];
                let mut plan = Places {
                    connection,
                    store: &store,
                    room,
                    segments: segments.each_ref().map(|row| row.as_ref().map(Into::into)),
                    grown: HashMap::new(),
                    locked,
                    growing: &mut self.growing,
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
                Ok(Ok((places, plan.made)))
            })?;
        let (places, made) = match decided {
            Ok(placed) => placed,
            Err(other) => return Ok(other),
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
        Ok(Reserved::Placed(Plan { chunks, made }))
    }
}
