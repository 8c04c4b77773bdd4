use std::{
    collections::HashSet,
    io::Read,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::{
    ImportError,
    chunker::{self, CutError},
    tree::Tree,
};
use crate::{
    model::{Digest, Manifest, Node},
    remote::{Publish, RemoteError},
};

/// Chunks that wait for a publisher; with [`PUTS_AT_ONCE`] it bounds the memory of an import.
const CHUNKS_AHEAD: usize = 16;
const PUTS_AT_ONCE: usize = 16;

/// Counters that a progress bar can watch.
#[derive(Debug, Default)]
pub struct Progress {
    /// Files to read, as far as known.
    pub files_total: AtomicU64,
    pub files: AtomicU64,
    /// Bytes to read, as far as known.
    pub bytes_total: AtomicU64,
    pub bytes: AtomicU64,
    pub chunks: AtomicU64,
    pub chunks_written: AtomicU64,
}

/// The threads' end of the pipeline: cuts files and hands their chunks over.
#[derive(Clone)]
pub(super) struct Cutter {
    chunks: mpsc::Sender<(Digest, Bytes)>,
    manifests: Arc<Mutex<Vec<(Digest, Manifest)>>>,
    progress: Arc<Progress>,
}

impl Cutter {
    /// Cuts one file. Blocks; not for async code.
    pub(super) fn cut(&self, path: &Path, source: impl Read) -> Result<(Digest, u64), ImportError> {
        let cut = chunker::cut(source, |digest, bytes| {
            self.progress
                .bytes
                .fetch_add(bytes.len() as u64, Ordering::Relaxed);
            self.chunks.blocking_send((digest, bytes)).is_ok()
        })
        .map_err(|error| match error {
            CutError::Read(cause) => ImportError::Read {
                path: path.to_owned(),
                cause,
            },
            CutError::Manifest(error) => error.into(),
            CutError::Stopped => ImportError::Stopped,
        })?;
        self.progress.files.fetch_add(1, Ordering::Relaxed);
        let size = cut.manifest.size();
        if size > 0 {
            self.manifests
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((cut.digest, cut.manifest));
        }
        Ok((cut.digest, size))
    }
}

/// Runs `cut_all` on `threads` threads and publishes the chunks and manifests that come out. When it returns, all of
/// them are there and synced.
pub(super) async fn run<T: Send + 'static>(
    publish: &dyn Publish,
    progress: &Arc<Progress>,
    threads: usize,
    cut_all: impl Fn(Cutter) -> Result<T, ImportError> + Clone + Send + 'static,
) -> Result<Vec<T>, ImportError> {
    let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
    let manifests = Arc::new(Mutex::new(Vec::new()));
    let workers: Vec<_> = (0..threads)
        .map(|_| {
            let cutter = Cutter {
                chunks: sender.clone(),
                manifests: Arc::clone(&manifests),
                progress: Arc::clone(progress),
            };
            let cut_all = cut_all.clone();
            tokio::task::spawn_blocking(move || cut_all(cutter))
        })
        .collect();
    drop(sender);

    // Dropping the receiver at a failed put is what stops the workers.
    let published = put_chunks(publish, progress, receiver).await;
    let mut results = Vec::with_capacity(threads);
    let mut failed = None;
    for worker in workers {
        match worker.await {
            Ok(Ok(result)) => results.push(result),
            // The others stop because of the first, whose reason is the one to tell.
            Ok(Err(error)) if !matches!(failed, None | Some(ImportError::Stopped)) => {
                tracing::debug!(%error, "also failed");
            }
            Ok(Err(error)) => failed = Some(error),
            Err(_) => failed = Some(ImportError::Stopped),
        }
    }
    published?;
    if let Some(error) = failed {
        return Err(error);
    }
    let manifests = std::mem::take(&mut *manifests.lock().unwrap_or_else(PoisonError::into_inner));
    put_manifests(publish, manifests).await?;
    Ok(results)
}

async fn put_chunks(
    publish: &dyn Publish,
    progress: &Progress,
    receiver: mpsc::Receiver<(Digest, Bytes)>,
) -> Result<(), RemoteError> {
    let mut seen = HashSet::new();
    stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk| (chunk, receiver))
    })
    .filter(|(digest, _)| std::future::ready(seen.insert(*digest)))
    .map(Ok)
    .try_for_each_concurrent(PUTS_AT_ONCE, |(digest, bytes)| async move {
        progress.chunks.fetch_add(1, Ordering::Relaxed);
        if !publish.has_chunk(digest).await? {
            publish.put_chunk(digest, bytes).await?;
            progress.chunks_written.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    })
    .await
}

async fn put_manifests(
    publish: &dyn Publish,
    mut manifests: Vec<(Digest, Manifest)>,
) -> Result<(), RemoteError> {
    manifests.sort_by_key(|(blob, _)| *blob);
    manifests.dedup_by_key(|(blob, _)| *blob);
    let missing: Vec<_> = stream::iter(manifests)
        .map(|(blob, manifest)| async move {
            let there = publish.has_blob(blob).await?;
            Ok::<_, RemoteError>((!there).then_some((blob, manifest)))
        })
        .buffer_unordered(PUTS_AT_ONCE)
        .try_filter_map(|missing| std::future::ready(Ok(missing)))
        .try_collect()
        .await?;
    if missing.is_empty() {
        return Ok(());
    }
    // A manifest must not outlast the chunks that it names.
    publish.sync().await?;
    stream::iter(missing.iter().map(Ok))
        .try_for_each_concurrent(PUTS_AT_ONCE, |(blob, manifest)| {
            publish.put_manifest(*blob, manifest)
        })
        .await
}

/// Publishes a tree's directories, after everything they refer to.
pub(super) async fn put_tree(publish: &dyn Publish, tree: Tree) -> Result<Node, RemoteError> {
    if let Node::Directory { digest, .. } = tree.root
        && digest != Digest::empty()
        && !publish.has_closure(digest).await?
    {
        publish.sync().await?;
        publish.put_closure(digest, tree.closure).await?;
    }
    publish.sync().await?;
    Ok(tree.root)
}
