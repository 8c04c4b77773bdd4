//! Where bytes come from: the two traits behind which other machines begin, and what implements them.
//!
//! - [`Remote`]: reading manifests, chunks, directory closures and root names
//! - [`Publish`]: writing them
//! - [`ObjectStoreRemote`]: the object store layout that tvix and snix share
//! - [`Chain`]: several remotes in order of preference
//! - [`open`], [`open_for_writing`]: a remote from its address
//!
//! A remote is not trusted. What it sends is bounded in size here and verified against its digest by the cache.

mod address;
mod chain;
mod error;
mod layout;
mod object_store;

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use address::{AddressError, open, open_for_writing};
pub use chain::Chain;
pub use error::{Object, RemoteError};
pub use object_store::ObjectStoreRemote;

use crate::model::{Digest, Manifest, Name, Node};

/// The encoded directories of a closure: the root first, each once, none before one that refers to it.
pub type Closure = BoxStream<'static, Result<Bytes, RemoteError>>;

/// A store that can be read.
#[async_trait]
pub trait Remote: Send + Sync + fmt::Debug {
    /// What messages call it; without secrets.
    fn address(&self) -> &str;

    /// A blob's chunk list. `size` is what the blob's node says; a manifest of another size is corrupt.
    async fn manifest(&self, blob: Digest, size: u64) -> Result<Manifest, RemoteError>;

    /// A chunk's bytes, exactly `size` of them, not verified.
    async fn chunk(&self, chunk: Digest, size: u64) -> Result<Bytes, RemoteError>;

    /// The directories at and below `root`, not verified.
    async fn closure(&self, root: Digest) -> Result<Closure, RemoteError>;

    /// The node that a name stands for.
    async fn root(&self, name: &Name) -> Result<Node, RemoteError>;

    /// All names, sorted. A name whose node cannot be read is left out.
    async fn roots(&self) -> Result<Vec<(Name, Node)>, RemoteError>;
}

/// A store that can be written.
///
/// What refers to something is put after it: chunks, then manifests, then closures, then names.
#[async_trait]
pub trait Publish: Remote {
    /// Whether the blob can be read without putting anything.
    async fn has_blob(&self, blob: Digest) -> Result<bool, RemoteError>;
    async fn has_chunk(&self, chunk: Digest) -> Result<bool, RemoteError>;
    async fn has_closure(&self, root: Digest) -> Result<bool, RemoteError>;
    async fn put_chunk(&self, chunk: Digest, bytes: Bytes) -> Result<(), RemoteError>;
    async fn put_manifest(&self, blob: Digest, manifest: &Manifest) -> Result<(), RemoteError>;
    /// `directories` in the order of [`Closure`].
    async fn put_closure(&self, root: Digest, directories: Vec<Bytes>) -> Result<(), RemoteError>;
    async fn put_root(&self, name: &Name, node: &Node) -> Result<(), RemoteError>;
    /// Whether the name was there.
    async fn remove_root(&self, name: &Name) -> Result<bool, RemoteError>;
    /// Returns when all that was put so far outlasts a crash of the machine.
    async fn sync(&self) -> Result<(), RemoteError>;
}
