//! Where bytes come from: the two traits behind which other machines begin, and what implements them.
//!
//! - [`Remote`]: reading manifests, chunks, directory closures and root names
//! - [`Publish`]: writing them; [`PutWhole`], where the store cuts blobs
//! - [`ObjectStoreRemote`]: the object store layout that tvix and snix share (`layout`), in a directory or a cloud
//!   (`cloud`)
//! - [`GrpcRemote`]: the gRPC protocol that tvix and snix share (`grpc`)
//! - [`Chain`]: several remotes in order of preference; `ask` has deadlines and retries ([`Policy`]), `health` the circuit
//!   breaker, and `probe` what closes it again
//! - `steady`: writing with retries
//! - [`open`], [`open_for_writing`]: a remote from its [`Address`]
//!
//! A remote is not trusted. What it sends is bounded in size here and verified against its digest by the cache.

mod address;
mod ask;
mod chain;
mod cloud;
mod error;
mod grpc;
mod health;
mod layout;
mod object_store;
mod policy;
mod probe;
mod steady;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

pub use address::{Address, AddressError, open, open_for_writing};
pub use chain::{Chain, Patience};
pub use error::{Fault, Object, RemoteError};
pub use grpc::{
    AWAY, GrpcRemote, NAMES_TOKEN, PENDING, PREFETCH, PRIORITY, RETRY_AFTER, SHED, SIZE, UPSTREAM,
    WAIT,
};
pub use health::RemoteStatus;
pub use object_store::ObjectStoreRemote;
pub use policy::{Outage, Policy, PolicyError, parse_duration};

use crate::model::{Digest, Manifest, Name, Node, OutputHash, StorePath};

/// The encoded directories of a closure: the root first, none before one that refers to it.
pub type Closure = BoxStream<'static, Result<Bytes, RemoteError>>;

/// A blob's bytes in order, in pieces of any size.
pub type Pieces = BoxStream<'static, Result<Bytes, RemoteError>>;

/// Who waits for a chunk: a reader, or only somebody who thinks ahead. A reader may come to wait while it is on its way.
#[derive(Debug, Clone, Default)]
pub struct Urgency(Arc<AtomicBool>);

impl Urgency {
    /// That of a reader who waits.
    #[must_use]
    pub fn reader() -> Self {
        let urgency = Self::default();
        urgency.raise();
        urgency
    }

    /// A reader waits from now on.
    pub fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    #[must_use]
    pub fn is_reader(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a store daemon knows of a Nix store path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    pub path: StorePath,
    pub node: Node,
    /// Output hashes of the store paths that it refers to, perhaps its own among them.
    pub references: Vec<OutputHash>,
}

/// A store that can be read. Implementations give up when nothing comes for a while; the deadline of a whole request and
/// trying again are the chain's.
#[async_trait]
pub trait Remote: Send + Sync + fmt::Debug {
    /// What messages call it; without secrets.
    fn address(&self) -> &str;

    /// Whether it answers at all, whatever its own remotes do.
    async fn ping(&self) -> Result<(), RemoteError>;

    /// A blob's chunk list, `None` when it is not split.
    async fn manifest(&self, blob: Digest) -> Result<Option<Manifest>, RemoteError>;

    /// A chunk's bytes, exactly `size` of them where that is known, not verified.
    async fn chunk(
        &self,
        chunk: Digest,
        size: Option<u64>,
        urgency: &Urgency,
    ) -> Result<Bytes, RemoteError>;

    /// All bytes of a blob that is not split, `size` at the most where that is known, not verified.
    async fn pieces(&self, blob: Digest, size: Option<u64>) -> Result<Pieces, RemoteError>;

    /// Whether [`Remote::closure`] has those of directories that were not put as roots.
    fn has_parts_of_closures(&self) -> bool;

    /// The directories at and below `root`, not verified.
    async fn closure(&self, root: Digest) -> Result<Closure, RemoteError>;

    /// The node that a name stands for.
    async fn root(&self, name: &Name) -> Result<Node, RemoteError>;

    /// All names, sorted. A name whose node cannot be read is left out; a store without names has none.
    async fn roots(&self) -> Result<Vec<(Name, Node)>, RemoteError>;

    /// What is known of a Nix store path.
    async fn path_info(&self, hash: OutputHash) -> Result<PathInfo, RemoteError>;

    /// All Nix store paths.
    async fn path_infos(&self) -> Result<Vec<PathInfo>, RemoteError>;
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
    /// Whether it is on this machine, so that reading from it costs no network.
    fn is_local(&self) -> bool;
    /// Whether it compares a blob's chunks with the blob's digest when its manifest is put.
    fn verifies(&self) -> bool;
    /// The store as one that cuts blobs by itself, where it takes them in no other way.
    async fn as_whole(&self) -> Result<Option<&dyn PutWhole>, RemoteError>;
}

/// A store that takes blobs as a whole and cuts them by itself.
#[async_trait]
pub trait PutWhole: Send + Sync {
    /// Puts a blob's bytes; they must have its digest.
    async fn put_whole(&self, blob: Digest, pieces: Pieces) -> Result<(), RemoteError>;
}
