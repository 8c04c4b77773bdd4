//! The quota: how much room there is, and which files go when there is too little. Whole files go, the least recently
//! used first.

use rusqlite::{Connection, params};

use super::{
    index,
    store::{Filesystem, Store},
};

/// Part of the quota that one segment may take.
const SEGMENTS_IN_QUOTA: u64 = 16;
const SEGMENT_MAX: u64 = 64 << 20;
const SLACK_MAX: u64 = 8 << 20;
/// A blob from this size on has a file of its own, in bytes.
const BLOB_FILE_MIN: u64 = 1 << 20;

/// Room on disk, as of now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Bytes that the whole cache may take.
    pub(super) quota: u64,
    /// Bytes in its directory that are not data files.
    pub(super) other: u64,
    /// Bytes of the filesystem that must stay free.
    pub(super) min_free: u64,
    pub(super) filesystem: Filesystem,
}

impl Room {
    pub(super) fn now(store: &Store, connection: &Connection) -> rusqlite::Result<Self> {
        let filesystem = store
            .filesystem()
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        Ok(Self {
            quota: store.quota(index::meta(connection, "quota")?),
            other: store.other_bytes().0,
            min_free: store.min_free.bytes(filesystem.total),
            filesystem,
        })
    }

    /// As if the filesystem had all the space there is.
    pub(super) const fn of_quota_alone(mut self) -> Self {
        self.filesystem.free = u64::MAX;
        self
    }

    /// Length of a new segment in bytes, for a chunk of `chunk` bytes.
    pub(super) fn segment_length(&self, chunk: u64) -> u64 {
        (self.quota / SEGMENTS_IN_QUOTA).min(SEGMENT_MAX).max(chunk)
    }

    /// Whether a blob has a file of its own. A very large one lives in segments, so that a part of it can be evicted.
    pub(super) const fn has_blob_file(&self, blob: u64) -> bool {
        blob >= BLOB_FILE_MIN && blob <= self.quota / 4
    }

    /// Room for what grows until the next look, in bytes: the index's log, directories, this process's own log.
    fn slack(&self) -> u64 {
        (self.quota / SEGMENTS_IN_QUOTA).min(SLACK_MAX)
    }

    /// Most bytes of data files, were all of the `data` bytes there are evicted.
    pub(super) fn capacity(&self, data: u64) -> u64 {
        let by_quota = self.quota.saturating_sub(self.other + self.slack());
        let by_disk = (self.filesystem.free.saturating_add(data)).saturating_sub(self.min_free);
        by_quota.min(by_disk)
    }

    /// Bytes that fit beside the `data` bytes there are.
    pub(super) fn spare(&self, data: u64) -> u64 {
        // The index grows with what is fetched, and its log before that.
        let margin = (self.quota / 8).max((self.quota / 4).min(4 << 20));
        let taken = data + self.other + self.slack() + margin;
        let by_quota = self.quota.saturating_sub(taken);
        let by_disk = self.filesystem.free.saturating_sub(self.min_free);
        by_quota.min(by_disk)
    }

    /// Most bytes of chunks that are written at once.
    pub(super) fn batch(&self) -> u64 {
        (self.quota / SEGMENTS_IN_QUOTA).min(32 << 20)
    }
}

/// Takes files out of the index until `need` more bytes fit; the caller unlinks them once the transaction is committed.
/// `None` when even an empty cache would have no room. `uses` gives the last use of open files, by number.
pub(super) fn make_room(
    connection: &Connection,
    room: &Room,
    need: u64,
    uses: impl FnOnce() -> Vec<(u64, u64)>,
) -> rusqlite::Result<Option<Vec<Victim>>> {
    let mut data = index::data_bytes(connection)?;
    let mut free = room.filesystem.free;
    let fits = |data: u64, free: u64| {
        let taken = data.saturating_add(room.other).saturating_add(room.slack());
        taken.saturating_add(need) <= room.quota && free >= need.saturating_add(room.min_free)
    };
    let mut victims = Vec::new();
    if fits(data, free) {
        return Ok(Some(victims));
    }
    touch(connection, &uses())?;
    let mut oldest =
        connection.prepare_cached("SELECT number, bytes FROM files ORDER BY used_at, number")?;
    let mut rows = oldest.query([])?;
    while !fits(data, free) {
        let Some(row) = rows.next()? else {
            return Ok(None);
        };
        let victim = victim(row)?;
        data = data.saturating_sub(victim.bytes);
        // Somebody may still hold the file, but it is freed as soon as nobody does.
        free = free.saturating_add(victim.bytes);
        victims.push(victim);
    }
    drop(rows);
    for victim in &victims {
        delete_file(connection, victim.number)?;
    }
    Ok(Some(victims))
}

