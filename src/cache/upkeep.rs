use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, Instant},
};

use rusqlite::params;

use super::{
    Counter, DataFile,
    eviction::{self, Victim},
    index::{self, LOG_MAX, NO_LOSS},
    space::{self, Room},
    writer::Writer,
};

/// Counters and last uses are stored this often.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

// What the writer does beside writing: keeping the quota, and the index in step with the files.
impl Writer {
    pub(super) fn housekeeping(&mut self) {
        self.housekeeping_at = Instant::now() + HOUSEKEEPING;
        let store = Arc::clone(&self.store);
        let counted = &mut self.counted;
        let result = store
            .index
            .write_within(NO_LOSS, &mut self.connection, |connection| {
                index::add_counters(connection, &store.stats, counted)?;
                space::touch(connection, &store.files.uses())?;
                eviction::note_uses(connection, store.uses())?;
                // Space that others have taken is no reason to give up what is there: this may be a passing command.
                let room = Room::now(&store, connection)?.of_quota_alone();
                if index::used_bytes(connection)? > room.quota / 2 {
                    // All of it can be fetched again, and chunks are worth more.
                    connection.execute_batch("DELETE FROM directories; DELETE FROM blobs;")?;
                }
                // The quota may have been lowered, and what else is in the directory may be more than all of it.
                let evicted = eviction::make_room(connection, &room, 0, 0, || Ok(()))?;
                match evicted.not_enough {
                    true => eviction::evict_all(connection),
                    false => Ok(evicted.victims),
                }
            });
        match result {
            Ok(victims) => self.remove(&victims),
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
        // What another process has evicted takes up room for as long as it is open here.
        store.files.close_gone();
        store.files.reap();
    }

    /// Writes no more to a file.
    pub(super) fn let_go(&mut self, number: u64) {
        for segment in &mut self.segments {
            segment.take_if(|segment| segment.number == number);
        }
        self.blob_files
            .retain(|_, open| open.file.number() != number);
    }

    /// Unlinks files whose rows are gone.
    pub(super) fn remove(&mut self, victims: &[Victim]) {
        for victim in victims {
            self.let_go(victim.number);
            self.written.remove(victim.number);
            self.store.files.remove(victim.number);
            self.store.stats.add(Counter::EvictedBytes, victim.bytes);
            self.store.files.condemn(victim.number);
        }
        // What was written to them and not committed must not be found any more.
        let gone: HashSet<u64> = victims.iter().map(|victim| victim.number).collect();
        let store = &self.store;
        self.uncommitted.retain(|written| {
            let there = !gone.contains(&written.location.file);
            if !there {
                store.remove_pending(written.digest);
            }
            there
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
