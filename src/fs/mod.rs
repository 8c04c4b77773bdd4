//! The filesystem: what the kernel asks for, answered from the cache. Knows nothing of how requests travel, so all of it
//! can be tested without a mount.
//!
//! - [`Filesystem`]: the operations; each that can miss answers [`Outcome::Miss`] instead of waiting
//! - `root`: what the mount's root shows; `switch` has it show another tree
//! - `inodes`: node ids, and forgetting them
//! - `attr`: what `stat` sees
//! - `lookup`, `listing`, `read`, `xattr`: operations by theme
//! - `resolve`: fetching what an operation missed
//! - `error`: the one place where an error becomes an errno
//! - `troubles`: the last errors, for a person
//! - [`fuse`]: the transport over `/dev/fuse`

mod attr;
mod error;
pub mod fuse;
mod inodes;
mod listing;
mod lookup;
mod read;
mod resolve;
mod root;
mod switch;
mod troubles;
mod xattr;

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

pub use attr::{Attr, Kind};
pub use error::FsError;
pub use listing::{Listed, Listing};
pub use lookup::Entry;
pub use resolve::{Held, Miss, Outcome};
pub use root::Root;
pub use switch::SwitchError;
pub use troubles::Trouble;
pub use xattr::{CACHE_DIR, CACHED, CHUNKS, DAEMON};

use self::{inodes::Inodes, listing::Handles, troubles::Troubles};
use crate::{
    cache::Cache,
    model::{Digest, Directory, Node},
    prefetch::{self, Prefetch},
};

/// What may differ from one mount to the next.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether the root can be listed.
    pub list_root: bool,
    /// How long the kernel keeps an entry of a root that changes, or that there is none.
    pub names_ttl: Duration,
    /// Whether there are extended attributes.
    pub xattr: bool,
    /// User and group that everything belongs to.
    pub owner: (u32, u32),
    /// What is fetched ahead of readers.
    pub prefetch: prefetch::Settings,
    /// Answer of the attribute `user.castore.daemon` of the root.
    pub daemon: String,
    /// Answer of the attribute `user.castore.cache` of the root.
    pub cache_dir: String,
}

/// A mounted tree.
#[derive(Debug)]
pub struct Filesystem {
    cache: Arc<Cache>,
    prefetch: Prefetch,
    options: Options,
    /// The lock is held for a look only.
    root: RwLock<Arc<Root>>,
    /// Whether what the root shows can change without [`Filesystem::switch`].
    changes: bool,
    inodes: Inodes,
    handles: Handles,
    troubles: Troubles,
    known: Known,
}

/// What has been seen of the tree so far, for `statfs`.
#[derive(Debug, Default)]
struct Known {
    /// Bytes of the files in the directories seen.
    content: AtomicU64,
    /// The directories seen, by the prefix of their digest. The lock is held for a set operation only.
    directories: Mutex<HashSet<u64>>,
}

/// Answer of `statfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Entries of the tree.
    pub entries: u64,
    /// Bytes of content, as far as known.
    pub content: u64,
}

impl Filesystem {
    /// Must be called within a tokio runtime: prefetching starts tasks in it.
    #[must_use]
    pub fn new(cache: Arc<Cache>, root: Root, options: Options) -> Self {
        Self {
            prefetch: Prefetch::new(Arc::clone(&cache), options.prefetch.clone()),
            inodes: Inodes::new(&root),
            cache,
            options,
            changes: root.changes(),
            root: RwLock::new(Arc::new(root)),
            handles: Handles::default(),
            troubles: Troubles::default(),
            known: Known::default(),
        }
    }

    #[must_use]
    pub const fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    #[must_use]
    pub fn root(&self) -> Arc<Root> {
        Arc::clone(&self.root.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether entries of the root can come, go and stand for something else.
    #[must_use]
    pub const fn changes(&self) -> bool {
        self.changes
    }

    /// How long the kernel may keep an entry below `parent`, or that there is none; `None`: for ever.
    #[must_use]
    pub fn ttl(&self, parent: u64) -> Option<Duration> {
        (self.changes && parent == root::ROOT_ID).then_some(self.options.names_ttl)
    }

    /// What follows the readers.
    #[must_use]
    pub const fn prefetch(&self) -> &Prefetch {
        &self.prefetch
    }

    /// The last errors that a reader has met, the newest last.
    #[must_use]
    pub fn troubles(&self) -> Vec<Trouble> {
        self.troubles.list()
    }

    /// How many inodes the kernel knows.
    #[must_use]
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// The node ids of the files with this content that the kernel knows; `None`: of all files.
    #[must_use]
    pub fn nodes_of(&self, blob: Option<Digest>) -> Vec<u64> {
        self.inodes.of_blob(blob)
    }

    /// For `statfs`; answers at once.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let (entries, content) = match &*self.root() {
            Root::Directory { size, .. } => (*size, 0),
            Root::Single { node, .. } => match node {
                Node::File { size, .. } => (1, *size),
                Node::Directory { size, .. } => (size.saturating_add(1), 0),
                Node::Symlink { .. } => (1, 0),
            },
            Root::Names | Root::StorePaths => (0, 0),
        };
        Totals {
            entries,
            content: content.saturating_add(self.known.content.load(Ordering::Relaxed)),
        }
    }

    fn note_directory(&self, prefix: u64, directory: &Directory) {
        let new = {
            let mut seen = self
                .known
                .directories
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            seen.insert(prefix)
        };
        if new {
            let bytes = directory.entries().iter().map(|entry| match entry.node {
                Node::File { size, .. } => size,
                Node::Directory { .. } | Node::Symlink { .. } => 0,
            });
            let bytes = bytes.fold(0, u64::saturating_add);
            self.known.content.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}
