use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Each counter once: what the code calls it, its name for programs, and what it counts, for people.
macro_rules! counters {
    ($($variant:ident $name:literal $help:literal)*) => {
        /// What is counted. Bytes where the name says so.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Counter {
            $(#[doc = $help] $variant,)*
        }

        impl Counter {
            /// All of them, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// What it counts, for people.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }

            /// As in the index, in `status --json` and in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }
        }
    };
}

counters! {
    MemoryHits "memory_hits" "Slices of reads answered from memory"
    DiskHits "disk_hits" "Slices of reads answered from mapped data files"
    Misses "misses" "Chunks from a remote that a reader had to wait for"
    DirectoryMisses "directory_misses" "Directories that had to be fetched from a remote"
    FetchedBytes "fetched_bytes" "Bytes of chunks that came from a remote"
    WrittenBytes "written_bytes" "Bytes written to data files"
    EvictedBytes "evicted_bytes" "Bytes of data files that were evicted"
    CopiedBytes "copied_bytes" "Bytes of chunks that were copied out of evicted files, since they are used"
    DamagedChunks "damaged_chunks" "Chunks on disk found damaged"
    RejectedObjects "rejected_objects" "Objects from a remote that were not what their digest says"
    Unwritten "unwritten" "Chunks that were not written because there was no room, or the disk failed or was too slow"
    OfflineMisses "offline_misses" "Objects that were not cached while offline"
    SequentialBytes "prefetch_sequential_bytes" "Bytes fetched ahead of readers who go through a file in order"
    SequentialUsed "prefetch_sequential_used_bytes" "Of those, bytes of chunks that were read"
    SequentialLate "prefetch_sequential_late_bytes" "Of those read, bytes that a reader had to wait for"
    SequentialWasted "prefetch_sequential_wasted_bytes" "Of those, bytes of chunks that nobody read"
    SiblingBytes "prefetch_siblings_bytes" "Bytes fetched ahead of readers who go from file to file"
    SiblingUsed "prefetch_siblings_used_bytes" "Of those, bytes of chunks that were read"
    SiblingLate "prefetch_siblings_late_bytes" "Of those read, bytes that a reader had to wait for"
    SiblingWasted "prefetch_siblings_wasted_bytes" "Of those, bytes of chunks that nobody read"
    ProfileBytes "prefetch_profile_bytes" "Bytes fetched because an earlier mount read them"
    ProfileUsed "prefetch_profile_used_bytes" "Of those, bytes of chunks that were read"
    ProfileLate "prefetch_profile_late_bytes" "Of those read, bytes that a reader had to wait for"
    ProfileWasted "prefetch_profile_wasted_bytes" "Of those, bytes of chunks that nobody read"
    TreeBytes "prefetch_tree_bytes" "Bytes fetched to have the whole tree, or the paths that were asked for"
    TreeUsed "prefetch_tree_used_bytes" "Of those, bytes of chunks that were read"
    TreeLate "prefetch_tree_late_bytes" "Of those read, bytes that a reader had to wait for"
    TreeWasted "prefetch_tree_wasted_bytes" "Of those, bytes of chunks that nobody read"
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
            .iter()
            .map(|counter| (counter.name(), self.get(*counter)))
    }
}

/// How much room a cache takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Bytes of data files, written or reserved.
    pub data_bytes: u64,
    /// Bytes of the index, of the logs, and of evicted files that somebody has open.
    pub other_bytes: u64,
    /// Bytes of files in the directory that are not the cache's.
    pub foreign_bytes: u64,
    /// The most that both may take together.
    pub quota_bytes: u64,
    pub files: u64,
    pub chunks: u64,
    pub directories: u64,
}
