use std::{
    collections::HashMap,
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use bytes::Bytes;
use rusqlite::Connection;
use tokio::sync::oneshot;

use super::{
    Blob, CacheError, Config, DataFile, Quota, Stats,
    backlog::{Backlog, Queued},
    index::{self, Index, Location},
    memory::Share,
    open_files::OpenFiles,
    rows::Row,
    uses::Uses,
};
use crate::model::{Digest, Manifest};

/// That the index cannot be read is said once in so many seconds.
const COMPLAIN_AFTER: u64 = 60;

/// The disk tier as its readers see it. Only the writer thread changes anything on disk; it takes [`Command`]s.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) dir: PathBuf,
    pub(super) index: Index,
    pub(super) files: OpenFiles,
    pub(super) stats: Arc<Stats>,
    pub(super) min_free: Quota,
    pub(super) backlog: Arc<Backlog>,
    /// Whether what is fetched is to stay.
    pub(super) keeps: bool,
    /// In bytes, as it was when this process looked last.
    quota: AtomicU64,
    /// When it was last said that the index cannot be read, in seconds since 1970.
    complained_at: AtomicU64,
    pub(super) uses: Uses,
    /// Chunks that no row of the index names yet. The lock is held for a map operation only.
    pending: Mutex<HashMap<Digest, Pending>>,
}

/// Where a chunk is on its way to the index.
#[derive(Debug, Clone)]
pub(super) enum Pending {
    /// In the writer's queue.
    Queued(Bytes),
    /// In a data file, not synced yet; and its size in bytes.
    Written(Location, u64),
}

/// What the writer thread is asked to do.
pub(super) enum Command {
    Chunk(NewChunk),
    Manifest {
        blob: Digest,
        manifest: Manifest,
        /// Its chunks are known to no remote.
        cut_here: bool,
    },
    /// A blob that was verified as a whole, and whether it was right.
    Judged(Arc<Blob>, bool),
    /// Answered when they are in the index, or cannot be.
    Directories(Vec<(Digest, Bytes)>, Queued, oneshot::Sender<()>),
    /// Something that nobody waits for.
    Row(Row),
    /// A chunk whose bytes are not what its digest says.
    Damaged(Digest, Location),
    /// A file whose chunks have all been verified, perhaps.
    Verified(Arc<DataFile>),
    /// A row whose file is missing or has the wrong length.
    Broken(u64),
    /// Answered when everything before it is committed and synced, or what was committed cannot be.
    Sync(oneshot::Sender<Result<(), CacheError>>),
    /// Commit and end.
    Stop,
}

/// A chunk that was fetched and verified.
pub(super) struct NewChunk {
    pub(super) digest: Digest,
    pub(super) bytes: Bytes,
    /// The blob it was fetched for, and its position there.
    pub(super) blob: Arc<Blob>,
    pub(super) position: usize,
    /// Given back once it is written.
    pub(super) share: Share,
    pub(super) queued: Option<Queued>,
    pub(super) if_slow: IfSlow,
    /// Of one that is copied since it was used: how often it was read, to begin with.
    pub(super) stays: Option<u32>,
}

/// What becomes of a chunk that the disk does not take in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfSlow {
    /// It is left out, and fetched again where it is wanted again.
    LeaveOut,
    /// Whoever fetched it waits, since it cannot be fetched alone.
    Wait,
}

impl Store {
    /// The smallest quota, in bytes: the index and a few segments must fit.
    const MIN_QUOTA: u64 = 16 << 20;
    /// Files that stay open at the most.
    const MAX_OPEN: usize = 4096;

    pub(super) fn open(config: &Config, stats: Arc<Stats>) -> Result<Self, CacheError> {
        let dir = super::guard::prepare(&config.dir)?;
        let index = Index::open(&dir)?;
        let store = Self {
            files: OpenFiles::new(&dir, open_file_limit(Self::MAX_OPEN))?,
            dir,
            index,
            stats,
            min_free: config.min_free,
            backlog: Arc::new(Backlog::new()),
            keeps: config.keeps,
            quota: AtomicU64::new(u64::MAX),
            complained_at: AtomicU64::new(0),
            uses: Uses::default(),
            pending: Mutex::default(),
        };
        store.set_quota(config.size, config.resizes)?;
        Ok(store)
    }

    /// `resizes`: the quota becomes `size` also where there was another one before.
    fn set_quota(&self, size: Option<Quota>, resizes: bool) -> Result<(), CacheError> {
        let filesystem = self
            .filesystem()
            .map_err(|error| CacheError::io(&self.dir, error))?;
        let explicit = size.map(|quota| quota.bytes(filesystem.total));
        if let Some(bytes) = explicit
            && bytes < Self::MIN_QUOTA
        {
            return Err(CacheError::TooSmall {
                bytes,
                minimum: Self::MIN_QUOTA,
            });
        }
        let known = self
            .index
            .read(|connection| index::meta(connection, "quota"))?;
        let wanted = explicit
            .filter(|_| resizes || known.is_none())
            .or(known)
            .unwrap_or_else(|| Quota::default_for(filesystem.total).max(Self::MIN_QUOTA));
        self.quota.store(wanted, Ordering::Relaxed);
        if known == Some(wanted) || self.index.is_read_only() {
            return Ok(());
        }
        let data = self.index.read(index::data_bytes)?;
        if known.is_some() && data > wanted {
            tracing::warn!(
                dir = ?self.dir, wanted, bytes = data,
                "the cache has more bytes than it may have now; what was not used for the longest time goes"
            );
        }
        let mut connection = self.index.connect()?;
        let set = self.index.write(&mut connection, |connection| {
            index::set_meta(connection, "quota", wanted)
        });
        if let Err(error) = set {
            // A disk that is full, or a process that was stopped while it wrote, is no reason not to read.
            tracing::warn!(%error, wanted, "the quota of the cache is not changed");
        }
        Ok(())
    }

