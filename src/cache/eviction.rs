//! Which files go when there is too little room: S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023)
//! over chunks, with data files as the places in its queues.
//!
//! - The main queue is filled first, and by what was evicted not long ago and comes again (`ghosts`). All else comes to probation, a
//!   tenth of the cache, which goes first as long as it has more than half of that: what is read once passes through it, however much it is.
//! - Of a file at the head of its queue, the chunks that were read more than once stay. Where they are most of it, or it is a blob's own
//!   file, it goes to the end of the main queue as it is; else they are copied there. What stays in the main queue has to be read again
//!   to stay once more.

use rusqlite::{Connection, params};

use super::{
    index::{self, FileRow, Location},
    space::Room,
    uses::READ_AGAIN,
};
use crate::model::Digest;

/// The queue of a file, as the index numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Queue {
    Probation = 0,
    Main = 1,
}

/// Files that are looked at for one reservation, at the most: those behind them go whatever was read of them.
pub(super) const MAX_VISITS: u32 = 4096;
/// Files and chunks that are looked at in one transaction, at the most.
const FILES_AT_ONCE: u32 = 64;
const CHUNKS_AT_ONCE: usize = 4096;
/// Bytes that are copied at once: they are in memory.
pub(super) const COPIED_AT_ONCE: u64 = 8 << 20;
/// Ghosts that are remembered, even of a cache that has fewer chunks.
const MIN_GHOSTS: u64 = 1000;
/// Of a ghost's key, in bytes.
const GHOST: usize = 8;

/// A file that was taken out of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) number: u64,
    pub(super) bytes: u64,
}

/// What was evicted in one transaction.
#[derive(Debug, Default)]
pub(super) struct Evicted {
    pub(super) victims: Vec<Victim>,
    /// Chunks of the victims that are to be copied before those go.
    pub(super) kept: Vec<Kept>,
    /// More is to go in another transaction, so that this one does not hold up others.
    pub(super) unfinished: bool,
    /// Nothing went, since even an empty cache would have too little room.
    pub(super) not_enough: bool,
}

/// How much may be done for what was read again.
#[derive(Debug, Clone, Copy)]
pub(super) struct Means {
    /// Bytes that may be copied.
    pub(super) copies: u64,
    /// Files that may be looked at. Those behind them go whatever was read of them.
    pub(super) visits: u32,
}

/// A chunk of a file that goes, and the file.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) digest: Digest,
    pub(super) location: Location,
    pub(super) size: u64,
    pub(super) file: FileRow,
    /// How often it will have been read, to begin with.
    pub(super) reads: u32,
}

struct Oldest {
    row: FileRow,
    queue: Queue,
    is_blob: bool,
}

/// Takes files out of the index until `need` more bytes fit. `before` brings the index up to date, where something is to go.
pub(super) fn make_room(
    connection: &Connection,
    room: &Room,
    need: u64,
    means: Means,
    before: impl FnOnce() -> rusqlite::Result<()>,
) -> rusqlite::Result<Evicted> {
    let mut evicted = Evicted::default();
    let mut data = index::data_bytes(connection)?;
    if room.fits(data, 0, need) {
        return Ok(evicted);
    }
    if !room.fits(0, data, need) {
        evicted.not_enough = true;
        return Ok(evicted);
    }
    before()?;
    // Some room more, so that not each reservation evicts.
    let wanted = need.saturating_add(room.margin(data));
    let (mut freed, mut copied, mut visits, mut chunks) = (0_u64, 0_u64, 0, 0);
    while !room.fits(data, freed, wanted.saturating_add(copied)) {
        let Some(file) = next(connection, room, data, need)? else {
            break;
        };
        if visits == FILES_AT_ONCE || chunks > CHUNKS_AT_ONCE || copied > COPIED_AT_ONCE {
            evicted.unfinished = true;
            break;
        }
        visits += 1;
        let number = file.row.number;
        let read = match visits <= means.visits {
            true => read_again(connection, &file)?,
            false => Vec::new(),
        };
        chunks += read.len();
        let read_bytes = bytes_of(&read);
        let is_too_much = copied.saturating_add(read_bytes) > means.copies;
        let stays = file.is_blob || read_bytes >= file.row.bytes / 2;
        if !read.is_empty() && (stays || (is_too_much && file.queue == Queue::Main)) {
            stay(connection, number)?;
            continue;
        }
        let bytes = file.row.bytes;
        let kept = if is_too_much { Vec::new() } else { read };
        chunks += haunt(connection, &file, kept.is_empty())?;
        delete_file(connection, number)?;
        copied = copied.saturating_add(bytes_of(&kept));
        evicted.kept.extend(kept);
        evicted.victims.push(Victim { number, bytes });
        data = index::data_bytes(connection)?;
        // Somebody may still hold the file, but it is freed as soon as nobody does.
        freed = freed.saturating_add(bytes);
    }
    Ok(evicted)
}

