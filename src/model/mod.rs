//! Pure values of the content-addressed model: what trees, files and their chunks are, with the rules that make a
//! value valid. Nothing here does I/O, so every rule can be checked by a property test.
//!
//! - [`Digest`]: a BLAKE3-256 digest and its text forms
//! - [`Name`], [`Target`]: an entry's name, a symlink's target
//! - [`Node`], [`NodeRef`]: a directory, a file or a symlink, without its name
//! - [`Directory`]: a sorted list of named nodes, in its canonical encoding
//! - [`Manifest`]: a blob's chunks, and which of them a range touches
//! - [`StorePath`], [`OutputHash`]: the basename of a Nix store path
//! - [`RootRef`]: how a person names a tree on the command line

mod digest;
mod directory;
mod manifest;
mod name;
mod node;
mod root_ref;
mod store_path;

pub use digest::{Digest, DigestError};
pub use directory::{Directory, DirectoryError, Entry, EntryRef, SizeRule};
pub use manifest::{Chunk, ChunkSlice, Manifest, ManifestError};
pub use name::{Name, NameError, Target, TargetError};
pub use node::{Node, NodeRef};
pub use root_ref::{RootRef, RootRefError};
pub use store_path::{OutputHash, StorePath, StorePathError};

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::{Digest, Node, Target};

    /// Nodes whose sizes do not overflow in a small directory.
    pub(crate) fn any_node() -> impl Strategy<Value = Node> {
        prop_oneof![
            (any::<[u8; 32]>(), 0..1_u64 << 40).prop_map(|(digest, size)| Node::Directory {
                digest: Digest::of(&digest),
                size,
            }),
            (any::<[u8; 32]>(), any::<u64>(), any::<bool>()).prop_map(
                |(digest, size, executable)| Node::File {
                    digest: Digest::of(&digest),
                    size,
                    executable,
                }
            ),
            proptest::collection::vec(1..=255_u8, 1..300).prop_map(|target| Node::Symlink {
                target: Target::new(target).unwrap(),
            }),
        ]
    }
}
