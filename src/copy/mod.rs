//! Moves trees between stores: only what is missing, chunks before manifests before directories before names, so that a
//! root that is there is complete, and what was interrupted goes on where it stopped.
//!
//! - [`copy`]: one tree
//! - [`Progress`]: counters that a progress bar can watch

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use tokio::sync::Semaphore;

use crate::{
    import::{self, ImportError},
    model::{Digest, Directory, DirectoryError, Manifest, Node, NodeRef},
    remote::{Chain, Pieces, Publish, PutWhole, RemoteError, Urgency},
};

/// Blobs that are looked at at once …
const BLOBS: usize = 32;
/// … and chunks on their way, from there and to here; together they bound the memory.
const CHUNKS: usize = 64;
/// Chunks of one blob that are ahead of the one that is hashed.
const CHUNKS_OF_BLOB: usize = 8;
/// A blob that is sent as a whole is sent again so often, after a pause that grows by this.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(500);
/// A blob that is not split is moved as one chunk up to this size, in bytes.
const STREAMED: u64 = 4 << 20;
/// Pieces of a stream that wait to be cut.
const AHEAD: usize = 4;

/// Why a tree was not copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error("the directory {digest} at {remote} is damaged: {cause}")]
    Directory {
        digest: Digest,
        remote: String,
        cause: DirectoryError,
    },
    #[error("the closure of {root} at {remote} has a directory {digest} that nothing refers to")]
    Unexpected {
        root: Digest,
        digest: Digest,
        remote: String,
    },
    #[error("the closure of {root} at {remote} does not have the directory {digest}")]
    Incomplete {
        root: Digest,
        digest: Digest,
        remote: String,
    },
    #[error("the blob {digest} was not taken by {remote} in {deadline:?}")]
    Silent {
        digest: Digest,
        remote: String,
        deadline: Duration,
    },
    #[error("the blob {digest} from {remote} has other bytes than its digest says")]
    Blob { digest: Digest, remote: String },
}

/// Counters that a progress bar can watch.
#[derive(Debug, Default)]
pub struct Progress {
    /// Bytes of all files, as far as known.
    pub bytes_total: AtomicU64,
    /// Of those, moved or found to be there.
    pub bytes: AtomicU64,
    /// Bytes that were moved.
    pub moved: AtomicU64,
    pub blobs: AtomicU64,
}

/// Copies what a node is and all below it.
///
/// # Errors
/// When something cannot be read or written, or is not what its digest says. What was copied stays, and is not copied
/// again.
pub async fn copy(
    from: &Chain,
    to: &Arc<dyn Publish>,
    node: &Node,
    progress: &Progress,
) -> Result<(), CopyError> {
    let (mut blobs, mut closure) = (HashMap::new(), None);
    match node {
        Node::Symlink { .. } => return Ok(()),
        Node::File { digest, size, .. } => {
            blobs.insert(*digest, *size);
        }
        Node::Directory { digest, .. } => {
            if *digest == Digest::empty() || to.has_closure(*digest).await? {
                return Ok(());
            }
            closure = Some((*digest, directories(from, *digest, &mut blobs).await?));
        }
    }
    blobs.remove(&Digest::empty());
    let total = blobs
        .values()
        .fold(0, |sum: u64, size| sum.saturating_add(*size));
    progress.bytes_total.fetch_add(total, Ordering::Relaxed);
    let copier = Copier {
        from,
        to,
        progress,
        at_once: Semaphore::new(CHUNKS),
        chunks: Mutex::default(),
    };
    let manifests: Vec<_> = futures::stream::iter(blobs)
        .map(|(digest, size)| copier.blob(digest, size))
        .buffer_unordered(BLOBS)
        .try_filter_map(|manifest| std::future::ready(Ok(manifest)))
        .try_collect()
        .await?;
    to.sync().await?;
    futures::stream::iter(manifests.iter().map(Ok))
        .try_for_each_concurrent(BLOBS, |(digest, manifest)| {
            to.put_manifest(*digest, manifest)
        })
        .await?;
    to.sync().await?;
    if let Some((root, directories)) = closure {
        to.put_closure(root, directories).await?;
        to.sync().await?;
    }
    Ok(())
}