/// As their rows say, which may be damaged.
fn bytes_of(chunks: &[Kept]) -> u64 {
    let sizes = chunks.iter().map(|chunk| chunk.size);
    sizes.fold(0, u64::saturating_add)
}

/// The file that is looked at next.
fn next(
    connection: &Connection,
    room: &Room,
    data: u64,
    need: u64,
) -> rusqlite::Result<Option<Oldest>> {
    let probation = data.saturating_sub(index::sum(connection, "main_bytes")?);
    // Between half of its share and all of it, so that little steps of either queue do not have the other one give way.
    let is_above = probation.saturating_add(need) > room.probation(data) / 2;
    let [first, second] = match probation > 0 && is_above {
        true => [Queue::Probation, Queue::Main],
        false => [Queue::Main, Queue::Probation],
    };
    match oldest(connection, first)? {
        Some(file) => Ok(Some(file)),
        None => oldest(connection, second),
    }
}

/// The file at the head of a queue.
fn oldest(connection: &Connection, queue: Queue) -> rusqlite::Result<Option<Oldest>> {
    let mut statement = connection.prepare_cached(
        "SELECT number, length, bytes, stamp, blob IS NOT NULL FROM files WHERE queue = ? \
         ORDER BY entered_at, number LIMIT 1",
    )?;
    let mut rows = statement.query([queue as i64])?;
    let Some(row) = rows.next()? else {
        return Ok(None);
    };
    Ok(Some(Oldest {
        row: index::file_row(row)?,
        queue,
        is_blob: row.get(4)?,
    }))
}

/// The chunks of a file that were read more than once since it came to its queue.
fn read_again(connection: &Connection, file: &Oldest) -> rusqlite::Result<Vec<Kept>> {
    let Oldest {
        row: file, queue, ..
    } = file;
    connection
        .prepare_cached(
            "SELECT digest, offset, size, reads FROM chunks WHERE file = ? AND reads >= ?",
        )?
        .query_map(params![index::signed(file.number)?, READ_AGAIN], |row| {
            Ok(Kept {
                digest: index::digest(row, 0)?,
                location: Location {
                    file: file.number,
                    offset: index::unsigned(row, 1)?,
                },
                size: index::unsigned(row, 2)?,
                file: file.clone(),
                reads: match queue {
                    Queue::Probation => 1,
                    Queue::Main => row.get::<_, u32>(3)? - 1,
                },
            })
        })?
        .collect()
}

/// Moves a file to the end of the main queue. To stay once more, each of its chunks has to be read again.
fn stay(connection: &Connection, number: u64) -> rusqlite::Result<()> {
    let number = index::signed(number)?;
    connection
        .prepare_cached(
            "UPDATE chunks SET reads = CASE (SELECT queue FROM files WHERE number = ?1) \
             WHEN 0 THEN 1 ELSE reads - 1 END WHERE file = ?1 AND reads >= ?2",
        )?
        .execute(params![number, READ_AGAIN])?;
    let entered_at = index::entry(connection, Queue::Main)?;
    connection
        .prepare_cached("UPDATE files SET queue = 1, entered_at = ? WHERE number = ?")?
        .execute(params![entered_at, number])?;
    Ok(())
}

/// Remembers what goes, all of it or what was not read again, and says how much that is.
fn haunt(connection: &Connection, file: &Oldest, all: bool) -> rusqlite::Result<usize> {
    let number = index::signed(file.row.number)?;
    let generation = index::meta(connection, "ghost_generation")?.unwrap_or_default();
    let below = if all { u8::MAX } else { READ_AGAIN };
    let added = match file.is_blob {
        true => connection
            .prepare_cached(
                "INSERT OR REPLACE INTO ghosts SELECT substr(blob, 1, 8), ?2 FROM files \
                 WHERE number = ?1",
            )?
            .execute(params![number, index::signed(generation)?])?,
        false => connection
            .prepare_cached(
                "INSERT OR REPLACE INTO ghosts SELECT substr(digest, 1, 8), ?2 FROM chunks \
                 WHERE file = ?1 AND reads < ?3",
            )?
            .execute(params![number, index::signed(generation)?, below])?,
    };
    let count = index::meta(connection, "ghosts")?.unwrap_or_default() + added as u64;
    // Two generations together are as many as there are chunks.
    if count < index::sum(connection, "chunks")?.max(MIN_GHOSTS) / 2 {
        index::set_meta(connection, "ghosts", count)?;
        return Ok(added);
    }
    connection
        .prepare_cached("DELETE FROM ghosts WHERE generation < ?")?
        .execute([index::signed(generation)?])?;
    index::set_meta(connection, "ghosts", 0)?;
    index::set_meta(connection, "ghost_generation", generation + 1)?;
    Ok(added)
}

