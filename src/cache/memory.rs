use std::sync::Arc;

use bytes::Bytes;
use moka::{policy::EvictionPolicy, sync::Cache};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Blob;
use crate::model::{Digest, Directory};

/// Bytes of one permit of the budget: a semaphore counts in `u32`.
const PERMIT: u64 = 1 << 10;

/// The memory tier: finished values only, bounded in bytes, and the budget for bytes in flight.
#[derive(Debug)]
pub(super) struct Memory {
    pub(super) chunks: Cache<Digest, Bytes>,
    pub(super) directories: Cache<Digest, Arc<Directory>>,
    /// By digest and size: a tree that lies about a blob's size must not concern one that does not.
    pub(super) blobs: Cache<(Digest, u64), Arc<Blob>>,
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
            // A directory that is walked through is looked at again and again, so the last ones stay whatever their size: at
            // most two that are larger than half of the share.
            directories: Cache::builder()
                .eviction_policy(EvictionPolicy::lru())
                .max_capacity(quarter)
                .weigher(move |_, directory: &Arc<Directory>| {
                    let half = u32::try_from(quarter / 2).unwrap_or(u32::MAX);
                    weight(directory.weight()).min(half)
                })
                .build(),
            blobs: Cache::builder()
                .max_capacity(quarter)
                .weigher(|_, blob: &Arc<Blob>| blob.weight())
                .build(),
            in_flight: Arc::new(Semaphore::new(permits as usize)),
            ahead: Arc::new(Semaphore::new((permits / 2).max(1) as usize)),
            permits,
        }
    }

    /// Waits until `bytes` more may be in flight. `ahead` is given back with the share. Something larger than the whole budget may be, alone.
    pub(super) async fn reserve(&self, bytes: u64, ahead: Option<OwnedSemaphorePermit>) -> Share {
        let permits = u32::try_from(bytes.div_ceil(PERMIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.in_flight).acquire_many_owned(permits.min(self.permits));
        Share {
            _in_flight: permit.await.ok(),
            _ahead: ahead,
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
}

fn weight(bytes: usize) -> u32 {
    // The digest, the entry and the bookkeeping of moka.
    u32::try_from(bytes + 200).unwrap_or(u32::MAX)
}
