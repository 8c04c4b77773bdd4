//! The filesystem: what the kernel asks for, answered from the cache. Knows nothing of how requests travel, so all of it
//! can be tested without a mount.
//!
//! - [`Filesystem`]: the operations; each that can miss answers [`Outcome::Miss`] instead of waiting
//! - `root`: what the mount's root shows; `switch` has it show another tree
//! - `inodes`: node ids, and forgetting them; `inode_number`: `st_ino`
//! - `attr`: what `stat` sees
//! - `position`: offsets of listings
//! - `lookup`, `listing`, `read`, `xattr`: operations by theme
//! - `resolve`: fetching what an operation missed
//! - `error`: the one place where an error becomes an errno
//! - `recent_errors`: the last errors, for a person
//! - [`dispatch`]: FUSE requests: decoding, answering, waiting, interrupting
//! - [`transport`]: how requests come and answers go; [`fuse`] is the one over `/dev/fuse`

mod attr;
pub mod dispatch;
mod error;
mod inode_number;
mod inodes;
mod listing;
mod lookup;
mod position;
mod read;
mod recent_errors;
mod resolve;
mod root;
mod switch;
pub mod transport;
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
pub use read::Slices;
pub use recent_errors::RecentError;
pub use resolve::{Held, Miss, Outcome};
pub use root::Root;
pub use switch::{Outdated, SwitchError};
pub use transport::fuse;
#[cfg(all(feature = "virtiofs", target_os = "linux"))]
pub use transport::virtiofs;
pub use xattr::{CACHED, CHUNKS};

use self::{
    inode_number::Width,
    inodes::{InodeTable, InodeView},
    listing::Handles,
    recent_errors::RecentErrors,
    root::ROOT_ID,
};
use crate::{
    cache::{Cache, Check},
    model::{Digest, Directory, Node},
    prefetch::{self, Prefetch},
};

/// Directories whose content is counted for `statfs`, at the most: a megabyte of memory.
const COUNTED: usize = 1 << 16;

/// What may differ from one mount to the next.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether the root can be listed.
    pub list_root: bool,
    /// How long the kernel keeps an entry of a root that changes, or that there is none.
    pub names_ttl: Duration,
    /// Whether there are extended attributes. Each `ls -l` asks for one of each file while there are.
    pub xattr: bool,
    /// Whether inode numbers have 32 bits, for programs that cannot take more.
    pub inode32: bool,
    /// User and group that everything belongs to.
    pub owner: (u32, u32),
    /// What is fetched ahead of readers.
    pub prefetch: prefetch::Settings,
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
    inodes: InodeTable,
    handles: Handles,
    recent_errors: RecentErrors,
    counted: Counted,
}

/// What has been seen of the tree so far, for `statfs`.
#[derive(Debug, Default)]
struct Counted {
    /// Bytes of the files in the directories seen.
    content: AtomicU64,
    /// The directories seen, by the prefix of their digest. The lock is held for a set operation only.
    directories: Mutex<HashSet<u64>>,
}

impl Counted {
    /// Another tree is shown.
    fn clear(&self) {
        let mut directories = self
            .directories
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        directories.clear();
        self.content.store(0, Ordering::Relaxed);
    }
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
        let width = match options.inode32 {
            true => Width::Folded,
            false => Width::Full,
        };
        Self {
            prefetch: Prefetch::new(Arc::clone(&cache), options.prefetch.clone()),
            inodes: InodeTable::new(width, root.directory()),
            cache,
            options,
            changes: root.changes(),
            root: RwLock::new(Arc::new(root)),
            handles: Handles::default(),
            recent_errors: RecentErrors::default(),
            counted: Counted::default(),
        }
    }

    /// Whether each byte is hashed that is served from the disk, so that nobody else is to keep it.
    pub(crate) fn hashes_always(&self) -> bool {
        self.cache.check() == Check::Always
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
        (self.changes && parent == ROOT_ID).then_some(self.options.names_ttl)
    }

    /// What follows the readers.
    #[must_use]
    pub const fn prefetch(&self) -> &Prefetch {
        &self.prefetch
    }

    /// The last errors that a reader has met, the newest last.
    #[must_use]
    pub fn recent_errors(&self) -> Vec<RecentError> {
        self.recent_errors.list()
    }

    /// How many inodes the kernel knows.
    #[must_use]
    pub fn inode_count(&self) -> usize {
        self.inodes.len()
    }

    /// How often the inode table was locked exclusively, for tests.
    #[must_use]
    pub fn exclusive_locks(&self) -> u64 {
        self.inodes.exclusive_locks()
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
            content: content.saturating_add(self.counted.content.load(Ordering::Relaxed)),
        }
    }

    /// The root as a directory in which entries are looked up, also where it is none of a tree.
    fn root_view(&self) -> InodeView {
        self.inodes
            .get(ROOT_ID)
            .unwrap_or_else(|_| InodeView::root_of_no_tree())
    }

    /// Counts a directory's files for `statfs`, where equal directories count once.
    fn count_content(&self, digest: Digest, directory: &Directory) {
        let new = {
            let mut seen = self
                .counted
                .directories
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            seen.len() < COUNTED && seen.insert(digest.prefix())
        };
        if new {
            self.counted
                .content
                .fetch_add(directory.content(), Ordering::Relaxed);
        }
    }
}
