use std::{sync::Arc, time::Duration};

use super::{
    Attr, Filesystem, FsError, Held, Miss, Outcome,
    inodes::Inode,
    root::{ROOT_ID, Root},
};
use crate::model::{Digest, Directory, Name, NameError, Node, SizeRule, StorePath};

/// An entry that the kernel is told of: one lookup, to be taken back by [`Filesystem::forget`].
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
        let name = match Name::new(name.to_vec()) {
            Ok(name) => name,
            Err(NameError::Length(name)) if !name.is_empty() => {
                return Outcome::Ready(Err(FsError::NameTooLong));
            }
            Err(_) => return Outcome::Ready(Ok(None)),
        };
        if parent == ROOT_ID {
            match &*self.root() {
                Root::Directory { .. } => {}
                Root::Single { name: only, node } => {
                    let found = (*only == name).then(|| {
                        self.entry(
                            &self.inodes.remember(ROOT_ID, &name, node, closure_of(node)),
                            ROOT_ID,
                        )
                    });
                    return Outcome::Ready(Ok(found));
                }
                Root::Names | Root::StorePaths => {
                    let Some(node) = held.root(&name) else {
                        return match self.root_miss(name) {
                            Some(miss) => Outcome::Miss(miss),
                            None => Outcome::Ready(Ok(None)),
                        };
                    };
                    let found = node.as_ref().map(|node| {
                        self.entry(
                            &self.inodes.remember(ROOT_ID, &name, node, closure_of(node)),
                            ROOT_ID,
                        )
                    });
                    return Outcome::Ready(Ok(found));
                }
            }
        }
        let inode = match self.inodes.get(parent) {
            Ok(inode) => inode,
            Err(error) => return Outcome::Ready(Err(error)),
        };
        let directory = match self.directory(&inode, held) {
            Outcome::Ready(Ok(directory)) => directory,
            Outcome::Ready(Err(error)) => return Outcome::Ready(Err(error)),
            Outcome::Miss(miss) => return Outcome::Miss(miss),
        };
        let found = directory.get(name.as_bytes()).map(|node| {
            self.entry(
                &self.inodes.remember(parent, &name, node, inode.closure()),
                parent,
            )
        });
        Outcome::Ready(Ok(found))
    }

    /// What to fetch for an entry of a root that changes; `None` when there can be no such entry.
    fn root_miss(&self, name: Name) -> Option<Miss> {
        match *self.root() {
            Root::StorePaths => StorePath::from_basename(name).ok().map(Miss::StorePath),
            Root::Names | Root::Directory { .. } | Root::Single { .. } => Some(Miss::Root(name)),
        }
    }

    /// Takes back lookups.
    pub fn forget(&self, id: u64, count: u64) {
        self.inodes.forget(id, count);
    }

    /// Where a symlink points.
    ///
    /// # Errors
    /// When it is none.
    pub fn readlink(&self, id: u64) -> Result<Vec<u8>, FsError> {
        match self.inodes.get(id)?.node() {
            Node::Symlink { target } => Ok(target.as_bytes().to_vec()),
            Node::Directory { .. } | Node::File { .. } => Err(FsError::NotSymlink),
        }
    }

    /// Whether the inode can be opened for reading.
    ///
    /// # Errors
    /// `flags` are those of `open(2)`.
    pub fn open(&self, id: u64, flags: i32) -> Result<(), FsError> {
        if flags & libc::O_ACCMODE != libc::O_RDONLY || flags & libc::O_TRUNC != 0 {
            return Err(FsError::ReadOnly);
        }
        if id == ROOT_ID {
            return Err(FsError::IsDirectory);
        }
        match self.inodes.get(id)?.node() {
            Node::File { .. } => Ok(()),
            Node::Directory { .. } => Err(FsError::IsDirectory),
            Node::Symlink { .. } => Err(FsError::NotSymlink),
        }
    }

    /// A handle was opened, of which the kernel tells when it is closed.
    pub fn opened(&self, id: u64) {
        if let Ok(inode) = self.inodes.get(id) {
            inode.opened();
        }
    }

    /// A handle of [`Filesystem::opened`] was closed.
    pub fn released(&self, id: u64) {
        if let Ok(inode) = self.inodes.get(id)
            && inode.released()
            && let Node::File { digest, .. } = inode.node()
        {
            self.prefetch.closed(*digest);
        }
    }

    /// The directory that an inode is.
    pub(super) fn directory(&self, inode: &Inode, held: &Held) -> Outcome<Arc<Directory>> {
        let Node::Directory { digest, size } = inode.node() else {
            return Outcome::Ready(Err(FsError::NotDirectory));
        };
        let at_hand = || self.cache.directory_at_hand(*digest);
        let Some(directory) = held.directory(*digest).or_else(at_hand) else {
            return Outcome::Miss(Miss::Directory {
                inode: inode.id(),
                digest: *digest,
                closure: inode.closure(),
            });
        };
        // Stores count entries twice, so a larger number is no lie; a smaller one is.
        let actual = directory.size(SizeRule::Protocol);
        if *size < actual {
            return Outcome::Ready(Err(FsError::DirectorySize {
                claimed: *size,
                actual,
            }));
        }
        self.note_directory(digest.prefix(), &directory);
        Outcome::Ready(Ok(directory))
    }

    pub(super) fn entry(&self, inode: &Inode, parent: u64) -> Entry {
        Entry {
            id: inode.id(),
            attr: self.inode_attr(inode),
            ttl: self.ttl(parent),
        }
    }
}

/// The root of a closure for a node that is a root itself.
pub(super) fn closure_of(node: &Node) -> Digest {
    match node {
        Node::Directory { digest, .. } => *digest,
        Node::File { .. } | Node::Symlink { .. } => Digest::empty(),
    }
}
