use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
};

use bytes::{Bytes, BytesMut};
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    Blob, CacheError, ChunkData, Config, Counter, DataFile, Slice, Stats, Usage,
    closure::ClosureFlight,
    data_file::Trust,
    flights::Flights,
    index::{self, Location},
    memory::Memory,
    store::{Command, NewChunk, Pending, Store},
    writer::Writer,
};
use crate::{
    model::{ChunkSlice, Digest, Directory, Manifest, Name, Node},
    remote::{Chain, Remote, RemoteError},
};

/// A blob up to this size, in bytes, is asked for as one chunk before anybody asks for its manifest: chunking makes no
/// smaller chunks, so the answer is nearly always there.
const ONE_CHUNK: u64 = 128 << 10;

/// A blob up to this size, in bytes, is looked up in the index by the thread that answers the reader: a few rows are read
/// sooner than another thread is woken.
const LOOKED_UP_HERE: u64 = 16 << 20;

/// The cache: two tiers over the remotes.
pub struct Cache {
    pub(super) store: Arc<Store>,
    pub(super) memory: Memory,
    pub(super) remote: Arc<Chain>,
    pub(super) commands: mpsc::Sender<Command>,
    chunks: Flights<Digest, ChunkData>,
    blobs: Flights<(Digest, u64), Arc<Blob>>,
    /// Closures on their way, by their root. The lock is held for a map operation only.
    pub(super) closures: Mutex<HashMap<Digest, Arc<ClosureFlight>>>,
    stats: Arc<Stats>,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("dir", &self.store.dir)
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

// What is at hand: never waits for the network, and for the disk as little as a few rows of the index.
impl Cache {
    /// Opens the cache in a directory, over remotes. Costs the same however full it is.
    ///
    /// # Errors
    /// When the directory cannot hold a cache or the index cannot be opened.
    pub fn open(config: &Config, remote: Chain) -> Result<Arc<Self>, CacheError> {
        let stats = Arc::new(Stats::default());
        let store = Arc::new(Store::open(config, Arc::clone(&stats))?);
        let (commands, receiver) = mpsc::channel();
        let writer = Writer::new(Arc::clone(&store))?;
        let writer = std::thread::Builder::new()
            .name("cache-writer".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(|error| CacheError::io(&store.dir, error))?;
        Ok(Arc::new(Self {
            store,
            memory: Memory::new(config.memory),
            remote: Arc::new(remote),
            commands,
            chunks: Flights::default(),
            blobs: Flights::default(),
            closures: Mutex::default(),
            stats,
            writer: Mutex::new(Some(writer)),
        }))
    }

    /// The directory it is in.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.store.dir
    }

    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// What messages call the remotes.
    #[must_use]
    pub fn remote_address(&self) -> &str {
        self.remote.address()
    }

    #[must_use]
    pub fn directory_at_hand(&self, digest: Digest) -> Option<Arc<Directory>> {
        if digest == Digest::empty() {
            return Some(Arc::default());
        }
        self.memory.directories.get(&digest)
    }

    /// A blob that is in memory, or a short one of which the index tells all.
    #[must_use]
    pub fn blob_at_hand(&self, digest: Digest, size: u64) -> Option<Arc<Blob>> {
        if let Some(blob) = self.memory.blobs.get(&(digest, size)) {
            return Some(blob);
        }
        if size > LOOKED_UP_HERE {
            return None;
        }
        let (manifest, places) = self
            .store
            .index
            .read(|connection| known_blob(connection, digest, size))
            .ok()
            .flatten()?;
        let blob = Arc::new(Blob::new(digest, manifest, places));
        self.memory.blobs.insert((digest, size), Arc::clone(&blob));
        Some(blob)
    }

    /// A part of a chunk, if its bytes are in memory or in a file where they are known to be right.
    #[must_use]
    pub fn slice_at_hand(&self, blob: &Blob, slice: ChunkSlice) -> Option<Slice> {
        let data = if let Some(data) = self.trusted_place(blob, slice.index) {
            self.stats.add(Counter::DiskHits, 1);
            data
        } else {
            let bytes = self.memory.chunks.get(&blob.chunk(slice.index)?.digest)?;
            self.stats.add(Counter::MemoryHits, 1);
            ChunkData::Memory(bytes)
        };
        Some(Slice {
            data,
            start: slice.start,
            len: slice.len,
        })
    }

