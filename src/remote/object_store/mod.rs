//! The object store layout of tvix and snix, in a directory or a cloud. Reading is here, writing in `publish`.

mod publish;

use std::{
    error::Error,
    path::{Path as FsPath, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use object_store::{ObjectStore, ObjectStoreExt, local::LocalFileSystem, path::Path};

use super::{
    Closure, Fault, Object, PathInfo, Pieces, Remote, RemoteError, Urgency, cloud, layout,
};
use crate::{
    model::{Digest, Manifest, Name, Node, OutputHash},
    proto,
};

/// How many directories of a closure are decoded ahead of their reader.
const CLOSURE_AHEAD: usize = 256;
/// How many root names are read at once.
const ROOTS_AT_ONCE: usize = 16;
/// Up to so many objects are synced one by one: syncing a whole filesystem waits for what others have written to it.
const SYNCED_SINGLY: usize = 64;
/// Frames up to this size, in bytes, are decompressed where they arrive: sooner than another thread is woken.
const DECOMPRESS_HERE: usize = 64 << 10;
/// The largest object that is read which has no announced size, in bytes: closures, manifests and names.
const MAX_METADATA: u64 = 64 << 20;
/// The largest chunk that is read, in bytes: it has to fit in memory.
const MAX_CHUNK: u64 = 1 << 30;
/// The largest chunk whose size nobody has told, in bytes.
const MAX_UNKNOWN: u64 = 64 << 20;

/// A store in the object store layout of tvix and snix.
#[derive(Debug)]
pub struct ObjectStoreRemote {
    /// Where it is, when it is in a directory.
    directory: Option<PathBuf>,
    address: Arc<str>,
    /// The most time between two pieces of an answer.
    idle: Duration,
    /// Whether names can be listed; where not, there are none to see.
    lists: bool,
    /// Opened at the first use that finds the directory: it may be on a disk that is attached later.
    store: OnceLock<Arc<dyn ObjectStore>>,
    /// Objects put since the last sync, up to one more than are synced one by one. The lock is held for a list
    /// operation only.
    unsynced: Mutex<Vec<Path>>,
}

impl ObjectStoreRemote {
    /// The store in a directory, which need not be there yet.
    #[must_use]
    pub fn directory(path: &FsPath) -> Self {
        Self {
            directory: Some(path.to_owned()),
            address: format!("objectstore+file://{}", path.display()).into(),
            idle: Duration::MAX,
            lists: true,
            store: OnceLock::new(),
            unsynced: Mutex::default(),
        }
    }

    /// A store that was opened. `idle` is the most time between two pieces of an answer; `lists` tells whether its
    /// objects can be listed.
    #[must_use]
    pub fn over(store: Arc<dyn ObjectStore>, address: &str, idle: Duration, lists: bool) -> Self {
        Self {
            directory: None,
            address: address.into(),
            idle,
            lists,
            store: OnceLock::from(store),
            unsynced: Mutex::default(),
        }
    }

    /// The store in a directory, which is created when it is not there.
    ///
    /// # Errors
    /// When the directory cannot be created or opened.
    pub fn create_directory(path: &FsPath) -> Result<Self, RemoteError> {
        let remote = Self::directory(path);
        std::fs::create_dir_all(path).map_err(|error| remote.write_failed(Object::Store, error))?;
        remote.store()?;
        Ok(remote)
    }

    fn store(&self) -> Result<&Arc<dyn ObjectStore>, RemoteError> {
        if let Some(store) = self.store.get() {
            return Ok(store);
        }
        let failed = |cause| RemoteError::Read {
            remote: Arc::clone(&self.address),
            object: Object::Store,
            fault: Fault::Refused,
            cause,
        };
        let Some(directory) = self.directory.as_ref().filter(|path| path.is_dir()) else {
            let cause = "the directory is not there; `castore import` makes it".into();
            return Err(failed(Arc::new(std::io::Error::other::<String>(cause))));
        };
        let store =
            LocalFileSystem::new_with_prefix(directory).map_err(|error| failed(Arc::new(error)))?;
        Ok(self.store.get_or_init(|| Arc::new(store)))
    }

    fn unsynced(&self) -> std::sync::MutexGuard<'_, Vec<Path>> {
        self.unsynced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_failed(&self, object: Object, error: object_store::Error) -> RemoteError {
        let remote = Arc::clone(&self.address);
        match error {
            object_store::Error::NotFound { .. } => RemoteError::NotFound { remote, object },
            error => RemoteError::Read {
                remote,
                object,
                fault: self.fault(&error),
                cause: self.cause(error),
            },
        }
    }

    /// A disk that fails goes on failing; a network may not, and neither does a process that has too many files open.
    fn fault(&self, error: &object_store::Error) -> Fault {
        match self.directory {
            Some(_) if cloud::lacks_descriptors(error) => Fault::Overload(None),
            Some(_) => Fault::Refused,
            None => cloud::fault(error),
        }
    }

    fn cause(&self, error: object_store::Error) -> Arc<dyn Error + Send + Sync> {
        match self.directory {
            Some(_) => Arc::new(error),
            None => Arc::new(std::io::Error::other(cloud::explain(&error))),
        }
    }

    fn put_failed(&self, object: Object, error: object_store::Error) -> RemoteError {
        RemoteError::Write {
            remote: Arc::clone(&self.address),
            object,
            fault: self.fault(&error),
            cause: self.cause(error),
        }
    }

    fn write_failed(
        &self,
        object: Object,
        error: impl Error + Send + Sync + 'static,
    ) -> RemoteError {
        RemoteError::Write {
            remote: Arc::clone(&self.address),
            object,
            fault: Fault::Refused,
            cause: Arc::new(error),
        }
    }

    fn corrupt(&self, object: Object, error: impl Error + Send + Sync + 'static) -> RemoteError {
        RemoteError::Corrupt {
            remote: Arc::clone(&self.address),
            object,
            cause: Arc::new(error),
        }
    }

    async fn get(&self, object: &Object, key: &Path, max: u64) -> Result<Bytes, RemoteError> {
        let failed = |error| self.read_failed(object.clone(), error);
        let request = self.store()?.get(key);
        let result = match self.directory {
            Some(_) => request.await.map_err(failed)?,
            None => self.in_time(object, request).await?.map_err(failed)?,
        };
        let too_large = |bytes: u64| {
            let error = std::io::Error::other(format!(
                "the object has {bytes} bytes; at most {max} are accepted"
            ));
            Err(self.corrupt(object.clone(), error))
        };
        if result.meta.size > max {
            return too_large(result.meta.size);
        }
        if self.directory.is_some() {
            return result.bytes().await.map_err(failed);
        }
        let announced = result.meta.size;
        let mut stream = result.into_stream();
        let mut pieces = Vec::new();
        let mut bytes = 0;
        while let Some(piece) = self.in_time(object, stream.next()).await? {
            let piece = piece.map_err(failed)?;
            bytes += piece.len() as u64;
            // A server may send more than it has announced.
            if bytes > max {
                return too_large(bytes);
            }
            pieces.push(piece);
        }
        if bytes != announced {
            return Err(RemoteError::Read {
                remote: Arc::clone(&self.address),
                object: object.clone(),
                fault: Fault::Unavailable,
                cause: Arc::new(std::io::Error::other(format!(
                    "{bytes} of {announced} bytes came"
                ))),
            });
        }
        Ok(match &mut pieces[..] {
            [only] => std::mem::take(only),
            pieces => pieces.concat().into(),
        })
    }

    /// Gives up when nothing comes for too long.
    async fn in_time<T>(
        &self,
        object: &Object,
        request: impl Future<Output = T>,
    ) -> Result<T, RemoteError> {
        tokio::time::timeout(self.idle, request)
            .await
            .map_err(|_| RemoteError::Read {
                remote: Arc::clone(&self.address),
                object: object.clone(),
                fault: Fault::Unavailable,
                cause: Arc::new(std::io::Error::other(format!(
                    "nothing came in {:?}",
                    self.idle
                ))),
            })
    }

    async fn put(&self, object: Object, key: &Path, bytes: Vec<u8>) -> Result<(), RemoteError> {
        self.store()?
            .put(key, bytes.into())
            .await
            .map_err(|error| self.put_failed(object, error))?;
        if self.directory.is_none() {
            return Ok(());
        }
        let mut unsynced = self.unsynced();
        if unsynced.len() <= SYNCED_SINGLY {
            unsynced.push(key.clone());
        }
        Ok(())
    }

    /// The object's size in bytes, 0 when it is not there. A machine that crashed while it imported can leave empty
    /// files behind; those count as missing, so that they are written again.
    async fn size(&self, object: Object, key: &Path) -> Result<u64, RemoteError> {
        match self.store()?.head(key).await {
            Ok(meta) => Ok(meta.size),
            Err(error) => match self.read_failed(object, error) {
                RemoteError::NotFound { .. } => Ok(0),
                error => Err(error),
            },
        }
    }

    async fn root_at(&self, name: &Name, key: &Path) -> Result<Node, RemoteError> {
        let object = Object::Root(name.clone());
        let bytes = self.get(&object, key, MAX_METADATA).await?;
        proto::decode_node(&bytes)
            .map(|(_, node)| node)
            .map_err(|error| self.corrupt(object, error))
    }

    fn root_key(&self, name: &Name) -> Result<Path, RemoteError> {
        layout::root_key(name).map_err(|error| self.write_failed(Object::Root(name.clone()), error))
    }
}

/// Runs what takes the processor for long away from the threads that wait for the network.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> std::io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(std::io::Error::other)?
}

#[async_trait]
impl Remote for ObjectStoreRemote {
    fn address(&self) -> &str {
        &self.address
    }

    async fn ping(&self) -> Result<(), RemoteError> {
        // Nothing has this digest; that it is not there is as good an answer as any.
        let key = layout::blob_key(Digest::of(b"castore: are you there?"));
        let size = self.size(Object::Store, &key);
        self.in_time(&Object::Store, size).await??;
        Ok(())
    }

    async fn manifest(&self, blob: Digest) -> Result<Option<Manifest>, RemoteError> {
        let object = Object::Blob(blob);
        if blob == Digest::empty() {
            return Ok(None);
        }
        let bytes = self
            .get(&object, &layout::blob_key(blob), MAX_METADATA)
            .await?;
        proto::decode_manifest(&bytes).map_err(|error| self.corrupt(object, error))
    }

    async fn chunk(
        &self,
        chunk: Digest,
        size: Option<u64>,
        _: &Urgency,
    ) -> Result<Bytes, RemoteError> {
        let object = Object::Chunk(chunk);
        let exact = size.is_some();
        let size = size.unwrap_or(MAX_UNKNOWN);
        if size > MAX_CHUNK {
            let error = std::io::Error::other(format!(
                "a chunk of {size} bytes; at most {MAX_CHUNK} are accepted"
            ));
            return Err(self.corrupt(object, error));
        }
        // A frame is never much longer than its content.
        let max = size.saturating_add(size / 128).saturating_add(1 << 10);
        let frame = self.get(&object, &layout::chunk_key(chunk), max).await?;
        let bytes = match frame.len() > DECOMPRESS_HERE || size > DECOMPRESS_HERE as u64 {
            true => off_thread(move || layout::decompress(&frame, size, exact)).await,
            false => layout::decompress(&frame, size, exact),
        };
        bytes
            .map(Bytes::from)
            .map_err(|error| self.corrupt(object, error))
    }

    async fn pieces(&self, blob: Digest, size: Option<u64>) -> Result<Pieces, RemoteError> {
        // It is one chunk here, and has to be there as a whole to be decompressed.
        let bytes = self.chunk(blob, size, &Urgency::reader()).await?;
        Ok(futures::stream::iter([Ok(bytes)]).boxed())
    }

    fn has_parts_of_closures(&self) -> bool {
        false
    }

    async fn closure(&self, root: Digest) -> Result<Closure, RemoteError> {
        let object = Object::Directory(root);
        if root == Digest::empty() {
            return Ok(futures::stream::iter([Ok(Bytes::new())]).boxed());
        }
        let stream = self
            .get(&object, &layout::closure_key(root), MAX_METADATA)
            .await?;
        let address = Arc::clone(&self.address);
        let (sender, receiver) = tokio::sync::mpsc::channel(CLOSURE_AHEAD);
        // Ends when the reader drops the stream: the channel is closed then.
        drop(tokio::task::spawn_blocking(move || {
            let records = layout::ClosureReader::new(&stream)
                .map(|mut reader| std::iter::from_fn(move || reader.next().transpose()));
            let (records, failed) = match records {
                Ok(records) => (Some(records), None),
                Err(error) => (None, Some(Err(error))),
            };
            for record in records.into_iter().flatten().chain(failed) {
                let last = record.is_err();
                let record = record.map_err(|error| RemoteError::Corrupt {
                    remote: Arc::clone(&address),
                    object: object.clone(),
                    cause: Arc::new(error),
                });
                if sender.blocking_send(record).is_err() || last {
                    return;
                }
            }
        }));
        let records = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|record| (record, receiver))
        });
        Ok(records.boxed())
    }

    async fn root(&self, name: &Name) -> Result<Node, RemoteError> {
        self.root_at(name, &self.root_key(name)?).await
    }

    async fn roots(&self) -> Result<Vec<(Name, Node)>, RemoteError> {
        let prefix = layout::roots_prefix();
        let mut listed = self.store()?.list(Some(&prefix));
        let mut names = Vec::new();
        while let Some(listed) = self.in_time(&Object::Roots, listed.next()).await? {
            let key = match listed.map_err(|error| self.read_failed(Object::Roots, error)) {
                Ok(meta) => meta.location,
                Err(error) if !self.lists && error.fault() == Some(Fault::Refused) => {
                    return Ok(Vec::new());
                }
                Err(error) => return Err(error),
            };
            match layout::root_name(key.filename().unwrap_or_default()) {
                Ok(name) => names.push((name, key)),
                Err(error) => tracing::warn!(%key, %error, "not a root name"),
            }
        }
        let mut roots: Vec<_> = futures::stream::iter(names)
            .map(|(name, key)| async move {
                // What a WebDAV server lists has its own prefix in front.
                let key = match self.lists {
                    true => key,
                    false => self.root_key(&name)?,
                };
                match self.root_at(&name, &key).await {
                    Ok(node) => Ok(Some((name, node))),
                    // Removed between the listing and the reading.
                    Err(RemoteError::NotFound { .. }) => Ok(None),
                    Err(error @ RemoteError::Corrupt { .. }) => {
                        tracing::warn!(%error, "root name left out");
                        Ok(None)
                    }
                    Err(error) => Err(error),
                }
            })
            .buffer_unordered(ROOTS_AT_ONCE)
            .try_filter_map(|root| std::future::ready(Ok(root)))
            .try_collect()
            .await?;
        roots.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(roots)
    }

    async fn path_info(&self, hash: OutputHash) -> Result<PathInfo, RemoteError> {
        // The layout has no place for them.
        Err(RemoteError::NotFound {
            remote: Arc::clone(&self.address),
            object: Object::StorePath(hash),
        })
    }

    async fn path_infos(&self) -> Result<Vec<PathInfo>, RemoteError> {
        Ok(Vec::new())
    }
}
