use super::{Digest, Target};

/// What an entry of a directory, or a root, is. A node has no name: names live in the parent directory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Node {
    Directory {
        digest: Digest,
        /// Number of entries below it, as its encoding says; see [`super::Directory::size`].
        size: u64,
    },
    File {
        digest: Digest,
        /// Content, in bytes.
        size: u64,
        /// Whether the owner may execute it.
        executable: bool,
    },
    Symlink {
        target: Target,
    },
}

/// A node where it stands in a [`super::Directory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeRef<'a> {
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
        /// A valid [`Target`].
        target: &'a [u8],
    },
}

impl Node {
    #[must_use]
    pub fn borrowed(&self) -> NodeRef<'_> {
        match self {
            Self::Directory { digest, size } => NodeRef::Directory {
                digest: *digest,
                size: *size,
            },
            Self::File {
                digest,
                size,
                executable,
            } => NodeRef::File {
                digest: *digest,
                size: *size,
                executable: *executable,
            },
            Self::Symlink { target } => NodeRef::Symlink {
                target: target.as_bytes(),
            },
        }
    }
}

impl NodeRef<'_> {
    /// A copy.
    #[must_use]
    pub fn to_node(&self) -> Node {
        match *self {
            Self::Directory { digest, size } => Node::Directory { digest, size },
            Self::File {
                digest,
                size,
                executable,
            } => Node::File {
                digest,
                size,
                executable,
            },
            Self::Symlink { target } => Node::Symlink {
                target: Target::of_valid(target),
            },
        }
    }
}
