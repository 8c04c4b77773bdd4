//! Pure values of the content-addressed model: what trees, files and their chunks are, with the rules that make a
//! value valid. Nothing here does I/O, so every rule can be checked by a property test.
//!
//! - [`Digest`]: a BLAKE3-256 digest and its text forms
//! - [`Name`], [`Target`]: an entry's name, a symlink's target
//! - [`Node`]: a directory, a file or a symlink, without its name
//! - [`Directory`]: a sorted list of named nodes
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
pub use directory::{Directory, DirectoryError, Entry, SizeRule};
pub use manifest::{Chunk, ChunkSlice, Manifest, ManifestError};
pub use name::{Name, NameError, Target, TargetError};
pub use node::Node;
pub use root_ref::{RootRef, RootRefError};
pub use store_path::{OutputHash, StorePath, StorePathError};
