use std::sync::Arc;

use crate::model::{Digest, Name, Node};

/// The node id of the mount's root, as the kernel has it.
pub(super) const ROOT_ID: u64 = 1;

/// A listing of root names.
pub(super) type Roots = Arc<[(Name, Node)]>;

/// What the mount's root shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Root {
    /// The entries of a directory.
    Directory {
        digest: Digest,
        /// Number of entries below it.
        size: u64,
    },
    /// One entry: a root that is a file or a symlink.
    Single { name: Name, node: Node },
    /// All registered names. They change while mounted.
    Names,
    /// All Nix store paths that the remotes know. New ones come while mounted.
    StorePaths,
}

impl Root {
    /// Whether what the root shows can change.
    #[must_use]
    pub const fn changes(&self) -> bool {
        match self {
            Self::Names | Self::StorePaths => true,
            Self::Directory { .. } | Self::Single { .. } => false,
        }
    }

    /// Digest and size of the directory whose entries are shown.
    pub(super) const fn directory(&self) -> Option<(Digest, u64)> {
        match self {
            Self::Directory { digest, size } => Some((*digest, *size)),
            Self::Single { .. } | Self::Names | Self::StorePaths => None,
        }
    }

    /// `st_size` of the root directory.
    pub(super) const fn entries(&self) -> u64 {
        match self {
            Self::Directory { size, .. } => *size,
            Self::Single { .. } => 1,
            Self::Names | Self::StorePaths => 0,
        }
    }
}
