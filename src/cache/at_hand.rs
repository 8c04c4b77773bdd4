use std::{
    collections::{HashMap, HashSet},
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread::JoinHandle,
    time::Instant,
};

use tokio::sync::broadcast;

use super::{
    Blob, CacheError, Check, ChunkData, Config, Counter, Pace, Slice, Stats,
    blob::{ONE_CHUNK, known_blob},
    closure::ClosureFlight,
    data_file::Trust,
    flights::Flights,
    index,
    memory::Memory,
    names::NameFlights,
    readers::{Readers, Waiting},
    shared_flights::SharedFlights,
    store::{Command, Store},
    throttle::Throttle,
    writer::Writer,
};
use crate::{
    model::{ChunkSlice, Digest, Manifest},
    remote::{Chain, RemoteStatus},
};

/// A blob up to this size, in bytes, is looked up in the index by the thread that answers the reader: a few rows are read
/// sooner than another thread is woken.
const LOOKED_UP_HERE: u64 = 16 << 20;

/// The thread of the writer, and what hangs up when it ends.
pub(super) struct WriterThread {
    pub(super) thread: JoinHandle<()>,
    pub(super) ended: mpsc::Receiver<()>,
}

/// Who asks for what is at hand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reader {
    New,
    /// One who asks once more, now that what he missed has come.
    Again,
}

