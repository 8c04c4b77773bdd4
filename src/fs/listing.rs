use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Entry, Filesystem, FsError, Held, Kind, Miss, Outcome,
    inodes::{InodeView, ListedInode},
    position::{Layout, Position},
    root::{ROOT_ID, Root, Roots},
};
use crate::model::{Directory, NodeRef};

/// A directory as it is listed, from an offset on.
#[derive(Debug, Clone)]
pub struct Listing {
    inode: InodeView,
    /// Where it begins.
    position: Position,
    layout: Layout,
    /// `st_ino` of the directory above.
    parent_number: u64,
    entries: Entries,
}

#[derive(Debug, Clone)]
enum Entries {
    Directory(Arc<Directory>),
    Roots(Roots),
}

/// One line of a listing.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    pub name: &'a [u8],
    /// `None` for `.` and `..`.
    node: Option<NodeRef<'a>>,
    pub kind: Kind,
    /// The offset behind it.
    pub next: u64,
}

impl Listing {
    /// The lines from the offset on.
    pub fn lines(&self) -> impl Iterator<Item = Listed<'_>> {
        (self.position.index..).map_while(|index| self.at(index))
    }

    fn at(&self, index: u64) -> Option<Listed<'_>> {
        let next = Position {
            index: index + 1,
            ..self.position
        };
        let index = usize::try_from(index).ok()?;
        let (name, node) = match index {
            0 => (&b"."[..], None),
            1 => (&b".."[..], None),
            _ => match &self.entries {
                Entries::Directory(directory) => {
                    let entry = directory.at(index - 2)?;
                    (entry.name, Some(entry.node))
                }
                Entries::Roots(roots) => {
                    let (name, node) = roots.get(index - 2)?;
                    (&name.as_bytes()[..], Some(node.borrowed()))
                }
            },
        };
        Some(Listed {
            name,
            node,
            kind: node.map_or(Kind::Directory, Kind::of),
            next: self.layout.offset(next),
        })
    }
}

impl Listed<'_> {
    /// Not `.` or `..`.
    #[must_use]
    pub const fn is_entry(&self) -> bool {
        self.node.is_some()
    }
}

/// Listings of the root that may be open at once: each keeps the names that there were. A guest may never close one.
const MOST_OPEN: usize = 4096;

/// Listings of the root that were opened: names change, and a listing must not.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: AtomicU64,
    /// The lock is held for a map operation only.
    open: Mutex<HashMap<u64, Roots>>,
}

impl Handles {
    fn insert(&self, roots: Roots) -> Result<u64, FsError> {
        let handle = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut open = self.open();
        if open.len() >= MOST_OPEN {
            return Err(FsError::TooManyOpen);
        }
        open.insert(handle, roots);
        Ok(handle)
    }

    /// Closes all.
    pub(super) fn clear(&self) {
        self.open().clear();
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Roots>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Filesystem {
    /// Opens a directory for listing. The handle is to be given to [`Filesystem::listing`] and
    /// [`Filesystem::release_listing`]; 0 where none is needed.
    pub fn open_listing(&self, id: u64, held: &Held) -> Outcome<u64> {
        if id != ROOT_ID {
            return Outcome::Ready(self.inodes.get(id).map(|_| 0));
        }
        if !self.options.list_root {
            return Outcome::Ready(Err(FsError::ListingOff));
        }
        match (&*self.root(), held.roots()) {
            (Root::Names, None) => Outcome::Miss(Miss::Roots),
            (Root::StorePaths, None) => Outcome::Miss(Miss::StorePaths),
            (Root::Names | Root::StorePaths, Some(roots)) => {
                Outcome::Ready(self.handles.insert(roots))
            }
            (Root::Directory { .. } | Root::Single { .. }, _) => Outcome::Ready(Ok(0)),
        }
    }

    pub fn release_listing(&self, handle: u64) {
        self.handles.open().remove(&handle);
    }

    /// A directory's lines from an offset on: 0, or that of a line of the same listing.
    pub fn listing(&self, id: u64, handle: u64, offset: u64, held: &Held) -> Outcome<Listing> {
        if id == ROOT_ID && !self.options.list_root {
            return Outcome::Ready(Err(FsError::ListingOff));
        }
        let ListedInode { inode, position } = match self.inodes.listed(id, offset) {
            Ok(listed) => listed,
            Err(error) => return Outcome::Ready(Err(error)),
        };
        let listing = |entries| Listing {
            inode,
            position,
            layout: self.inodes.positions(),
            parent_number: match inode.parent {
                ROOT_ID => self.root_view().number,
                parent => self.inodes.get(parent).unwrap_or(inode).number,
            },
            entries,
        };
        if inode.node != InodeView::root_of_no_tree().node {
            let directory = self.directory(&inode, held);
            return directory.map(|directory| listing(Entries::Directory(directory)));
        }
        let roots = match &*self.root() {
            Root::Single { name, node } => Some([(name.clone(), node.clone())].into()),
            Root::Names | Root::StorePaths => self.handles.open().get(&handle).map(Arc::clone),
            Root::Directory { .. } => None,
        };
        let listed = roots.map(|roots| listing(Entries::Roots(roots)));
        Outcome::Ready(listed.ok_or(FsError::Malformed))
    }

    /// `d_ino` of a line: the `st_ino` of its entry.
    #[must_use]
    pub fn number(&self, listing: &Listing, listed: &Listed<'_>) -> u64 {
        match (listed.node, listed.name) {
            (Some(node), name) => self.inodes.number(listing.inode.number, name, node),
            (None, b"..") => listing.parent_number,
            (None, _) => listing.inode.number,
        }
    }

    /// The entry of a line, as a lookup: to be taken back by [`Filesystem::forget`]. `None` for `.` and `..`, and where the
    /// directory was given another content since it was opened: the kernel must look that up by itself.
    pub fn look_up_listed(&self, listing: &Listing, listed: &Listed<'_>) -> Option<Entry> {
        let inode = self
            .inodes
            .look_up(&listing.inode, listed.name, listed.node?)
            .ok()?;
        Some(self.entry(&inode, listing.inode.id))
    }
}
