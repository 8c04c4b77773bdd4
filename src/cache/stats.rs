use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// What is counted. Bytes where the name says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Slices of reads that were answered from the memory tier.
    MemoryHits,
    /// Slices of reads that were answered from a mapped data file.
    DiskHits,
    /// Chunks that had to be fetched from a remote.
    Misses,
    /// Directories that had to be fetched from a remote.
    DirectoryMisses,
    /// Bytes of chunks that came from a remote.
    FetchedBytes,
    /// Bytes that were written to data files.
    WrittenBytes,
    /// Bytes of data files that were evicted.
    EvictedBytes,
    /// Chunks on disk whose bytes were not what their digest says.
    DamagedChunks,
    /// Objects from a remote that did not match their digest or could not be decoded.
    RejectedObjects,
    /// Chunks that were not written because there was no room or the disk failed.
    Unwritten,
    /// What was not in the cache while no remote was to be asked.
    OfflineMisses,
}

impl Counter {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 11] = [
        Self::MemoryHits,
        Self::DiskHits,
        Self::Misses,
        Self::DirectoryMisses,
        Self::FetchedBytes,
        Self::WrittenBytes,
        Self::EvictedBytes,
        Self::DamagedChunks,
        Self::RejectedObjects,
        Self::Unwritten,
        Self::OfflineMisses,
    ];

    /// What it counts, for people.
    #[must_use]
    pub const fn help(self) -> &'static str {
        match self {
            Self::MemoryHits => "Slices of reads answered from memory",
            Self::DiskHits => "Slices of reads answered from mapped data files",
            Self::Misses => "Chunks that had to be fetched from a remote",
            Self::DirectoryMisses => "Directories that had to be fetched from a remote",
            Self::FetchedBytes => "Bytes of chunks that came from a remote",
            Self::WrittenBytes => "Bytes written to data files",
            Self::EvictedBytes => "Bytes of data files that were evicted",
            Self::DamagedChunks => "Chunks on disk found damaged",
            Self::RejectedObjects => "Objects from a remote that were not what their digest says",
            Self::Unwritten => "Chunks that were not written to disk",
            Self::OfflineMisses => "Objects that were not cached while offline",
        }
    }

    /// As in the index, in `status --json` and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::MemoryHits => "memory_hits",
            Self::DiskHits => "disk_hits",
            Self::Misses => "misses",
            Self::DirectoryMisses => "directory_misses",
            Self::FetchedBytes => "fetched_bytes",
            Self::WrittenBytes => "written_bytes",
            Self::EvictedBytes => "evicted_bytes",
            Self::DamagedChunks => "damaged_chunks",
            Self::RejectedObjects => "rejected_objects",
            Self::Unwritten => "unwritten",
            Self::OfflineMisses => "offline_misses",
        }
    }
}

/// Counters of this process.
#[derive(Debug, Default)]
pub struct Stats {
    counters: [AtomicU64; Counter::ALL.len()],
}

impl Stats {
    pub fn add(&self, counter: Counter, count: u64) {
        self.counters[counter as usize].fetch_add(count, Ordering::Relaxed);
    }

    #[must_use]
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Name and value of each.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Counter::ALL
            .into_iter()
            .map(|counter| (counter.name(), self.get(counter)))
    }
}

/// How much room a cache takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Bytes of data files, written or reserved.
    pub data_bytes: u64,
    /// Bytes of everything else in the directory.
    pub other_bytes: u64,
    /// The most that both may take together.
    pub quota_bytes: u64,
    pub files: u64,
    pub chunks: u64,
    pub directories: u64,
}