    /// Whether a blob of so many bytes can be here as a whole, and for longer than it takes to read it: in probation, too.
    pub(super) fn keeps_all_of(&self, blob: u64) -> bool {
        blob <= self.quota.load(Ordering::Relaxed) / 16
    }

    /// The most bytes that the cache may take: what the index says now, or what this process knows.
    pub(super) fn quota(&self, in_index: Option<u64>) -> u64 {
        if let Some(quota) = in_index {
            self.quota.store(quota, Ordering::Relaxed);
        }
        self.quota.load(Ordering::Relaxed)
    }

    /// Size and free space of the filesystem that the cache is on, in bytes.
    pub(super) fn filesystem(&self) -> io::Result<Filesystem> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(Filesystem {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Bytes of the files in the cache directory that are not data files.
    pub(super) fn others(&self) -> Others {
        let files = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let mut others = Others::default();
        for entry in files {
            let Some(metadata) = entry.metadata().ok().filter(std::fs::Metadata::is_file) else {
                continue;
            };
            let name = entry.file_name();
            let name = name.as_encoded_bytes();
            let bytes = match name {
                b"index.sqlite-wal" | b"index.sqlite-shm" => &mut others.passing,
                _ if name.starts_with(b"index.sqlite")
                    || name.starts_with(b"castore.log")
                    || name == b"flights" =>
                {
                    &mut others.staying
                }
                _ => &mut others.foreign,
            };
            *bytes += metadata.len();
        }
        others
    }

    /// What the index says, for a reader. One that cannot be read says nothing, so that what it may have is fetched. Blocks on the disk.
    pub(super) fn look_up<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<Option<T>>,
    ) -> Option<T> {
        self.index.read(query).unwrap_or_else(|error| {
            let now = index::now();
            let before = self.complained_at.swap(now, Ordering::Relaxed);
            if before + COMPLAIN_AFTER <= now {
                tracing::warn!(%error, "the index cannot be read; what is cached may be fetched again");
            }
            None
        })
    }

    /// Where a chunk lies, with its size, as the index says. Blocks on the disk.
    pub(super) fn locate(&self, digest: Digest) -> Option<(Location, u64)> {
        self.look_up(|connection| index::chunk(connection, digest))
    }

    /// Opens a data file for reading; `None` when it was evicted. Blocks on the disk.
    pub(super) fn open_file(
        &self,
        number: u64,
        commands: &mpsc::Sender<Command>,
    ) -> Option<Arc<DataFile>> {
        if let Some(file) = self.files.get(number) {
            return Some(file);
        }
        let row = self.look_up(|connection| index::file(connection, number))?;
        match self.files.open(&row, false) {
            Ok(file) => Some(file),
            Err(error) => {
                let path = self.files.path(number);
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::InvalidData
                ) {
                    let _ = commands.send(Command::Broken(number));
                } else {
                    tracing::warn!(?path, %error, "a data file of the cache cannot be opened");
                }
                None
            }
        }
    }

    pub(super) fn pending(&self, digest: Digest) -> Option<Pending> {
        self.pendings().get(&digest).cloned()
    }

    pub(super) fn set_pending(&self, digest: Digest, pending: Pending) {
        self.pendings().insert(digest, pending);
    }

    pub(super) fn remove_pending(&self, digest: Digest) {
        self.pendings().remove(&digest);
    }

    /// What readers came for, of what is in the index; not all of it at once.
    pub(super) fn uses(&self) -> Vec<(Digest, u8)> {
        self.uses.take_some(|chunk| self.pending(chunk).is_some())
    }

    /// Forgets that a chunk was written to a file.
    pub(super) fn remove_written(&self, digest: Digest, file: u64) {
        let mut pendings = self.pendings();
        if matches!(pendings.get(&digest), Some(Pending::Written(location, _)) if location.file == file)
        {
            pendings.remove(&digest);
        }
    }

    fn pendings(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of files in a cache directory that are not data files.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Others {
    /// The index, and the log of mounts.
    pub(super) staying: u64,
    /// The index's own log, which grows and begins anew all the time.
    pub(super) passing: u64,
    /// Of others, which do not count for the quota.
    pub(super) foreign: u64,
}

/// In bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filesystem {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// Raises the limit of open files as far as this process may, and takes a quarter of it for data files: the writer and the syncer hold
/// as many, and the rest is for all else.
fn open_file_limit(most: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        ..limit
    };
    let limit = match rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    limit
        .map_or(most, |limit| usize::try_from(limit / 4).unwrap_or(most))
        .clamp(16, most)
}