    /// Has the files that slices are in verified again, after one of them could not be read.
    pub fn distrust(&self, slices: &[Slice]) {
        for slice in slices {
            if let ChunkData::Disk(file, _) = &slice.data {
                file.distrust();
            }
        }
    }

    fn trusted_place(&self, blob: &Blob, position: usize) -> Option<ChunkData> {
        let place = blob.place(position)?;
        let Ok(Some(file)) = self.store.open_file(place.file, &self.commands) else {
            blob.set_place(position, None);
            return None;
        };
        match file.trust(place.offset) {
            Trust::Verified => {
                file.touch(index::now());
                Some(ChunkData::Disk(file, place.offset))
            }
            Trust::Unknown => None,
            Trust::Gone => {
                self.store.files.remove(place.file);
                blob.set_place(position, None);
                None
            }
        }
    }
}

// What may have to be fetched.
impl Cache {
    /// A blob's manifest, and where its chunks lie.
    ///
    /// # Errors
    /// When it is neither in the index nor to be had from a remote.
    pub async fn blob(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<Arc<Blob>, CacheError> {
        if let Some(blob) = self.blob_at_hand(digest, size) {
            return Ok(blob);
        }
        let task = || {
            let cache = Arc::clone(self);
            async move {
                let blob = Arc::new(cache.find_blob(digest, size).await?);
                cache.memory.blobs.insert((digest, size), Arc::clone(&blob));
                Ok(blob)
            }
        };
        self.blobs.join((digest, size), task).await
    }

    /// A chunk's bytes, verified.
    ///
    /// # Errors
    /// When it is not on disk, or damaged there, and not to be had from a remote.
    pub async fn chunk(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
    ) -> Result<ChunkData, CacheError> {
        let digest = blob.chunk(position).ok_or(CacheError::Aborted)?.digest;
        let task = || {
            let (cache, blob) = (Arc::clone(self), Arc::clone(blob));
            async move { cache.find_chunk(&blob, position).await }
        };
        self.chunks.join(digest, task).await
    }

    /// The node that a name stands for: as the remote says, or where no remote answers, as it said last.
    ///
    /// # Errors
    /// When there is no such name, or no remote answers and the name was never asked for.
    pub async fn root(self: &Arc<Self>, name: &Name) -> Result<Node, CacheError> {
        match self.remote.root(name).await {
            Ok(node) => {
                self.send(Command::Name(name.clone(), node.clone()));
                Ok(node)
            }
            Err(error @ RemoteError::NotFound { .. }) => {
                self.send(Command::ForgetName(name.clone()));
                Err(error.into())
            }
            Err(error) => {
                let wanted = name.clone();
                let known = self.query(move |connection| index::name(connection, &wanted));
                match known.await? {
                    Some(node) => {
                        tracing::info!(%name, %error, "the name is taken from the cache");
                        Ok(node)
                    }
                    None => Err(error.into()),
                }
            }
        }
    }

    /// All names, as [`Cache::root`] says of one.
    ///
    /// # Errors
    /// When no remote answers and no name is known.
    pub async fn roots(self: &Arc<Self>) -> Result<Vec<(Name, Node)>, CacheError> {
        match self.remote.roots().await {
            Ok(roots) => {
                for (name, node) in &roots {
                    self.send(Command::Name(name.clone(), node.clone()));
                }
                Ok(roots)
            }
            Err(error) => {
                let known = self.query(index::names).await?;
                if known.is_empty() {
                    return Err(error.into());
                }
                tracing::info!(%error, "the names are taken from the cache");
                Ok(known)
            }
        }
    }

    /// How many bytes of a blob are on disk. Asks no remote.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub async fn cached_bytes(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<u64, CacheError> {
        let cache = Arc::clone(self);
        self.query(move |connection| {
            let manifest = index::manifest(connection, digest)?
                .filter(|manifest| manifest.size() == size)
                .unwrap_or_else(|| Manifest::whole(digest, size));
            let mut bytes = 0;
            for chunk in manifest.chunks() {
                let there = cache.store.pending(chunk.digest).is_some()
                    || index::chunk(connection, chunk.digest)?.is_some();
                bytes += if there { chunk.size } else { 0 };
            }
            Ok(bytes)
        })
        .await
    }

