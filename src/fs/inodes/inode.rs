use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::short_name::ShortName;
use crate::{
    fs::{inode_number, root::ROOT_ID},
    model::{Digest, NodeRef},
};

/// What the kernel knows under one name.
#[derive(Debug)]
pub(super) struct Inode {
    pub(super) id: u64,
    /// Node id of the directory that it was found in.
    pub(super) parent: u64,
    /// `st_ino`.
    pub(super) number: u64,
    pub(super) name: ShortName,
    pub(super) content: Content,
    /// Lookups that the kernel has not forgotten. Goes up under the shared lock, down under the exclusive one.
    pub(super) lookups: AtomicU64,
    /// Handles that are open, where the kernel tells.
    pub(super) opens: AtomicU32,
    /// A directory whose files count in `statfs` already.
    pub(super) counted: AtomicBool,
}

/// What an inode stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Directory {
        digest: Digest,
        size: u64,
    },
    File {
        digest: Digest,
        size: u64,
        executable: bool,
    },
    Symlink(Box<[u8]>),
}

/// What an operation needs of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) struct InodeView {
    pub(in crate::fs) id: u64,
    pub(in crate::fs) parent: u64,
    /// `st_ino`.
    pub(in crate::fs) number: u64,
    pub(in crate::fs) node: InodeNode,
    /// A directory whose files count in `statfs` already.
    pub(in crate::fs) is_counted: bool,
}

/// As [`Content`], without what has no fixed length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::fs) enum InodeNode {
    Directory {
        digest: Digest,
        size: u64,
    },
    File {
        digest: Digest,
        size: u64,
        executable: bool,
    },
    Symlink {
        /// Length of the target, in bytes.
        len: u64,
    },
}

impl InodeView {
    /// The mount's root where it is no directory of a tree: names are looked up in it all the same. No directory has that size.
    pub(in crate::fs) fn root_of_no_tree() -> Self {
        Self {
            id: ROOT_ID,
            parent: ROOT_ID,
            number: inode_number::ROOT,
            node: InodeNode::Directory {
                digest: Digest::empty(),
                size: u64::MAX,
            },
            is_counted: true,
        }
    }
}

impl From<NodeRef<'_>> for Content {
    fn from(node: NodeRef<'_>) -> Self {
        match node {
            NodeRef::Directory { digest, size } => Self::Directory { digest, size },
            NodeRef::File {
                digest,
                size,
                executable,
            } => Self::File {
                digest,
                size,
                executable,
            },
            NodeRef::Symlink { target } => Self::Symlink(target.into()),
        }
    }
}

impl Content {
    pub(super) fn view(&self) -> InodeNode {
        match self {
            Self::Directory { digest, size } => InodeNode::Directory {
                digest: *digest,
                size: *size,
            },
            Self::File {
                digest,
                size,
                executable,
            } => InodeNode::File {
                digest: *digest,
                size: *size,
                executable: *executable,
            },
            Self::Symlink(target) => InodeNode::Symlink {
                len: target.len() as u64,
            },
        }
    }

    pub(super) fn is(&self, node: NodeRef<'_>) -> bool {
        match (self, node) {
            (Self::Symlink(known), NodeRef::Symlink { target }) => **known == *target,
            (Self::Symlink(_), _) | (_, NodeRef::Symlink { .. }) => false,
            (known, node) => *known == Self::from(node),
        }
    }
}

impl Inode {
    /// One that was looked up once.
    pub(super) fn new(id: u64, parent: u64, number: u64, name: &[u8], content: Content) -> Self {
        Self {
            id,
            parent,
            number,
            name: ShortName::new(name),
            content,
            lookups: AtomicU64::new(1),
            opens: AtomicU32::new(0),
            counted: AtomicBool::new(false),
        }
    }

    pub(super) fn view(&self) -> InodeView {
        InodeView {
            id: self.id,
            parent: self.parent,
            number: self.number,
            node: self.content.view(),
            is_counted: self.counted.load(Ordering::Relaxed),
        }
    }
}
