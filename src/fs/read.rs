use std::sync::Arc;

use smallvec::SmallVec;

use super::{Filesystem, FsError, Held, Miss, Outcome, inodes::InodeNode, root::ROOT_ID};
use crate::{
    cache::{self, Slice},
    prefetch::{Place, Read, Whereabouts},
};

/// Directories are not followed further up than this.
const MAX_DEPTH: usize = 4096;

/// What a read gives. Most reads touch a few chunks, and these are kept without an allocation.
pub type Slices = SmallVec<[Slice; 8]>;

/// Where a read happens.
struct Reader<'a> {
    fs: &'a Filesystem,
    id: u64,
}

impl Whereabouts for Reader<'_> {
    fn path(&self) -> Option<Vec<u8>> {
        Some(self.fs.inodes.path(self.id)?.join(&b'/'))
    }

    fn place(&self) -> Option<Place> {
        let inodes = &self.fs.inodes;
        let (mut stack, mut ids) = (Vec::new(), Vec::new());
        let mut at = self.id;
        while at != ROOT_ID {
            let Ok(parent) = inodes.get(inodes.get(at).ok()?.parent) else {
                break; // A root that is made of names.
            };
            let InodeNode::Directory { digest, .. } = parent.node else {
                return None;
            };
            let directory = self.fs.cache.directory_at_hand(digest)?;
            let position = directory.position(&inodes.name(at).ok()?)?;
            stack.push((directory, position));
            at = parent.id;
            ids.push(at);
            if ids.len() > MAX_DEPTH {
                return None;
            }
        }
        stack.reverse();
        let directory = *ids.first()?;
        Some(Place {
            directory,
            above: ids.get(1).copied().unwrap_or(0),
            stack,
            closure: inodes.closure(directory)?,
        })
    }
}

impl Filesystem {
    /// Up to `len` bytes of a file from `offset`, as slices that are to be written to the reader as they are. What lies
    /// beyond the end is left out.
    pub fn read(&self, id: u64, offset: u64, len: u64, held: &Held) -> Outcome<Slices> {
        let inode = match self.inodes.get(id) {
            Ok(inode) => inode,
            Err(error) => return Outcome::Ready(Err(error)),
        };
        let (digest, size) = match inode.node {
            InodeNode::File { digest, size, .. } => (digest, size),
            InodeNode::Directory { .. } => return Outcome::Ready(Err(FsError::IsDirectory)),
            InodeNode::Symlink { .. } => return Outcome::Ready(Err(FsError::NotSymlink)),
        };
        let len = len.min(size.saturating_sub(offset));
        if len == 0 {
            return Outcome::Ready(Ok(Slices::new()));
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
        let reader = match held.has_no_chunks() {
            true => cache::Reader::New,
            false => cache::Reader::Again,
        };
        let mut slices = Slices::new();
        let mut missing = Vec::new();
        for wanted in blob.manifest().slices(offset, len) {
            if missing.is_empty()
                && let Some(last) = slices.last_mut()
                && self.cache.extend_at_hand(&blob, wanted, last, reader)
            {
                continue;
            }
            let found = held
                .chunk(wanted.index)
                .map(|data| Slice {
                    data,
                    start: wanted.start,
                    len: wanted.len,
                })
                .or_else(|| self.cache.slice_at_hand(&blob, wanted, reader));
            match found {
                Some(slice) => slices.push(slice),
                None => missing.push(wanted.index),
            }
        }
        // Not once more when the request is run again with what it missed.
        if held.has_no_chunks() {
            let read = Read {
                blob: &blob,
                offset,
                len,
                missing: &missing,
            };
            self.prefetch.read(&read, &Reader { fs: self, id });
        }
        if missing.is_empty() {
            return Outcome::Ready(Ok(slices));
        }
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