    /// Returns when all that was fetched before is synced and committed.
    pub async fn sync(&self) {
        let (done, synced) = oneshot::channel();
        self.send(Command::Sync(done));
        let _ = synced.await;
    }

    /// Commits what is left to write and ends the writer thread. Blocks.
    pub fn close(&self) {
        self.send(Command::Stop);
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(writer) = writer
            && writer.join().is_err()
        {
            tracing::error!("the writer of the cache panicked");
        }
    }

    /// Room taken, and counters summed over all processes that ever used this cache. Blocks on the disk.
    ///
    /// # Errors
    /// When the index cannot be read.
    pub fn usage(&self) -> Result<(Usage, Vec<(String, u64)>), CacheError> {
        let (usage, counters, quota) = self.store.index.read(|connection| {
            Ok((
                index::usage(connection)?,
                index::counters(connection)?,
                index::meta(connection, "quota")?,
            ))
        })?;
        let usage = Usage {
            other_bytes: self.store.other_bytes(),
            quota_bytes: quota.unwrap_or_default(),
            ..usage
        };
        Ok((usage, counters))
    }

    pub(super) fn send(&self, command: Command) {
        // It fails only after `close`, when nothing is written any more.
        let _ = self.commands.send(command);
    }

    /// Runs a query on a thread that may wait for the disk.
    pub(super) async fn query<T: Send + 'static>(
        self: &Arc<Self>,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, CacheError> {
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.index.read(query))
            .await
            .map_err(|_| CacheError::Aborted)?
    }

    async fn find_blob(self: &Arc<Self>, digest: Digest, size: u64) -> Result<Blob, CacheError> {
        if size == 0 {
            return Ok(Blob::new(digest, Manifest::whole(digest, 0), Vec::new()));
        }
        let known = self
            .query(move |connection| known_blob(connection, digest, size))
            .await?;
        if let Some((manifest, places)) = known {
            return Ok(Blob::new(digest, manifest, places));
        }
        let manifest = self.remote.manifest(digest, size).await?;
        if manifest.chunks().len() > 1 {
            self.send(Command::Manifest(digest, manifest.clone()));
        }
        let wanted = manifest.clone();
        let places = self
            .query(move |connection| places(connection, &wanted))
            .await?;
        Ok(Blob::new(digest, manifest, places))
    }

    async fn find_chunk(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
    ) -> Result<ChunkData, CacheError> {
        let chunk = *blob.chunk(position).ok_or(CacheError::Aborted)?;
        if let Some(bytes) = self.memory.chunks.get(&chunk.digest) {
            return Ok(ChunkData::Memory(bytes));
        }
        let on_disk = {
            let (cache, blob) = (Arc::clone(self), Arc::clone(blob));
            tokio::task::spawn_blocking(move || cache.find_on_disk(&blob, position))
        };
        if let Some(data) = on_disk.await.map_err(|_| CacheError::Aborted)?? {
            return Ok(data);
        }
        let permit = self.memory.reserve(chunk.size).await;
        self.stats.add(Counter::Misses, 1);
        let bytes = match self.remote.chunk(chunk.digest, chunk.size).await {
            Err(error) if error.is_not_found() && chunk.digest == blob.digest() => {
                self.assemble(chunk.digest, chunk.size, error).await?
            }
            bytes => bytes.inspect_err(|error| self.count_rejected(error))?,
        };
        self.stats.add(Counter::FetchedBytes, bytes.len() as u64);
        self.memory.chunks.insert(chunk.digest, bytes.clone());
        self.store
            .set_pending(chunk.digest, Pending::Queued(bytes.clone()));
        self.send(Command::Chunk(NewChunk {
            digest: chunk.digest,
            bytes: bytes.clone(),
            blob: Arc::clone(blob),
            position,
            _permit: permit,
        }));
        Ok(ChunkData::Memory(bytes))
    }