/// The cache: two tiers over the remotes.
pub struct Cache {
    pub(super) store: Arc<Store>,
    pub(super) memory: Memory,
    pub(super) remote: Chain,
    pub(super) commands: mpsc::Sender<Command>,
    /// By digest and size, as are blobs: a manifest that lies about a size must not concern one that does not.
    pub(super) chunks: Flights<(Digest, u64), ChunkData>,
    pub(super) blobs: Flights<(Digest, u64), Arc<Blob>>,
    /// Blobs on their way that their remote does not cut.
    pub(super) streams: Flights<(Digest, u64), Manifest>,
    /// Manifests on their way for somebody who knows no size.
    pub(super) manifests: Flights<Digest, Option<Manifest>>,
    pub(super) names: NameFlights,
    pub(super) trust_streams: bool,
    pub(super) check: Check,
    /// Closures on their way, by their root. The lock is held for a map operation only; a flight's own lock may be taken under it.
    pub(super) closures: Mutex<HashMap<Digest, Arc<ClosureFlight>>>,
    /// Closures that are not taken as a whole. The lock is held for a set operation only.
    pub(super) huge: Mutex<HashSet<Digest>>,
    stats: Arc<Stats>,
    /// Manifests that lie, by blob and by the digest of their chunk list. The lock is held for a set operation only.
    pub(super) lies: Arc<Mutex<HashSet<(Digest, Digest)>>>,
    /// Blobs whose stream was served as it came, and was wrong. The lock is held for a set operation only.
    pub(super) untrusted: Mutex<HashSet<Digest>>,
    /// What was not there offline and was told of. The lock is held for a set operation only.
    pub(super) told: Mutex<HashSet<Digest>>,
    /// Blobs whose manifest was found to lie.
    pub(super) wrong: broadcast::Sender<Digest>,
    pub(super) writer: Mutex<Option<WriterThread>>,
    pub(super) readers: Readers,
    pub(super) shared_flights: SharedFlights,
    pub(super) throttle: Throttle,
    /// The lock is held for a look only.
    pace: Mutex<Pace>,
    /// What the pace counts its time from.
    pub(super) opened: Instant,
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
        let writer = match store.index.is_read_only() {
            true => None,
            false => Some(Writer::new(Arc::clone(&store))?),
        };
        let writable = writer.is_some();
        let unwritable = Arc::clone(&store);
        let (ends, ended) = mpsc::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("cache-writer".to_owned())
            .spawn(move || {
                let _ends = ends;
                match writer {
                    Some(writer) => writer.run(&receiver),
                    None => super::discard::discard(&unwritable, &receiver),
                }
            })
            .map_err(|error| CacheError::io(&store.dir, error))?;
        Ok(Arc::new(Self {
            shared_flights: SharedFlights::open(writable.then_some(&*store.dir)),
            store,
            memory: Memory::new(config.memory),
            remote,
            commands,
            chunks: Flights::default(),
            blobs: Flights::default(),
            closures: Mutex::default(),
            huge: Mutex::default(),
            lies: Arc::default(),
            untrusted: Mutex::default(),
            told: Mutex::default(),
            streams: Flights::default(),
            manifests: Flights::default(),
            names: NameFlights::default(),
            trust_streams: config.trust_streams,
            check: config.check,
            wrong: broadcast::channel(64).0,
            stats,
            writer: Mutex::new(Some(WriterThread { thread, ended })),
            readers: Readers::default(),
            throttle: Throttle::new(config.bandwidth),
            pace: Mutex::default(),
            opened: Instant::now(),
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

    /// How fast the remotes are.
    pub fn pace(&self) -> MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many readers wait for chunks.
    #[must_use]
    pub fn waiting_readers(&self) -> usize {
        self.readers.count()
    }

    /// Bytes of memory that may be in flight for whom no reader waits yet, and how many of them are free. Bytes that the
    /// disk has not taken yet are not.
    #[must_use]
    pub fn ahead(&self) -> (u64, u64) {
        self.memory.ahead()
    }

    /// Whether a chunk is in a tier, as far as this process knows, or on its way.
    #[must_use]
    pub fn is_near(&self, blob: &Blob, position: usize) -> bool {
        let Some(chunk) = blob.chunk(position) else {
            return true;
        };
        blob.place(position).is_some()
            || self.memory.chunks.contains_key(&chunk.digest)
            || self.chunks.has(&(chunk.digest, chunk.size))
    }

    /// Whether the beginning of a file is in a tier. Reads a row or two of the index.
    #[must_use]
    pub fn begins_here(&self, digest: Digest, size: u64) -> bool {
        if size > ONE_CHUNK {
            let blob = self.blob_at_hand(digest, size);
            return blob.is_some_and(|blob| self.is_near(&blob, 0));
        }
        self.memory.chunks.contains_key(&digest)
            || self.chunks.has(&(digest, size))
            || self.store.pending(digest).is_some()
            || self.store.locate(digest).is_some()
    }

    /// Whoever holds this is a reader who waits.
    #[must_use]
    pub fn reader_waits(&self) -> Waiting {
        self.readers.enter()
    }

    /// Tells of blobs whose bytes were served and then found wrong as a whole: what others keep of them must go.
    #[must_use]
    pub fn wrong_blobs(&self) -> broadcast::Receiver<Digest> {
        self.wrong.subscribe()
    }

    /// When bytes on disk are hashed that are served.
    #[must_use]
    pub const fn check(&self) -> Check {
        self.check
    }

    /// What messages call the remotes.
    #[must_use]
    pub fn remote_address(&self) -> &str {
        self.remote.address()
    }

    /// Whether no remote is asked.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.remote.is_offline()
    }

    /// Forgets what no remote had: something was put.
    pub fn forget_missing(&self) {
        self.remote.forget_missing();
    }

    /// The state of each remote.
    #[must_use]
    pub fn remote_status(&self) -> Vec<RemoteStatus> {
        self.remote.status()
    }

    /// A blob that is in memory, or a short one of which the index tells all.
    #[must_use]
    pub fn blob_at_hand(&self, digest: Digest, size: u64) -> Option<Arc<Blob>> {
        if let Some(blob) = self.memory.blob(digest, size)
            && !blob
                .as_arriving()
                .is_some_and(|arriving| arriving.is_over())
        {
            return Some(blob);
        }
        if size > LOOKED_UP_HERE {
            return None;
        }
        let blob = self
            .store
            .look_up(|connection| known_blob(connection, digest, size))
            // The index forgets a lie a moment after it was found out.
            .filter(|blob| !self.is_lie(digest)(blob.manifest()))?;
        if blob.is_due() {
            return None; // Whoever fetches it starts that.
        }
        let blob = Arc::new(blob);
        self.memory.keep_blob(digest, size, &blob);
        Some(blob)
    }

    /// A part of a chunk, if its bytes are in memory or in a file where they are known to be right.
    #[must_use]
    pub fn slice_at_hand(&self, blob: &Blob, slice: ChunkSlice, reader: Reader) -> Option<Slice> {
        let now = index::now();
        let data = self.data_at_hand(blob, slice.index, now)?;
        let counter = match data {
            ChunkData::Disk(..) => Counter::DiskHits,
            ChunkData::Memory(_) => Counter::MemoryHits,
        };
        self.stats.add(counter, 1);
        if reader == Reader::New {
            self.note_reader(blob, slice.index, slice.start == 0, now);
        }
        Some(Slice {
            data,
            start: slice.start,
            len: slice.len,
        })
    }

    /// The same, of a whole chunk, for whoever is no reader. `now`: seconds since 1970.
    pub(super) fn data_at_hand(&self, blob: &Blob, position: usize, now: u64) -> Option<ChunkData> {
        if self.check == Check::Stamp
            && let Some(data) = self.trusted_place(blob, position, now)
        {
            return Some(data);
        }
        let chunk = blob.chunk(position)?;
        let bytes = self.memory.chunks.get(&chunk.digest)?;
        (bytes.len() as u64 == chunk.size).then_some(ChunkData::Memory(bytes))
    }

    /// Notes that a reader comes for a chunk; `begins`: for its first byte. `now`: seconds since 1970.
    pub(super) fn note_reader(&self, blob: &Blob, position: usize, begins: bool, now: u64) {
        if let Some(chunk) = blob.chunk(position) {
            self.store.uses.note(chunk.digest, begins, now);
        }
    }

    /// Makes a slice longer by a part that lies right behind it in the same file and is known to be right. The file was looked at for
    /// the slice, a moment ago. False where it does not.
    #[must_use]
    pub fn extend_at_hand(
        &self,
        blob: &Blob,
        part: ChunkSlice,
        slice: &mut Slice,
        reader: Reader,
    ) -> bool {
        let ChunkData::Disk(file, offset) = &slice.data else {
            return false;
        };
        let (Some(place), Some(chunk)) = (blob.place(part.index), blob.chunk(part.index)) else {
            return false;
        };
        let begins = place.offset.checked_add(part.start);
        let ends = (offset.checked_add(slice.start)).and_then(|start| start.checked_add(slice.len));
        let follows = place.file == file.number() && begins.is_some() && begins == ends;
        if !follows || !file.is_verified(place.offset, chunk.size) {
            return false;
        }
        self.stats.add(Counter::DiskHits, 1);
        if reader == Reader::New {
            self.note_reader(blob, part.index, part.start == 0, index::now());
        }
        slice.len += part.len;
        true
    }

    /// Notes that earlier mounts have read a chunk: it is kept when it comes.
    pub fn note_known_use(&self, blob: &Blob, position: usize) {
        if let Some(chunk) = blob.chunk(position) {
            self.store.uses.expect(chunk.digest);
        }
    }

    /// Has the files that slices are in verified again, after one of them could not be read.
    pub fn distrust(&self, slices: &[Slice]) {
        for slice in slices {
            if let ChunkData::Disk(file, _) = &slice.data {
                file.distrust();
            }
        }
    }

    fn trusted_place(&self, blob: &Blob, position: usize, now: u64) -> Option<ChunkData> {
        let place = blob.place(position)?;
        let Some(file) = self.store.open_file(place.file, &self.commands) else {
            blob.forget_file(place.file);
            return None;
        };
        let size = blob.chunk(position)?.size;
        match file.trust(place.offset, size) {
            Trust::Verified => {
                file.touch(now);
                Some(ChunkData::Disk(file, place.offset))
            }
            Trust::Unknown => None,
            Trust::Gone => {
                self.store.files.remove(place.file);
                blob.forget_file(place.file);
                None
            }
        }
    }
}
