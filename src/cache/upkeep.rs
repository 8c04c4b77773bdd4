use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::params;

use super::{
    CacheError, Counter, DataFile,
    eviction::{self, MAX_VISITS, Means, Victim},
    index::{self, LOG_MAX, NO_LOSS},
    space::{self, Room},
    uses,
    writer::Writer,
    writing::Segment,
};

/// Counters and last uses are stored this often.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

// What the writer does beside writing: keeping the quota, and the index in step with the files.
impl Writer {
    pub(super) fn housekeeping(&mut self) {
        self.housekeeping_at = Instant::now() + HOUSEKEEPING;
        let store = Arc::clone(&self.store);
        let counted = &mut self.counted;
        let noted = store
            .index
            .write_within(NO_LOSS, &mut self.connection, |connection| {
                index::add_counters(connection, &store.stats, counted)?;
                space::touch(connection, &store.files.uses())
            });
        let noted = noted.and_then(|()| self.note_uses());
        match noted.and_then(|()| self.keep_quota()) {
            Ok(()) => {}
            Err(error) if error.is_busy() => {
                tracing::debug!(%error, "the housekeeping of the cache waits");
            }
            Err(error) => tracing::warn!(%error, "the housekeeping of the cache failed"),
        }
        if let Err(error) = index::vacuum(&self.connection) {
            tracing::debug!(%error, "the index was not shrunk");
        }
        if store.index.log_len() > LOG_MAX {
            self.note_unsynced(0);
        }
        self.close_gone();
        store.files.reap();
        if !self.kept.is_empty() {
            self.chunks(Vec::new());
        }
    }

    /// Brings to the index what readers came for.
    fn note_uses(&mut self) -> Result<(), CacheError> {
        loop {
            let uses = self.store.uses();
            let all = uses.len() < uses::AT_ONCE;
            self.store
                .index
                .write_within(NO_LOSS, &mut self.connection, |connection| {
                    eviction::note_uses(connection, uses)
                })?;
            if all {
                return Ok(());
            }
        }
    }

    /// The quota may have been lowered, and what else is in the directory may be more than all of it.
    fn keep_quota(&mut self) -> Result<(), CacheError> {
        let store = Arc::clone(&self.store);
        for round in 0.. {
            let held = store.files.reap();
            let means = Means {
                copies: self.copies_beside(&self.kept),
                // Something goes in the end, however much is used.
                visits: if round < MAX_VISITS { MAX_VISITS } else { 0 },
            };
            let evicted =
                store
                    .index
                    .write_within(NO_LOSS, &mut self.connection, |connection| {
                        // Space that others have taken is no reason to give up what is there: this may be a passing command.
                        let room = Room::now(&store, connection, held)?.of_quota_alone();
                        let mut evicted =
                            eviction::make_room(connection, &room, 0, means, || Ok(()))?;
                        if evicted.not_enough {
                            evicted = eviction::evict_any(connection)?;
                        } else if !evicted.unfinished
                            && index::used_bytes(connection)? > room.quota / 2
                        {
                            // All of it can be fetched again, and chunks are worth more.
                            connection
                                .execute_batch("DELETE FROM directories; DELETE FROM blobs;")?;
                        }
                        Ok(evicted)
                    })?;
            let unfinished = evicted.unfinished;
            let kept = self.evict(evicted);
            self.kept.extend(kept);
            if !unfinished {
                break;
            }
        }
        Ok(())
    }

    /// Closes what was evicted, by whichever process: it takes up room for as long as it is open.
    pub(super) fn close_gone(&mut self) {
        self.store.files.close_gone();
        let segments = self.segments.iter().flatten().map(Segment::file);
        let blob_files = self.blob_files.values().map(|open| &open.file);
        let changed = self.changed.values();
        let unsynced = self.unsynced.files.values();
        let open = segments.chain(blob_files).chain(changed).chain(unsynced);
        let gone = open.filter(|file| file.is_gone());
        let gone: HashSet<u64> = gone.map(|file| file.number()).collect();
        self.forget(&gone);
    }

    /// Writes no more to a file.
    pub(super) fn let_go(&mut self, number: u64) {
        for segment in &mut self.segments {
            segment.take_if(|segment| segment.number == number);
        }
        self.blob_files
            .retain(|_, open| open.file.number() != number);
    }

    /// Has files go whose rows are gone.
    pub(super) fn remove(&mut self, victims: &[Victim]) {
        self.forget(&victims.iter().map(|victim| victim.number).collect());
        for victim in victims {
            self.store.stats.add(Counter::EvictedBytes, victim.bytes);
            self.store.files.condemn(victim.number);
        }
    }

    /// Holds nothing any more of files that are gone.
    fn forget(&mut self, gone: &HashSet<u64>) {
        if gone.is_empty() {
            return;
        }
        for number in gone {
            self.let_go(*number);
            self.written.remove(*number);
            self.store.files.remove(*number);
        }
        // What was written to them and not committed must not be found any more.
        let store = &self.store;
        self.uncommitted.retain(|written| {
            let file = written.location.file;
            if gone.contains(&file) {
                store.remove_written(written.digest, file);
            }
            !gone.contains(&file)
        });
        self.changed.retain(|number, _| !gone.contains(number));
        self.unsynced
            .files
            .retain(|number, _| !gone.contains(number));
    }

    /// Removes data files that no row names: what a crash between the two left behind.
    pub(super) fn remove_orphans(&self) {
        let numbers = self.store.files.list().unwrap_or_default();
        for number in numbers {
            // A row is always there before its file, so a file that was listed and has none is nobody's.
            if matches!(index::file(&self.connection, number), Ok(None)) {
                let path = self.store.files.path(number);
                tracing::info!(?path, "removing a data file that nothing names");
                self.store.files.condemn(number);
            }
        }
    }

    /// Stores the stamp of a file all of whose chunks have been verified.
    pub(super) fn note_verified(&mut self, file: &Arc<DataFile>) {
        if !file.may_be_whole() {
            return;
        }
        let number = file.number();
        let result = self
            .store
            .index
            .write_within(NO_LOSS, &mut self.connection, |connection| {
                if file.trust_whole(&index::chunks_in(connection, number)?) {
                    connection
                        .prepare_cached("UPDATE files SET stamp = ? WHERE number = ?")?
                        .execute(params![file.stamp(), index::signed(number)?])?;
                }
                Ok(())
            });
        if let Err(error) = result {
            tracing::debug!(%error, "a stamp could not be stored");
        }
    }

    /// Forgets a row whose file is missing or has the wrong length.
    pub(super) fn remove_broken(&mut self, number: u64) {
        let path = self.store.files.path(number);
        tracing::warn!(
            ?path,
            "the data file is missing or damaged; its chunks will be fetched again"
        );
        let result = self.store.index.write(&mut self.connection, |connection| {
            eviction::delete_file(connection, number)
        });
        match result {
            Ok(()) => self.remove(&[Victim { number, bytes: 0 }]),
            Err(error) => tracing::warn!(%error, "not written to the index"),
        }
    }
}