    /// A small blob that the remote has split all the same: its chunks, joined.
    async fn assemble(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        not_found: RemoteError,
    ) -> Result<Bytes, CacheError> {
        if size > ONE_CHUNK {
            return Err(not_found.into());
        }
        let manifest = self.remote.manifest(digest, size).await?;
        if manifest.chunks().len() < 2 {
            return Err(not_found.into());
        }
        let mut joined = BytesMut::new();
        for chunk in manifest.chunks() {
            let bytes = self.remote.chunk(chunk.digest, chunk.size).await;
            joined.extend_from_slice(&bytes.inspect_err(|error| self.count_rejected(error))?);
        }
        if Digest::of(&joined) != digest {
            self.stats.add(Counter::RejectedObjects, 1);
            return Err(CacheError::BlobMismatch {
                digest,
                remote: self.remote.address().to_owned(),
            });
        }
        Ok(joined.freeze())
    }

    fn count_rejected(&self, error: &RemoteError) {
        if matches!(error, RemoteError::Corrupt { .. }) {
            self.stats.add(Counter::RejectedObjects, 1);
        }
    }

    /// A chunk from the writer's queue or from a data file; verified where that has not been done under the file's
    /// present stamp. Blocks on the disk.
    fn find_on_disk(&self, blob: &Blob, position: usize) -> Result<Option<ChunkData>, CacheError> {
        let Some(chunk) = blob.chunk(position) else {
            return Ok(None);
        };
        let pending = self.store.pending(chunk.digest);
        let location = match pending {
            Some(Pending::Queued(bytes)) => return Ok(Some(ChunkData::Memory(bytes))),
            Some(Pending::Written(location)) => Some((location, chunk.size)),
            None => self.store.locate(chunk.digest)?,
        };
        let found = match location {
            Some((location, size)) if size == chunk.size => self
                .open_verified(chunk.digest, location, size)?
                .map(|file| (file, location)),
            Some(_) | None => None,
        };
        blob.set_place(position, found.as_ref().map(|(_, location)| *location));
        Ok(found.map(|(file, location)| {
            self.stats.add(Counter::DiskHits, 1);
            ChunkData::Disk(file, location.offset)
        }))
    }

    fn open_verified(
        &self,
        digest: Digest,
        location: Location,
        size: u64,
    ) -> Result<Option<Arc<DataFile>>, CacheError> {
        let Some(file) = self.store.open_file(location.file, &self.commands)? else {
            return Ok(None);
        };
        match file.trust(location.offset) {
            Trust::Verified => return Ok(Some(file)),
            Trust::Gone => {
                self.store.files.remove(location.file);
                return Ok(None);
            }
            Trust::Unknown => {}
        }
        let problem = match file.verify(digest, location.offset, size) {
            Ok(true) => {
                self.send(Command::Verified(Arc::clone(&file)));
                return Ok(Some(file));
            }
            Ok(false) => "its bytes are not what its digest says".to_owned(),
            Err(error) => error.to_string(),
        };
        self.stats.add(Counter::DamagedChunks, 1);
        tracing::warn!(%digest, path = ?self.store.files.path(location.file), offset = location.offset,
            %problem, "a cached chunk is damaged; it is fetched again");
        self.send(Command::Damaged(digest, location));
        Ok(None)
    }
}

/// A blob's manifest and the places of its chunks, where the manifest is known. One that may be a single chunk is taken
/// for one.
fn known_blob(
    connection: &Connection,
    digest: Digest,
    size: u64,
) -> rusqlite::Result<Option<(Manifest, Vec<Option<Location>>)>> {
    let manifest = if size <= ONE_CHUNK {
        Some(Manifest::whole(digest, size))
    } else if let Some(manifest) = index::manifest(connection, digest)? {
        Some(manifest)
    } else {
        index::chunk(connection, digest)?.map(|(_, chunk_size)| Manifest::whole(digest, chunk_size))
    };
    match manifest.filter(|manifest| manifest.size() == size) {
        Some(manifest) => places(connection, &manifest).map(|at| Some((manifest, at))),
        None => Ok(None),
    }
}

fn places(connection: &Connection, manifest: &Manifest) -> rusqlite::Result<Vec<Option<Location>>> {
    manifest
        .chunks()
        .iter()
        .map(|chunk| {
            let found = index::chunk(connection, chunk.digest)?;
            Ok(found
                .filter(|(_, size)| *size == chunk.size)
                .map(|(location, _)| location))
        })
        .collect()
}