/// The queue for something new: a chunk, or a blob that has a file of its own. `ahead`: bytes that are in no row yet.
pub(super) fn queue_of(
    connection: &Connection,
    room: &Room,
    digest: Digest,
    ahead: u64,
) -> rusqlite::Result<Queue> {
    let data = index::data_bytes(connection)?;
    // Not each file that goes from the main queue is to let something in.
    let main = index::sum(connection, "main_bytes")? + ahead + room.margin(data);
    if main < room.main(data) {
        return Ok(Queue::Main);
    }
    let known = connection
        .prepare_cached("SELECT 1 FROM ghosts WHERE key = ?")?
        .exists([&digest.as_bytes()[..GHOST]])?;
    Ok(match known {
        true => Queue::Main,
        false => Queue::Probation,
    })
}

/// Takes files out of the index, whatever they have: some of them, and all in the end.
pub(super) fn evict_any(connection: &Connection) -> rusqlite::Result<Evicted> {
    let victims = connection
        .prepare_cached("SELECT number, bytes FROM files LIMIT ?")?
        .query_map([FILES_AT_ONCE], |row| {
            Ok(Victim {
                number: index::unsigned(row, 0)?,
                bytes: index::unsigned(row, 1)?,
            })
        })?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    for victim in &victims {
        delete_file(connection, victim.number)?;
    }
    Ok(Evicted {
        victims,
        unfinished: index::sum(connection, "files")? > 0,
        ..Evicted::default()
    })
}

pub(super) fn delete_file(connection: &Connection, number: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM files WHERE number = ?")?
        .execute([index::signed(number)?])?;
    Ok(())
}