/// A closure, verified, and the blobs that its directories refer to.
async fn directories(
    from: &Chain,
    root: Digest,
    blobs: &mut HashMap<Digest, u64>,
) -> Result<Vec<Bytes>, CopyError> {
    let remote = || from.address().to_owned();
    let mut records = from.closure(root, 0).await?;
    let (mut expected, mut seen) = (HashSet::from([root]), HashSet::new());
    let mut directories = Vec::new();
    while let Some(record) = records.next().await.transpose()? {
        let digest = Digest::of(&record);
        if !expected.contains(&digest) {
            let remote = remote();
            return Err(CopyError::Unexpected {
                root,
                digest,
                remote,
            });
        }
        if !seen.insert(digest) {
            continue;
        }
        let directory = Directory::decode(&record[..]).map_err(|cause| CopyError::Directory {
            digest,
            remote: remote(),
            cause,
        })?;
        for entry in directory.entries() {
            match entry.node {
                NodeRef::Directory { digest, .. } => {
                    expected.insert(digest);
                }
                NodeRef::File { digest, size, .. } => {
                    blobs.insert(digest, size);
                }
                NodeRef::Symlink { .. } => {}
            }
        }
        directories.push(record);
    }
    // The empty directory is there without anybody sending it, but who lists closures may want it.
    if expected.contains(&Digest::empty()) && seen.insert(Digest::empty()) {
        directories.push(Bytes::new());
    }
    match expected.difference(&seen).next() {
        Some(digest) => Err(CopyError::Incomplete {
            root,
            digest: *digest,
            remote: remote(),
        }),
        None => Ok(directories),
    }
}

struct Copier<'a> {
    from: &'a Chain,
    to: &'a Arc<dyn Publish>,
    progress: &'a Progress,
    at_once: Semaphore,
    /// Those that somebody takes care of. The lock is held for a set operation only.
    chunks: Mutex<HashSet<Digest>>,
}

