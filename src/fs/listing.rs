use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Entry, Filesystem, FsError, Held, Kind, Miss, Outcome,
    inodes::InodeView,
    root::{ROOT_ID, Root, Roots},
};
use crate::model::{Directory, NodeRef};

/// A directory as it is listed. Offsets are positions: 0 is before `.`, 2 before the first entry.
#[derive(Debug, Clone)]
pub struct Listing {
    inode: InodeView,
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
    /// The offset of the next line.
    pub next: u64,
}

impl Listing {
    /// The line at an offset, `None` at the end.
    #[must_use]
    pub fn at(&self, offset: u64) -> Option<Listed<'_>> {
        let index = usize::try_from(offset).ok()?;
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
            next: offset + 1,
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

/// Listings of the root that were opened: names change, and a listing must not.
#[derive(Debug, Default)]
pub(super) struct Handles {
    next: AtomicU64,
    /// The lock is held for a map operation only.
    open: Mutex<HashMap<u64, Roots>>,
}

impl Handles {
    fn insert(&self, roots: Roots) -> u64 {
        let handle = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        self.open().insert(handle, roots);
        handle
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
                Outcome::Ready(Ok(self.handles.insert(roots)))
            }
            (Root::Directory { .. } | Root::Single { .. }, _) => Outcome::Ready(Ok(0)),
        }
    }

    pub fn release_listing(&self, handle: u64) {
        self.handles.open().remove(&handle);
    }

    /// A directory's lines.
    pub fn listing(&self, id: u64, handle: u64, held: &Held) -> Outcome<Listing> {
        if id == ROOT_ID {
            if !self.options.list_root {
                return Outcome::Ready(Err(FsError::ListingOff));
            }
            let entries = match &*self.root() {
                Root::Directory { .. } => None,
                Root::Single { name, node } => Some([(name.clone(), node.clone())].into()),
                Root::Names | Root::StorePaths => match self.handles.open().get(&handle) {
                    Some(roots) => Some(Arc::clone(roots)),
                    None => return Outcome::Ready(Err(FsError::Malformed)),
                },
            };
            if let Some(roots) = entries {
                let inode = self.root_view();
                return Outcome::Ready(Ok(Listing {
                    inode,
                    parent_number: inode.number,
                    entries: Entries::Roots(roots),
                }));
            }
        }
        let inode = match self.inodes.get(id) {
            Ok(inode) => inode,
            Err(error) => return Outcome::Ready(Err(error)),
        };
        let parent_number = match inode.parent {
            ROOT_ID => self.root_view().number,
            parent => self.inodes.get(parent).unwrap_or(inode).number,
        };
        self.directory(&inode, held).map(|directory| Listing {
            inode,
            parent_number,
            entries: Entries::Directory(directory),
        })
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