/// Brings to the index what readers came for.
pub(super) fn note_uses(
    connection: &Connection,
    uses: impl IntoIterator<Item = (Digest, u8)>,
) -> rusqlite::Result<()> {
    for (chunk, count) in uses {
        connection
            .prepare_cached("UPDATE chunks SET reads = min(reads + ?2, 4) WHERE digest = ?1")?
            .execute(params![chunk.as_bytes(), count])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::{super::store::Filesystem, *};

    const MIB: u64 = 1 << 20;
    const CHUNK: u64 = MIB / 4;
    const CHUNKS: u64 = 4;
    const ANY: Means = Means {
        copies: u64::MAX,
        visits: u32::MAX,
    };
    const QUOTA: u64 = 256 * MIB;

    fn room(quota: u64, other: u64, min_free: u64, free: u64) -> Room {
        Room {
            quota,
            other,
            log: 0,
            condemned: 0,
            late: 0,
            min_free,
            filesystem: Filesystem {
                total: 1 << 40,
                free,
            },
            size: quota,
        }
    }

    /// A cache without files: segments of four chunks, each of which is full as soon as it is there.
    struct Model {
        connection: Connection,
        room: Room,
    }

    impl Model {
        fn new(quota: u64) -> Self {
            Self {
                connection: index::in_memory(usize::MAX),
                room: room(quota, 0, 0, 1 << 40),
            }
        }

        fn chunk(segment: u64, number: u64) -> Digest {
            Digest::of(&[segment.to_le_bytes(), number.to_le_bytes()].concat())
        }

        fn insert(&self, segment: u64, queue: Queue, blob: Option<Digest>) {
            let row = params![
                blob.as_ref().map(Digest::as_bytes),
                index::signed(CHUNKS * CHUNK).unwrap(),
                queue as i64,
                index::now_nanos()
            ];
            let insert = "INSERT INTO files (blob, length, bytes, used_at, queue, entered_at) \
                VALUES (?1, ?2, ?2, 0, ?3, ?4)";
            self.connection.execute(insert, row).unwrap();
            let file = self.connection.last_insert_rowid().unsigned_abs();
            for number in 0..CHUNKS {
                let offset = number * CHUNK;
                let location = Location { file, offset };
                let chunk = Self::chunk(segment, number);
                index::insert_chunk(&self.connection, chunk, location, CHUNK, 1).unwrap();
            }
        }

        /// Fetches a segment. What is evicted for it and is used stays, as the writer would have it.
        fn fetch(&self, segment: u64) {
            let mut kept = self.make_room(CHUNKS * CHUNK);
            let queue = queue_of(&self.connection, &self.room, Self::chunk(segment, 0), 0);
            self.insert(segment, queue.unwrap(), None);
            while !kept.is_empty() {
                let batch: Vec<_> = kept.drain(..kept.len().min(4)).collect();
                let insert = "INSERT INTO files (length, bytes, used_at, queue, entered_at) \
                    VALUES (0, ?, 0, 1, ?)";
                let row = params![
                    index::signed(batch.len() as u64 * CHUNK).unwrap(),
                    index::now_nanos()
                ];
                self.connection.execute(insert, row).unwrap();
                let file = self.connection.last_insert_rowid().unsigned_abs();
                for (number, (chunk, reads)) in batch.into_iter().enumerate() {
                    let offset = number as u64 * CHUNK;
                    let location = Location { file, offset };
                    index::insert_chunk(&self.connection, chunk, location, CHUNK, reads).unwrap();
                }
            }
        }

        fn make_room(&self, need: u64) -> Vec<(Digest, u32)> {
            let mut kept = Vec::new();
            loop {
                let evicted = make_room(&self.connection, &self.room, need, ANY, || Ok(()));
                let evicted = evicted.unwrap();
                assert!(!evicted.not_enough);
                kept.extend(evicted.kept.iter().map(|kept| (kept.digest, kept.reads)));
                if !evicted.unfinished {
                    return kept;
                }
            }
        }

        fn read(&self, segment: u64, numbers: impl IntoIterator<Item = u64>) {
            let uses = numbers.into_iter().map(|n| (Self::chunk(segment, n), 1));
            note_uses(&self.connection, uses).unwrap();
        }

        /// How many chunks of a segment are there.
        fn there(&self, segment: u64) -> usize {
            let numbers = 0..CHUNKS;
            let found = numbers.filter(|number| {
                let chunk = Self::chunk(segment, *number);
                index::chunk(&self.connection, chunk).unwrap().is_some()
            });
            found.count()
        }

        fn all_there(&self, segments: impl IntoIterator<Item = u64>) -> usize {
            segments.into_iter().map(|s| self.there(s)).sum()
        }

        fn data(&self) -> u64 {
            index::data_bytes(&self.connection).unwrap()
        }
    }

    /// Also what nobody was seen to read again: the kernel's own cache tells nothing of its readers.
    #[test]
    fn what_came_first_outlives_a_scan() {
        let cache = Model::new(QUOTA);
        for segment in 0..50 {
            cache.fetch(segment);
        }
        for segment in 1000..1800 {
            cache.fetch(segment);
        }
        assert_eq!(cache.all_there(0..50), 50 * 4);
        assert!(cache.data() > QUOTA * 3 / 4, "it is well filled");
    }

    #[test]
    fn what_is_read_again_outlives_a_scan_wherever_it_came() {
        let cache = Model::new(QUOTA);
        for segment in 0..400 {
            cache.fetch(segment);
        }
        // In probation now: half a segment, a part of one, and all of one.
        cache.read(399, [0, 1]);
        cache.read(398, [2]);
        cache.read(397, 0..4);
        for segment in 1000..1800 {
            cache.fetch(segment);
        }
        assert_eq!([397, 398, 399].map(|s| cache.there(s)), [4, 1, 4]);
        assert_eq!(cache.there(396), 0);
    }

    /// Those who use something else from now on are not shut out by what was there before.
    #[test]
    fn what_comes_again_soon_is_kept() {
        let cache = Model::new(QUOTA);
        for segment in 0..400 {
            cache.fetch(segment);
        }
        // More than probation holds, so that each is gone when it comes again.
        for _ in 0..4 {
            for segment in 500..600 {
                match cache.there(segment) {
                    0 => cache.fetch(segment),
                    _ => cache.read(segment, 0..CHUNKS),
                }
            }
        }
        assert!(cache.all_there(500..600) > 95 * 4, "the new ones are kept");
        for segment in 1000..1800 {
            cache.fetch(segment);
        }
        assert!(cache.all_there(500..600) > 95 * 4, "and outlive a scan");
    }

    #[test]
    fn a_blobs_own_file_stays_as_a_whole() {
        let cache = Model::new(QUOTA);
        for segment in 0..400 {
            cache.fetch(segment);
        }
        let blob = Digest::of(b"blob");
        cache.make_room(CHUNKS * CHUNK);
        cache.insert(500, Queue::Probation, Some(blob));
        cache.read(500, [3]);
        for segment in 1000..1800 {
            cache.fetch(segment);
        }
        assert_eq!(cache.there(500), 4);
        let file = index::blob_file(&cache.connection, blob).unwrap();
        assert!(file.is_some());
    }

    #[test]
    fn all_of_it_goes_in_the_end() {
        let cache = Model::new(QUOTA);
        for segment in 0..200 {
            cache.fetch(segment);
            cache.read(segment, 0..4);
        }
        // All are used: none would go, were they not to be read again.
        cache.make_room(100 * MIB);
        assert!(cache.data() < QUOTA - 100 * MIB);
        // Nothing goes where that would not be enough.
        let before = cache.data();
        let nothing = room(32 * MIB, 30 * MIB, 0, 1 << 40);
        let evicted = make_room(&cache.connection, &nothing, 19 * MIB, ANY, || Ok(())).unwrap();
        assert!(evicted.not_enough && evicted.victims.is_empty());
        assert_eq!(cache.data(), before);
        while evict_any(&cache.connection).unwrap().unfinished {}
        assert_eq!(cache.data(), 0);
    }

    /// Without means to copy, what was read again goes from probation, and is known when it comes again.
    #[test]
    fn copies_are_bounded() {
        let cache = Model::new(QUOTA);
        for segment in 0..400 {
            cache.fetch(segment);
        }
        cache.read(399, [2]);
        let none = Means { copies: 0, ..ANY };
        let need = 40 * MIB;
        let evicted = make_room(&cache.connection, &cache.room, need, none, || Ok(()));
        assert!(evicted.unwrap().kept.is_empty());
        assert_eq!(cache.there(399), 0);
        let queue = queue_of(&cache.connection, &cache.room, Model::chunk(399, 2), QUOTA);
        assert_eq!(queue.unwrap(), Queue::Main);
    }

    #[test]
    fn free_space_counts_and_what_is_still_open_does_not() {
        let cache = Model::new(QUOTA);
        for segment in 0..20 {
            cache.fetch(segment);
        }
        let tight = room(QUOTA, 0, 20 * MIB, 15 * MIB);
        let evicted = |room: &Room| {
            let evicted = make_room(&cache.connection, room, 5 * MIB, ANY, || Ok(())).unwrap();
            evicted.victims.len()
        };
        assert!(!tight.grants(cache.data(), 5 * MIB));
        assert!((10..20).contains(&evicted(&tight)));
        // They will be free in a moment, and nothing more goes for them.
        let held = Room {
            condemned: 20 * MIB,
            ..tight
        };
        assert_eq!(evicted(&held), 0);
        assert!(!held.grants(cache.data(), 5 * MIB));
    }

    #[test]
    fn ghosts_are_bounded() {
        let cache = Model::new(QUOTA);
        for segment in 0..3000 {
            cache.fetch(segment);
        }
        let count = "SELECT count(*) FROM ghosts";
        let count: i64 = cache
            .connection
            .query_row(count, [], |row| row.get(0))
            .unwrap();
        assert!((500..2000).contains(&count), "{count}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Whatever is read: the quota holds, the sums are right, and each chunk is in one place.
        #[test]
        fn the_quota_holds(steps in proptest::collection::vec((0..120_u64, 0..16_u8), 1..400)) {
            let cache = Model::new(64 * MIB);
            for (segment, reads) in steps {
                if cache.there(segment) < 4 {
                    cache.connection.execute(
                        "DELETE FROM chunks WHERE digest IN (?1, ?2, ?3, ?4)",
                        [0, 1, 2, 3].map(|n| *Model::chunk(segment, n).as_bytes()),
                    ).unwrap();
                    cache.fetch(segment);
                }
                cache.read(segment, (0..CHUNKS).filter(|n| reads & (1 << n) > 0));
                prop_assert!(cache.data() <= 64 * MIB);
            }
            let by_queue: HashMap<i64, i64> = cache.connection
                .prepare("SELECT queue, sum(bytes + 4096) FROM files GROUP BY queue").unwrap()
                .query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap()
                .collect::<Result<_, _>>().unwrap();
            let main = index::sum(&cache.connection, "main_bytes").unwrap();
            prop_assert_eq!(main, by_queue.get(&1).copied().unwrap_or_default().unsigned_abs());
            prop_assert_eq!(cache.data(), by_queue.values().sum::<i64>().unsigned_abs());
        }
    }
}
