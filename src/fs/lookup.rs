use std::{sync::Arc, time::Duration};

use super::{
    Attr, Filesystem, FsError, Held, Miss, Outcome,
    inodes::{InodeNode, InodeView, Search, Stale},
    root::{ROOT_ID, Root},
};
use crate::model::{Digest, Directory, Name, NameError, SizeRule, StorePath};

/// An entry for the kernel: one lookup, to be taken back by [`Filesystem::forget`].
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The node id.
    pub id: u64,
    pub attr: Attr,
    /// How long it is the one under this name; `None`: for ever.
    pub ttl: Option<Duration>,
}

impl Filesystem {
    /// The entry of a directory with this name, `None` when there is none.
    pub fn lookup(&self, parent: u64, name: &[u8], held: &Held) -> Outcome<Option<Entry>> {
        match Name::check(name) {
            Ok(()) => {}
            Err(NameError::Length(name)) if !name.is_empty() => {
                return Outcome::Ready(Err(FsError::NameTooLong));
            }
            Err(_) => return Outcome::Ready(Ok(None)),
        }
        loop {
            let outcome = match parent {
                ROOT_ID => self.lookup_in_root(name, held),
                parent => self.lookup_in(parent, name, held),
            };
            match outcome {
                // The directory was given another content just now.
                Outcome::Ready(Ok(Err(Stale))) => {}
                Outcome::Ready(Ok(Ok(entry))) => return Outcome::Ready(Ok(entry)),
                Outcome::Ready(Err(error)) => return Outcome::Ready(Err(error)),
                Outcome::Miss(miss) => return Outcome::Miss(miss),
            }
        }
    }

    fn lookup_in_root(&self, name: &[u8], held: &Held) -> Outcome<Result<Option<Entry>, Stale>> {
        let root = self.root();
        if let Root::Directory { .. } = *root {
            return self.lookup_in(ROOT_ID, name, held);
        }
        let node = match &*root {
            Root::Single { name: only, node } if only.as_bytes() == name => Some(node),
            Root::Directory { .. } | Root::Single { .. } => None,
            Root::Names | Root::StorePaths => match held.root(name) {
                Some(node) => node.as_ref(),
                None => match root_miss(&root, name) {
                    Some(miss) => return Outcome::Miss(miss),
                    None => None,
                },
            },
        };
        // Not what the root is by now, which may be a directory of another tree since.
        let none = InodeView::root_of_no_tree();
        let entry = node.map(|node| self.inodes.look_up(&none, name, node.borrowed()));
        let entry = entry.transpose();
        Outcome::Ready(Ok(
            entry.map(|inode| inode.map(|inode| self.entry(&inode, ROOT_ID)))
        ))
    }

    /// In a directory of a tree.
    fn lookup_in(
        &self,
        parent: u64,
        name: &[u8],
        held: &Held,
    ) -> Outcome<Result<Option<Entry>, Stale>> {
        let place = match self.inodes.find(parent, name) {
            Ok(Search::Known(inode)) => {
                return Outcome::Ready(Ok(Ok(Some(self.entry(&inode, parent)))));
            }
            Ok(Search::Absent(place)) => place,
            Err(error) => return Outcome::Ready(Err(error)),
        };
        self.directory(&place.parent, held).map(|directory| {
            let Some(node) = directory.get(name) else {
                return Ok(None);
            };
            let inode = self.inodes.insert(&place, name, node)?;
            Ok(Some(self.entry(&inode, parent)))
        })
    }

    /// Takes back lookups, as pairs of a node id and a count. True when so much was forgotten that
    /// [`Filesystem::give_back_memory`] is worth its time.
    pub fn forget(&self, forgotten: impl IntoIterator<Item = (u64, u64)>) -> bool {
        self.inodes.forget(forgotten)
    }

    /// Forgets all inodes and handles: whoever knew them is gone.
    pub(super) fn forget_all(&self) {
        self.inodes.clear();
        self.handles.clear();
        self.inodes.give_back_memory();
    }

    /// Gives memory of forgotten inodes back to the system. Takes milliseconds.
    pub fn give_back_memory(&self) {
        self.inodes.give_back_memory();
    }

