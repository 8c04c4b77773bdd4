use std::{collections::HashMap, sync::Arc};

use futures::future::try_join_all;

use super::{
    Filesystem, FsError, RecentError,
    inodes::InodeNode,
    root::{ROOT_ID, Roots},
};
use crate::{
    cache::{Blob, CacheError, ChunkData},
    model::{Digest, Directory, Name, Node, StorePath},
    remote::RemoteError,
};

/// What an operation gives: its answer, or what has to be fetched before it can be run again.
#[derive(Debug)]
pub enum Outcome<T> {
    Ready(Result<T, FsError>),
    Miss(Miss),
}

impl<T> Outcome<T> {
    pub(super) fn map<U>(self, change: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Ready(result) => Outcome::Ready(result.map(change)),
            Self::Miss(miss) => Outcome::Miss(miss),
        }
    }
}

/// What has to be fetched.
#[derive(Debug)]
pub enum Miss {
    Directory {
        inode: u64,
        digest: Digest,
        /// Root of a closure that has it.
        closure: Digest,
    },
    Blob {
        inode: u64,
        digest: Digest,
        size: u64,
    },
    Chunks {
        inode: u64,
        blob: Arc<Blob>,
        positions: Vec<usize>,
    },
    /// Whether a blob's chunks, joined, are the blob: all that is missing of it.
    Proof {
        inode: u64,
        blob: Arc<Blob>,
    },
    /// How much of a file is in the local cache; asks no remote.
    CachedBytes {
        digest: Digest,
        size: u64,
    },
    Root(Name),
    Roots,
    StorePath(StorePath),
    StorePaths,
}

/// What has been fetched for a request that is run again. It stays here until the request is answered, so that a request
/// makes progress even where the tiers keep nothing.
#[derive(Debug, Default)]
pub struct Held {
    directories: HashMap<Digest, Arc<Directory>>,
    blob: Option<Arc<Blob>>,
    chunks: HashMap<usize, ChunkData>,
    /// A part of the blob cannot be had, so it stays unproven.
    unproven: bool,
    cached_bytes: Option<u64>,
    roots: HashMap<Name, Option<Node>>,
    all_roots: Option<Roots>,
}

impl Held {
    pub(super) fn directory(&self, digest: Digest) -> Option<Arc<Directory>> {
        self.directories.get(&digest).cloned()
    }

    pub(super) fn blob(&self) -> Option<Arc<Blob>> {
        self.blob.clone()
    }

    pub(super) fn chunk(&self, position: usize) -> Option<ChunkData> {
        self.chunks.get(&position).cloned()
    }

    pub(super) fn has_no_chunks(&self) -> bool {
        self.chunks.is_empty()
    }

    pub(super) const fn is_unproven(&self) -> bool {
        self.unproven
    }

    pub(super) const fn cached_bytes(&self) -> Option<u64> {
        self.cached_bytes
    }

    /// The node of a name that was asked for, `Some(&None)` when there is none.
    pub(super) fn root(&self, name: &[u8]) -> Option<&Option<Node>> {
        self.roots.get(name)
    }

    pub(super) fn roots(&self) -> Option<Roots> {
        self.all_roots.clone()
    }
}

impl Filesystem {
    /// Fetches what an operation missed.
    ///
    /// # Errors
    /// When it cannot be had; noted for a person to see.
    pub async fn resolve(&self, miss: Miss, held: &mut Held) -> Result<(), FsError> {
        let _waits = self.cache.reader_waits();
        let failed = |inode, digest, error: CacheError| {
            let error = FsError::from(error);
            self.failed(inode, digest, &error);
            error
        };
        match miss {
            Miss::Directory {
                inode,
                digest,
                closure,
            } => {
                self.missed_directory(inode);
                let directory = self.cache.directory(digest, closure).await;
                let directory = directory.map_err(|error| failed(inode, Some(digest), error))?;
                held.directories.insert(digest, directory);
            }
            Miss::Blob {
                inode,
                digest,
                size,
            } => {
                let blob = self.cache.blob(digest, size).await;
                held.blob = Some(blob.map_err(|error| failed(inode, Some(digest), error))?);
            }
            Miss::Chunks {
                inode,
                blob,
                positions,
            } => {
                let chunks = positions
                    .iter()
                    .map(|position| self.cache.chunk(&blob, *position));
                let chunks = try_join_all(chunks)
                    .await
                    .map_err(|error| failed(inode, Some(blob.digest()), error))?;
                held.chunks.extend(positions.into_iter().zip(chunks));
                held.blob = Some(blob);
            }
            Miss::Proof { inode, blob } => {
                // What can be had of it can be read all the same.
                if let Err(error) = self.cache.prove(&blob).await {
                    tracing::debug!(%error, inode, digest = %blob.digest(), "not verified as a whole");
                    held.unproven = true;
                }
                held.blob = Some(blob);
            }
            Miss::CachedBytes { digest, size } => {
                let bytes = self.cache.cached_bytes(digest, size).await;
                held.cached_bytes = Some(bytes.map_err(|error| failed(0, Some(digest), error))?);
            }
            Miss::Root(name) => {
                let node = match self.cache.root(&name).await {
                    Ok(node) => Some(node),
                    Err(CacheError::Remote(RemoteError::NotFound { .. })) => None,
                    Err(error) => return Err(failed(0, None, error)),
                };
                held.roots.insert(name, node);
            }
            Miss::StorePath(path) => {
                let node = match self.cache.store_path(&path).await {
                    Ok(node) => Some(node),
                    Err(CacheError::Remote(RemoteError::NotFound { .. })) => None,
                    Err(error) => return Err(failed(0, None, error)),
                };
                held.roots.insert(path.basename().clone(), node);
            }
            Miss::StorePaths => {
                let infos = self.cache.path_infos().await;
                let infos = infos.map_err(|error| failed(0, None, error))?;
                let mut roots: Vec<_> = infos
                    .into_iter()
                    .map(|info| (info.path.basename().clone(), info.node))
                    .collect();
                roots.sort_by(|a, b| a.0.cmp(&b.0));
                held.all_roots = Some(roots.into());
            }
            Miss::Roots => {
                let roots = self.cache.roots().await;
                let roots = roots.map_err(|error| failed(0, None, error))?;
                held.all_roots = Some(roots.into());
            }
        }
        Ok(())
    }

    /// Has the directories fetched that come after one that a caller waits for.
    fn missed_directory(&self, inode: u64) {
        if inode != ROOT_ID
            && let Ok(name) = self.inodes.name(inode)
            && let Ok(inode) = self.inodes.get(inode)
            && let Ok(parent) = self.inodes.get(inode.parent)
            && let InodeNode::Directory { digest, .. } = parent.node
            && let Some(directory) = self.cache.directory_at_hand(digest)
            && let Some(position) = directory.position(&name)
            && let Some(closure) = self.inodes.closure(inode.id)
        {
            self.prefetch
                .missed_directory(digest, &directory, position, closure);
        }
    }

    /// Notes an error that a reader is about to get. `inode` is 0 where there is none.
    pub(super) fn failed(&self, inode: u64, digest: Option<Digest>, error: &FsError) {
        let names = match inode {
            0 => Some(Vec::new()),
            inode => self.inodes.path(inode),
        };
        let path = names.map_or_else(
            || "/…".to_owned(),
            |names| {
                let names = names.iter().map(|name| String::from_utf8_lossy(name));
                format!("/{}", names.collect::<Vec<_>>().join("/"))
            },
        );
        self.recent_errors
            .note(RecentError::new(path, digest, error));
    }
}
