use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, mpsc},
};

use bytes::Bytes;
use tokio::sync::oneshot;

use super::{
    Blob, CacheError, Config, DataFile, Quota, Stats,
    index::{self, Index, Location},
    memory::Share,
    open_files::OpenFiles,
    rows::Row,
};
use crate::model::{Digest, Manifest};

/// The disk tier as its readers see it. Only the writer thread changes anything on disk; it takes [`Command`]s.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) dir: PathBuf,
    pub(super) index: Index,
    pub(super) files: OpenFiles,
    pub(super) stats: Arc<Stats>,
    pub(super) min_free: Quota,
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
    Directories(Vec<(Digest, Bytes)>, oneshot::Sender<()>),
    /// Something that nobody waits for.
    Row(Row),
    /// A chunk whose bytes are not what its digest says.
    Damaged(Digest, Location),
    /// A file whose chunks have all been verified, perhaps.
    Verified(Arc<DataFile>),
    /// A row whose file is missing or has the wrong length.
    Broken(u64),
    /// Answered when everything before it is synced and committed.
    Sync(oneshot::Sender<()>),
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
    pub(super) _share: Share,
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
            files: OpenFiles::new(&dir, open_file_limit(Self::MAX_OPEN)),
            dir,
            index,
            stats,
            min_free: config.min_free,
            pending: Mutex::default(),
        };
        store.set_quota(config.size)?;
        Ok(store)
    }

    fn set_quota(&self, size: Option<Quota>) -> Result<(), CacheError> {
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
            .or(known)
            .unwrap_or_else(|| Quota::default_for(filesystem.total).max(Self::MIN_QUOTA));
        if known != Some(wanted) {
            let mut connection = self.index.connect()?;
            self.index.write(&mut connection, |connection| {
                index::set_meta(connection, "quota", wanted)
            })?;
        }
        Ok(())
    }

    /// Size and free space of the filesystem that the cache is on, in bytes.
    pub(super) fn filesystem(&self) -> io::Result<Filesystem> {
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(Filesystem {
            total: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// Bytes of all files in the cache directory that are not data files.
    pub(super) fn other_bytes(&self) -> u64 {
        let files = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        files
            .filter_map(|entry| entry.metadata().ok())
            .filter(std::fs::Metadata::is_file)
            .map(|metadata| metadata.len())
            .sum()
    }

    /// Where a chunk lies, with its size, as the index says. Blocks on the disk.
    pub(super) fn locate(&self, digest: Digest) -> Result<Option<(Location, u64)>, CacheError> {
        self.index
            .read(|connection| index::chunk(connection, digest))
    }

    /// Opens a data file for reading; `None` when it was evicted. Blocks on the disk.
    pub(super) fn open_file(
        &self,
        number: u64,
        commands: &mpsc::Sender<Command>,
    ) -> Result<Option<Arc<DataFile>>, CacheError> {
        if let Some(file) = self.files.get(number) {
            return Ok(Some(file));
        }
        let row = self
            .index
            .read(|connection| index::file(connection, number))?;
        let Some(row) = row else {
            return Ok(None);
        };
        match self.files.open(&row, false) {
            Ok(file) => Ok(Some(file)),
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
                Ok(None)
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

    fn pendings(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// In bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filesystem {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// Raises the limit of open files as far as this process may, and takes half of it for data files.
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
        .map_or(most, |limit| usize::try_from(limit / 2).unwrap_or(most))
        .clamp(64, most)
}

/// Syncs a directory, so that the names of new files outlast a crash.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    std::fs::File::open(path)?.sync_all()
}
