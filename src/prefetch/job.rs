use std::{ops::Range, sync::Arc};

use crate::{
    cache::{Blob, ONE_CHUNK},
    model::Digest,
};

/// For whom something is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// A reader of a file, by a number of its own.
    File(Digest, u32),
    /// One who goes from file to file.
    Walk(u64),
    Profile,
    Tree,
}

/// What to fetch.
#[derive(Debug, Clone)]
pub(super) enum Job {
    Chunk(Arc<Blob>, usize),
    /// A part of a file, as far as its manifest is still to come.
    File {
        digest: Digest,
        size: u64,
        /// In bytes.
        range: Range<u64>,
    },
}

impl Job {
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Self::Chunk(blob, position) => blob
                .manifest()
                .chunks()
                .get(*position)
                .map_or(0, |chunk| chunk.size),
            Self::File { range, .. } => range.end - range.start,
        }
    }

    /// Bytes that come by itself.
    pub(super) fn own_bytes(&self) -> u64 {
        match self {
            Self::File { size, .. } if *size > ONE_CHUNK => 0,
            job => job.bytes(),
        }
    }

    pub(super) fn key(&self) -> Option<Key> {
        match self {
            Self::Chunk(blob, position) => {
                let chunk = blob.manifest().chunks().get(*position)?;
                Some(Key::Chunk(chunk.digest))
            }
            Self::File { digest, range, .. } => Some(Key::File(*digest, range.start, range.end)),
        }
    }
}

/// A job is in the queue once: chunks by their digest, files by theirs and the part that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Key {
    Chunk(Digest),
    File(Digest, u64, u64),
}
