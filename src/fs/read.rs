use std::sync::Arc;

use super::{Filesystem, FsError, Held, Miss, Outcome};
use crate::{cache::Slice, model::Node};

impl Filesystem {
    /// Up to `len` bytes of a file from `offset`, as slices that are to be written to the reader as they are. What lies
    /// beyond the end is left out.
    pub fn read(&self, id: u64, offset: u64, len: u64, held: &Held) -> Outcome<Vec<Slice>> {
        let inode = match self.inodes.get(id) {
            Ok(inode) => inode,
            Err(error) => return Outcome::Ready(Err(error)),
        };
        let (digest, size) = match inode.node() {
            Node::File { digest, size, .. } => (*digest, *size),
            Node::Directory { .. } => return Outcome::Ready(Err(FsError::IsDirectory)),
            Node::Symlink { .. } => return Outcome::Ready(Err(FsError::NotSymlink)),
        };
        let len = len.min(size.saturating_sub(offset));
        if len == 0 {
            return Outcome::Ready(Ok(Vec::new()));
        }
        let at_hand = || self.cache.blob_at_hand(digest, size);
        let Some(blob) = held.blob().or_else(at_hand) else {
            return Outcome::Miss(Miss::Blob {
                inode: id,
                digest,
                size,
            });
        };
        if blob.is_wrong() {
            let error = FsError::WrongBlob(digest);
            self.failed(id, Some(digest), &error);
            return Outcome::Ready(Err(error));
        }
        let mut slices = Vec::new();
        let mut missing = Vec::new();
        for wanted in blob.manifest().slices(offset, len) {
            let found = held
                .chunk(wanted.index)
                .map(|data| Slice {
                    data,
                    start: wanted.start,
                    len: wanted.len,
                })
                .or_else(|| self.cache.slice_at_hand(&blob, wanted));
            match found {
                Some(slice) => slices.push(slice),
                None => missing.push(wanted.index),
            }
        }
        if missing.is_empty() {
            return Outcome::Ready(Ok(slices));
        }
        self.prefetch.missed(&blob, &missing);
        Outcome::Miss(Miss::Chunks {
            inode: id,
            blob: Arc::clone(&blob),
            positions: missing,
        })
    }

    /// Tells the cache that a slice could not be read from disk, so that it is verified and fetched again, and answers
    /// what the reader gets.
    pub fn unreadable(&self, id: u64, slices: &[Slice]) -> FsError {
        self.cache.distrust(slices);
        self.failed(id, None, &FsError::Unreadable);
        FsError::Unreadable
    }
}
