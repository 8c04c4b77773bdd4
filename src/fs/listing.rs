use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Entry, Filesystem, FsError, Held, Kind, Miss, Outcome,
    attr::inode_number,
    lookup::closure_of,
    root::{ROOT_ID, Root, Roots},
};
use crate::model::{Digest, Directory, Name, Node};

/// A directory as it is listed. Offsets are positions: 0 is before `.`, 2 before the first entry.
#[derive(Debug, Clone)]
pub struct Listing {
    id: u64,
    inode: u64,
    entries: Entries,
    /// Root of a closure that has the entries; a listed root name is its own.
    closure: Option<Digest>,
}

#[derive(Debug, Clone)]
enum Entries {
    Directory(Arc<Directory>),
    Roots(Roots),
}

/// One line of a listing.
#[derive(Debug)]
pub struct Listed<'a> {
    pub name: &'a [u8],
    pub inode: u64,
    pub kind: Kind,
    /// The offset of the next line.
    pub next: u64,
    /// `None` for `.` and `..`.
    node: Option<(&'a Name, &'a Node)>,
}

impl Listing {
    /// The line at an offset, `None` at the end.
    #[must_use]
    pub fn at(&self, offset: u64) -> Option<Listed<'_>> {
        let index = usize::try_from(offset).ok()?;
        let (name, inode, kind, node) = match index {
            0 => (&b"."[..], self.inode, Kind::Directory, None),
            1 => (&b".."[..], self.inode, Kind::Directory, None),
            _ => {
                let (name, node) = match &self.entries {
                    Entries::Directory(directory) => {
                        let entry = directory.entries().get(index - 2)?;
                        (&entry.name, &entry.node)
                    }
                    Entries::Roots(roots) => {
                        let (name, node) = roots.get(index - 2)?;
                        (name, node)
                    }
                };
                let kind = Kind::of(node);
                (
                    &name.as_bytes()[..],
                    inode_number(node),
                    kind,
                    Some((name, node)),
                )
            }
        };
        Some(Listed {
            name,
            inode,
            kind,
            next: offset + 1,
            node,
        })
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
                return Outcome::Ready(Ok(Listing {
                    id,
                    inode: ROOT_ID,
                    entries: Entries::Roots(roots),
                    closure: None,
                }));
            }
        }
        let inode = match self.inodes.get(id) {
            Ok(inode) => inode,
            Err(error) => return Outcome::Ready(Err(error)),
        };
        self.directory(&inode, held).map(|directory| Listing {
            id,
            inode: if id == ROOT_ID {
                ROOT_ID
            } else {
                inode_number(inode.node())
            },
            entries: Entries::Directory(directory),
            closure: Some(inode.closure()),
        })
    }

    /// The entry of a line, as a lookup: to be taken back by [`Filesystem::forget`]. `None` for `.` and `..`.
    pub fn remember(&self, listing: &Listing, listed: &Listed<'_>) -> Option<Entry> {
        let (name, node) = listed.node?;
        let closure = listing.closure.unwrap_or_else(|| closure_of(node));
        Some(self.entry(
            &self.inodes.remember(listing.id, name, node, closure),
            listing.id,
        ))
    }
}
