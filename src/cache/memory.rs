use std::sync::Arc;

use bytes::Bytes;
use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Blob, clock::ClockCache, shared_flights::SharedFlight};
use crate::model::{Digest, Directory};

/// What a cache needs for each value beside it, in bytes: the key, its place, and its counters.
const BOOKKEEPING: usize = 200;
/// Bytes of one permit of the budget: a semaphore counts in `u32`.
const PERMIT: u64 = 1 << 10;

/// The memory tier: finished values only, bounded in bytes, and the budget for bytes in flight.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) chunks: Cache<Digest, Bytes>,
    directories: ClockCache<Digest, Arc<Directory>>,
    /// By digest and size: a tree that lies about a blob's size must not concern one that does not.
    blobs: ClockCache<(Digest, u64), Arc<Blob>>,
    /// For bytes that are being fetched or wait for the disk writer.
    in_flight: Arc<Semaphore>,
    permits: u32,
    /// Of that, what those may take for whom no reader waits: half of it, so that there is always some for readers.
    ahead: Arc<Semaphore>,
}

impl Memory {
    /// Shares out `bytes`: a quarter each to chunks, directories, blobs and what is in flight.
    pub(super) fn new(bytes: u64) -> Self {
        let quarter = bytes / 4;
        let permits = u32::try_from((quarter / PERMIT).max(1)).unwrap_or(u32::MAX >> 4);
        Self {
            // What comes last is read next, and what is on disk is served from there.
            chunks: Cache::builder()
                .eviction_policy(EvictionPolicy::lru())
                .max_capacity(quarter)
                .weigher(|_, bytes: &Bytes| weight(bytes.len()))
                .build(),
            directories: ClockCache::new(quarter),
            blobs: ClockCache::new(quarter),
            in_flight: Arc::new(Semaphore::new(permits as usize)),
            ahead: Arc::new(Semaphore::new((permits / 2).max(1) as usize)),
            permits,
        }
    }

    pub(super) fn directory(&self, digest: Digest) -> Option<Arc<Directory>> {
        self.directories.get(&digest)
    }

    pub(super) fn keep_directory(&self, digest: Digest, directory: &Arc<Directory>) {
        let weight = directory.weight() + BOOKKEEPING;
        self.directories
            .insert(&digest, Arc::clone(directory), weight as u64);
    }

    /// A blob by its digest and size.
    pub(super) fn blob(&self, digest: Digest, size: u64) -> Option<Arc<Blob>> {
        self.blobs.get(&(digest, size))
    }

    pub(super) fn keep_blob(&self, digest: Digest, size: u64, blob: &Arc<Blob>) {
        let weight = blob.weight() + BOOKKEEPING;
        self.blobs
            .insert(&(digest, size), Arc::clone(blob), weight as u64);
    }

    pub(super) fn forget_blob(&self, digest: Digest, size: u64) {
        self.blobs.remove(&(digest, size));
    }

    /// Waits until `bytes` more may be in flight. `ahead` is given back with the share. Something larger than the whole budget may be, alone.
    pub(super) async fn reserve(&self, bytes: u64, ahead: Option<OwnedSemaphorePermit>) -> Share {
        let permits = u32::try_from(bytes.div_ceil(PERMIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.in_flight).acquire_many_owned(permits.min(self.permits));
        Share {
            _in_flight: permit.await.ok(),
            _ahead: ahead,
            flight: None,
        }
    }

    /// Waits until somebody for whom no reader waits may ask for `bytes`. Held until they are written.
    pub(super) async fn stand_in_line(&self, bytes: u64) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(bytes.div_ceil(PERMIT)).unwrap_or(u32::MAX);
        Arc::clone(&self.ahead)
            .acquire_many_owned(permits.min(self.ahead_permits()))
            .await
            .ok()
    }

    /// Bytes that those may take for whom no reader waits, and how many of them are free.
    pub(super) fn ahead(&self) -> (u64, u64) {
        let free = self.ahead.available_permits() as u64;
        (u64::from(self.ahead_permits()) * PERMIT, free * PERMIT)
    }

    /// The most bytes that may be in flight.
    pub(super) fn in_flight_bytes(&self) -> u64 {
        u64::from(self.permits) * PERMIT
    }

    fn ahead_permits(&self) -> u32 {
        (self.permits / 2).max(1)
    }
}

/// A share of the budget for bytes in flight, given back when it is dropped.
#[derive(Debug, Default)]
pub(super) struct Share {
    _in_flight: Option<OwnedSemaphorePermit>,
    /// A place in the line of those for whom no reader waits.
    _ahead: Option<OwnedSemaphorePermit>,
    /// Where other processes wait for the same.
    pub(super) flight: Option<SharedFlight>,
}

fn weight(bytes: usize) -> u32 {
    u32::try_from(bytes + BOOKKEEPING).unwrap_or(u32::MAX)
}