/// Takes all files out of the index.
pub(super) fn evict_all(connection: &Connection) -> rusqlite::Result<Vec<Victim>> {
    let victims = connection
        .prepare_cached("SELECT number, bytes FROM files")?
        .query_map([], victim)?
        .collect::<rusqlite::Result<Vec<_>>>()?;
    connection.execute_batch("DELETE FROM files")?;
    Ok(victims)
}

fn victim(row: &rusqlite::Row<'_>) -> rusqlite::Result<Victim> {
    Ok(Victim {
        number: row.get::<_, i64>(0)?.unsigned_abs(),
        bytes: row.get::<_, i64>(1)?.unsigned_abs(),
    })
}

/// A file that was taken out of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) number: u64,
    pub(super) bytes: u64,
}

pub(super) fn delete_file(connection: &Connection, number: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM files WHERE number = ?")?
        .execute([index::signed(number)?])?;
    Ok(())
}

/// Notes when files were last used.
pub(super) fn touch(connection: &Connection, uses: &[(u64, u64)]) -> rusqlite::Result<()> {
    for (number, used_at) in uses {
        connection
            .prepare_cached("UPDATE files SET used_at = ?2 WHERE number = ?1 AND used_at < ?2")?
            .execute(params![index::signed(*number)?, index::signed(*used_at)?])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connection(files: &[(u64, u64)]) -> Connection {
        let connection = index::in_memory(usize::MAX);
        for (bytes, used_at) in files {
            connection
                .execute(
                    "INSERT INTO files (length, bytes, used_at) VALUES (?1, ?1, ?2)",
                    params![
                        index::signed(*bytes).unwrap(),
                        index::signed(*used_at).unwrap()
                    ],
                )
                .unwrap();
        }
        connection
    }

    fn room(quota: u64, other: u64, min_free: u64, free: u64) -> Room {
        Room {
            quota,
            other,
            min_free,
            filesystem: Filesystem { total: 1000, free },
        }
    }

    fn numbers(victims: Option<Vec<Victim>>) -> Option<Vec<u64>> {
        victims.map(|victims| victims.iter().map(|victim| victim.number).collect())
    }

    /// A file counts its bytes and a block; of the quota, a sixteenth is slack.
    const MIB: u64 = 1 << 20;

    #[test]
    fn the_least_recently_used_goes_first() {
        let connection = connection(&[(10 * MIB, 3), (10 * MIB, 1), (10 * MIB, 2)]);
        let quota = room(40 * MIB, 0, 0, 1000 * MIB);
        let none = make_room(&connection, &quota, 7 * MIB, Vec::new).unwrap();
        assert_eq!(numbers(none), Some(vec![]));
        let one = make_room(&connection, &quota, 8 * MIB, || vec![(2, 9)]).unwrap();
        assert_eq!(numbers(one), Some(vec![3]));
        assert_eq!(index::data_bytes(&connection).unwrap(), 20 * MIB + 2 * 4096);
    }

    #[test]
    fn free_space_and_other_files_count() {
        let connection = connection(&[(10 * MIB, 1), (10 * MIB, 2)]);
        let tight = room(1000 * MIB, 0, 20 * MIB, 15 * MIB);
        let one = make_room(&connection, &tight, 5 * MIB, Vec::new).unwrap();
        assert_eq!(numbers(one), Some(vec![1]));
        let index_full = room(32 * MIB, 12 * MIB, 0, 1000 * MIB);
        let other = make_room(&connection, &index_full, 10 * MIB, Vec::new).unwrap();
        assert_eq!(numbers(other), Some(vec![2]));
        let nothing = make_room(&connection, &index_full, 19 * MIB, Vec::new).unwrap();
        assert_eq!(nothing, None);
    }

    #[test]
    fn huge_blobs_live_in_segments() {
        let room = room(64 << 20, 0, 0, 0);
        assert!(!room.has_blob_file((1 << 20) - 1));
        assert!(room.has_blob_file(1 << 20));
        assert!(!room.has_blob_file(17 << 20));
        assert_eq!(room.segment_length(1), 4 << 20);
        assert_eq!(room.segment_length(9 << 20), 9 << 20);
    }
}
