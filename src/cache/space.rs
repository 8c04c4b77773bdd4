//! The quota: how much room there is, and how it is shared out.

use rusqlite::{Connection, params};

use super::{
    condemned::Held,
    index,
    store::{Filesystem, Store},
};

/// Parts of the quota that slack and batches have.
const PARTS: u64 = 16;
/// Part of the room that one segment may take, and its bounds in bytes.
const SEGMENTS: u64 = 128;
const SEGMENT_MIN: u64 = 1 << 20;
const SEGMENT_MAX: u64 = 16 << 20;
const SLACK_MIN: u64 = 4 << 20;
const SLACK_MAX: u64 = 8 << 20;
/// What one reservation and what it writes add to the index's log, in bytes, where it evicts little.
const LOGGED: u64 = 512 << 10;
const MARGIN_MAX: u64 = 64 << 20;
/// Part of the room that the probation queue has.
const PROBATION: u64 = 10;
/// A blob from this size on has a file of its own, in bytes.
const BLOB_FILE_MIN: u64 = 1 << 20;

/// Room on disk, as of now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Bytes that the whole cache may take.
    pub(super) quota: u64,
    /// Bytes in its directory that are not data files, and those of evicted files that somebody does not close.
    pub(super) other: u64,
    /// Bytes of the index's log.
    pub(super) log: u64,
    /// Bytes of evicted files that will be free in a moment.
    pub(super) condemned: u64,
    /// Bytes of files that were evicted and unlinked, and are not free yet as the filesystem says.
    pub(super) late: u64,
    /// Bytes of the filesystem that must stay free.
    pub(super) min_free: u64,
    pub(super) filesystem: Filesystem,
    /// The most bytes of data files, as of now.
    pub(super) size: u64,
}

impl Room {
    /// `held`: what evicted files take up.
    pub(super) fn now(
        store: &Store,
        connection: &Connection,
        held: Held,
    ) -> rusqlite::Result<Self> {
        let filesystem = store
            .filesystem()
            .map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
        let others = store.others();
        let mut room = Self {
            quota: store.quota(index::meta(connection, "quota")?),
            other: others.staying + held.staying,
            log: others.passing,
            condemned: held.passing,
            late: 0,
            min_free: store.min_free.bytes(filesystem.total),
            filesystem,
            size: 0,
        };
        room.size = room.capacity(index::data_bytes(connection)?);
        Ok(room)
    }

    /// As if the filesystem had all the space there is.
    pub(super) const fn of_quota_alone(mut self) -> Self {
        self.filesystem.free = u64::MAX;
        self
    }

    /// Length of a new segment in bytes, for a chunk of `chunk` bytes, beside `data`.
    pub(super) fn segment_length(&self, data: u64, chunk: u64) -> u64 {
        (self.capacity(data) / SEGMENTS)
            .clamp(SEGMENT_MIN, SEGMENT_MAX)
            .max(chunk)
    }

    /// Whether a blob has a file of its own. A very large one lives in segments, so that a part of it can be evicted.
    pub(super) const fn has_blob_file(&self, blob: u64) -> bool {
        blob >= BLOB_FILE_MIN && blob <= self.size / 4
    }

    /// Most bytes of data files, were all of the `data` bytes there are evicted.
    pub(super) fn capacity(&self, data: u64) -> u64 {
        let by_quota = self.quota.saturating_sub(self.other + self.slack());
        let evicted = data.saturating_add(self.condemned);
        let by_disk = (self.filesystem.free.saturating_add(evicted)).saturating_sub(self.min_free);
        by_quota.min(by_disk)
    }

    /// Bytes for the index's log, and for what else grows until the next look. Always the same: a log that is longer has nothing evicted, since it
    /// begins anew soon.
    fn slack(&self) -> u64 {
        (self.quota / PARTS).clamp(SLACK_MIN, SLACK_MAX)
    }

    /// Bytes that the probation queue has.
    pub(super) fn probation(&self, data: u64) -> u64 {
        self.capacity(data) / PROBATION
    }

    /// Bytes that the main queue has.
    pub(super) fn main(&self, data: u64) -> u64 {
        let capacity = self.capacity(data);
        capacity.saturating_sub(capacity / PROBATION + self.margin(data))
    }

    /// What is evicted at once beyond what is needed, in bytes: two segments at the least.
    pub(super) fn margin(&self, data: u64) -> u64 {
        let two = 2 * self.segment_length(data, 0);
        (self.capacity(data) / 64).min(MARGIN_MAX).max(two)
    }

    /// Whether `need` bytes fit beside `data`, once nobody has evicted files open. `freed`: bytes of the filesystem that are to be free then.
    pub(super) fn fits(&self, data: u64, freed: u64, need: u64) -> bool {
        let taken = data.saturating_add(self.other).saturating_add(self.slack());
        let free = (self.filesystem.free)
            .saturating_add(self.condemned)
            .saturating_add(self.late)
            .saturating_add(freed);
        taken.saturating_add(need) <= self.quota && free >= need.saturating_add(self.min_free)
    }

    /// Whether `need` bytes that fit may be written now: what is evicted and still open is not free.
    pub(super) fn grants(&self, data: u64, need: u64) -> bool {
        let taken = [self.other, self.log, LOGGED, self.condemned, need];
        let taken = taken.into_iter().fold(data, u64::saturating_add);
        taken <= self.quota && self.filesystem.free >= need.saturating_add(self.min_free)
    }

    /// Bytes that fit beside the `data` bytes there are.
    pub(super) fn spare(&self, data: u64) -> u64 {
        // The index grows with what is fetched.
        let margin = self.quota / 8;
        let taken = data + self.other + self.slack() + margin;
        let by_quota = self.quota.saturating_sub(taken);
        let by_disk = self.filesystem.free.saturating_sub(self.min_free);
        by_quota.min(by_disk)
    }

    /// Most bytes of chunks that are written at once.
    pub(super) fn batch(&self) -> u64 {
        (self.size / PARTS).min(32 << 20)
    }
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

    #[test]
    fn huge_blobs_live_in_segments() {
        let room = Room {
            quota: 64 << 20,
            other: 0,
            log: 0,
            condemned: 0,
            late: 0,
            min_free: 0,
            filesystem: Filesystem {
                total: 0,
                free: 1 << 50,
            },
            size: 64 << 20,
        };
        assert!(!room.has_blob_file((1 << 20) - 1));
        assert!(room.has_blob_file(1 << 20));
        assert!(!room.has_blob_file(17 << 20));
        assert_eq!(room.segment_length(0, 1), 1 << 20);
        assert_eq!(room.segment_length(0, 9 << 20), 9 << 20);
        let large = Room {
            quota: 1 << 40,
            ..room
        };
        assert_eq!(large.segment_length(0, 1), 16 << 20);
        // Of a large quota on a disk that is nearly full.
        let full = Room {
            min_free: (1 << 50) - (20 << 20),
            ..large
        };
        assert_eq!(full.segment_length(0, 1), 1 << 20);
        assert_eq!(full.margin(0), 2 << 20);
    }
}