    /// Where a symlink points.
    ///
    /// # Errors
    /// When it is none.
    pub fn readlink(&self, id: u64) -> Result<Vec<u8>, FsError> {
        self.inodes.target(id)?.ok_or(FsError::NotSymlink)
    }

    /// Whether the inode can be opened for reading.
    ///
    /// `flags` are those of `open(2)`.
    ///
    /// # Errors
    /// When it is no file, or is opened for writing.
    pub fn open(&self, id: u64, flags: i32) -> Result<(), FsError> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            return Err(FsError::ReadOnly);
        }
        if id == ROOT_ID {
            return Err(FsError::IsDirectory);
        }
        self.content(id).map(|_| ())
    }

    /// Whether a file's bytes are known to be those of its digest. Those of a blob that was not verified as a whole are only what its
    /// manifest says. One of at most `limit` bytes is fetched and verified first.
    pub fn is_proven(&self, id: u64, limit: u64, held: &Held) -> Outcome<bool> {
        let (digest, size) = match self.content(id) {
            Ok(content) => content,
            Err(error) => return Outcome::Ready(Err(error)),
        };
        let at_hand = || self.cache.blob_at_hand(digest, size);
        match held.blob().or_else(at_hand) {
            Some(blob) if blob.is_wrong() => {
                let error = FsError::WrongBlob(digest);
                self.failed(id, Some(digest), &error);
                Outcome::Ready(Err(error))
            }
            Some(blob) if !blob.is_proven() && size <= limit && !held.is_unproven() => {
                Outcome::Miss(Miss::Proof { inode: id, blob })
            }
            Some(blob) => Outcome::Ready(Ok(blob.is_proven())),
            None => Outcome::Miss(Miss::Blob {
                inode: id,
                digest,
                size,
            }),
        }
    }

    /// Digest and size of a file.
    fn content(&self, id: u64) -> Result<(Digest, u64), FsError> {
        match self.inodes.get(id)?.node {
            InodeNode::File { digest, size, .. } => Ok((digest, size)),
            InodeNode::Directory { .. } => Err(FsError::IsDirectory),
            InodeNode::Symlink { .. } => Err(FsError::NotSymlink),
        }
    }

    /// A handle was opened, of which the kernel tells when it is closed.
    pub fn opened(&self, id: u64) {
        self.inodes.opened(id);
    }

    /// A handle of [`Filesystem::opened`] was closed.
    pub fn released(&self, id: u64) {
        if let Some(inode) = self.inodes.released(id)
            && let InodeNode::File { digest, .. } = inode.node
        {
            self.prefetch.closed(digest);
        }
    }

    /// The directory that an inode is.
    pub(super) fn directory(&self, inode: &InodeView, held: &Held) -> Outcome<Arc<Directory>> {
        let InodeNode::Directory { digest, size } = inode.node else {
            return Outcome::Ready(Err(FsError::NotDirectory));
        };
        let at_hand = || self.cache.directory_at_hand(digest);
        let Some(directory) = held.directory(digest).or_else(at_hand) else {
            return Outcome::Miss(Miss::Directory {
                inode: inode.id,
                digest,
                closure: self.inodes.closure(inode.id).unwrap_or(digest),
            });
        };
        // Stores count entries twice, so a larger number is no lie; a smaller one is.
        let actual = directory.size(SizeRule::Protocol);
        if size < actual {
            return Outcome::Ready(Err(FsError::DirectorySize {
                claimed: size,
                actual,
            }));
        }
        if !inode.is_counted && self.inodes.count_once(inode.id) {
            self.count_content(digest, &directory);
        }
        Outcome::Ready(Ok(directory))
    }

    pub(super) fn entry(&self, inode: &InodeView, parent: u64) -> Entry {
        Entry {
            id: inode.id,
            attr: self.attr_of(inode),
            ttl: self.ttl(parent),
        }
    }
}

/// What to fetch for an entry of a root that changes; `None` when there can be no such entry.
fn root_miss(root: &Root, name: &[u8]) -> Option<Miss> {
    let name = Name::new(name.to_vec()).ok()?;
    match root {
        Root::StorePaths => StorePath::from_basename(name).ok().map(Miss::StorePath),
        Root::Names | Root::Directory { .. } | Root::Single { .. } => Some(Miss::Root(name)),
    }
}
