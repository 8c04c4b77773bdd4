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