impl Copier<'_> {
    /// Copies a blob's bytes. Gives the manifest that is to be put once all chunks are there, where it has to be.
    async fn blob(
        &self,
        digest: Digest,
        size: u64,
    ) -> Result<Option<(Digest, Manifest)>, CopyError> {
        self.progress.blobs.fetch_add(1, Ordering::Relaxed);
        if self.to.has_blob(digest).await? {
            self.progress.bytes.fetch_add(size, Ordering::Relaxed);
            return Ok(None);
        }
        let manifest = match self.from.manifest(digest, Some(size), |_| false).await? {
            Some(manifest) => manifest,
            None if size > STREAMED => {
                self.stream(digest, size).await?;
                return Ok(None);
            }
            None => Manifest::whole(digest, size),
        };
        if !manifest.is_whole(digest)
            && let Some(whole) = self.to.as_whole().await?
        {
            // It cuts for itself, so it is sent the bytes once, in order.
            let _place = self.at_once.acquire().await;
            self.whole(whole, digest, &manifest).await?;
            self.count(size);
            return Ok(None);
        }
        // That the chunks make up the blob is only what the manifest says, and whoever reads it there trusts us.
        let verified_here = !self.to.verifies() && !manifest.is_whole(digest);
        let mut hasher = blake3::Hasher::new();
        let mut chunks = futures::stream::iter(manifest.chunks().to_vec())
            .map(|chunk| self.chunk(chunk.digest, chunk.size, verified_here))
            .buffered(CHUNKS_OF_BLOB);
        while let Some(bytes) = chunks.next().await.transpose()? {
            if let Some(bytes) = bytes {
                hasher = tokio::task::spawn_blocking(move || {
                    hasher.update(&bytes);
                    hasher
                })
                .await
                .map_err(|_| ImportError::Stopped)?;
            }
        }
        if verified_here && Digest::from(hasher.finalize()) != digest {
            return Err(CopyError::Blob {
                digest,
                remote: self.from.address().to_owned(),
            });
        }
        Ok(Some((digest, manifest)))
    }

    /// Sends a blob as a whole, again where it breaks off.
    async fn whole(
        &self,
        whole: &dyn PutWhole,
        digest: Digest,
        manifest: &Manifest,
    ) -> Result<(), CopyError> {
        let deadline = self.from.deadline(manifest.size());
        let mut attempts = 0;
        loop {
            let put = whole.put_whole(digest, self.in_order(manifest));
            let put = tokio::time::timeout(deadline, put).await;
            match put {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if !error.is_transient() || attempts >= ATTEMPTS => {
                    return Err(error.into());
                }
                Ok(Err(error)) => tracing::info!(%error, "sending it again"),
                Err(_) if attempts >= ATTEMPTS => {
                    return Err(CopyError::Silent {
                        digest,
                        remote: self.to.address().to_owned(),
                        deadline,
                    });
                }
                Err(_) => tracing::info!(%digest, "no answer in {deadline:?}; sending it again"),
            }
            attempts += 1;
            tokio::time::sleep(PAUSE * attempts).await;
        }
    }

    /// Gives the bytes where they are `wanted`, from where they cost no network if they can be had there.
    async fn chunk(
        &self,
        digest: Digest,
        size: u64,
        wanted: bool,
    ) -> Result<Option<Bytes>, CopyError> {
        let urgency = Urgency::default();
        let _place = self.at_once.acquire().await;
        let new = {
            let mut chunks = self.chunks.lock().unwrap_or_else(PoisonError::into_inner);
            chunks.insert(digest)
        };
        if !new || self.to.has_chunk(digest).await? {
            self.progress.bytes.fetch_add(size, Ordering::Relaxed);
            if !wanted {
                return Ok(None);
            }
            if new && self.to.is_local() {
                let bytes = self.to.chunk(digest, Some(size), &urgency).await?;
                if Digest::of(&bytes) == digest {
                    return Ok(Some(bytes));
                }
            }
            return Ok(Some(self.from.chunk(digest, Some(size), &urgency).await?));
        }
        let bytes = self.from.chunk(digest, Some(size), &urgency).await?;
        self.to.put_chunk(digest, bytes.clone()).await?;
        self.count(size);
        Ok(wanted.then_some(bytes))
    }

    fn count(&self, size: u64) {
        self.progress.bytes.fetch_add(size, Ordering::Relaxed);
        self.progress.moved.fetch_add(size, Ordering::Relaxed);
    }

    /// A blob's bytes in order, each chunk verified.
    fn in_order(&self, manifest: &Manifest) -> Pieces {
        let from = self.from.clone();
        let chunks = manifest.chunks().to_vec();
        futures::stream::iter(chunks)
            .map(move |chunk| {
                let from = from.clone();
                async move {
                    from.chunk(chunk.digest, Some(chunk.size), &Urgency::default())
                        .await
                }
            })
            .buffered(AHEAD)
            .boxed()
    }

    /// A large blob that its store does not split: it is cut on its way.
    async fn stream(&self, digest: Digest, size: u64) -> Result<(), CopyError> {
        let _place = self.at_once.acquire().await;
        let mut pieces = self.from.pieces(digest, Some(size), 0).await?;
        let (sender, receiver) = tokio::sync::mpsc::channel(AHEAD);
        let source = import::Pipe::new(receiver);
        let import = import::import_blob(Arc::clone(self.to), source);
        let feed = async move {
            while let Some(piece) = pieces.next().await.transpose()? {
                if sender.send(Some(piece)).await.is_err() {
                    return Ok(());
                }
            }
            let _ = sender.send(None).await;
            Ok::<_, RemoteError>(())
        };
        let (imported, all) = futures::join!(import, feed);
        all?;
        if imported? != digest {
            return Err(CopyError::Blob {
                digest,
                remote: self.from.address().to_owned(),
            });
        }
        self.count(size);
        Ok(())
    }
}
