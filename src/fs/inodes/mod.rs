//! The inodes that the kernel knows: node ids, and what each stands for.
//!
//! - [`InodeTable`]: finding, adding and forgetting inodes; `table` is what its lock protects
//! - [`InodeView`]: a copy of what an operation needs of an inode
//! - `update`: another tree under the inodes that are known; `retired`: what directories were before, for their listers
//! - `segments`: where inodes lie; `short_name`: their names
//!
//! A node id is of one parent and one name, whatever lies there: programs take what shares an id for one file (overlayfs,
//! `dlopen`, `flock`, inotify, `cp`). Content is shared below: in blobs and mappings.

mod inode;
mod retired;
mod segments;
mod short_name;
mod table;
mod update;

use std::{
    hash::BuildHasher,
    sync::{
        PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use hashbrown::DefaultHashBuilder;

pub(super) use self::inode::{InodeNode, InodeView};
pub(super) use self::update::{Change, ChangedName, HowChanged, Stale};
use self::{
    inode::{Content, Inode},
    table::{Found, Table},
};
use super::{
    FsError,
    inode_number::Width,
    position::{Layout, Position},
    root::ROOT_ID,
};
use crate::model::{Digest, NodeRef};

/// Directories are not followed further up than this.
const MAX_DEPTH: usize = 4096;
/// So many inodes are forgotten under one lock: a tenth of a millisecond.
const FORGET_AT_ONCE: usize = 512;

/// A directory that is listed.
#[derive(Debug)]
pub(super) struct ListedInode {
    pub(super) inode: InodeView,
    pub(super) position: Position,
}

/// What is known of a name in a directory.
#[derive(Debug)]
pub(super) enum Search {
    Known(InodeView),
    Absent(Place),
}

/// Where an entry of a directory belongs that is not known.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) parent: InodeView,
    /// Of parent and name.
    hash: u64,
    /// Whether nothing was known under the name when so many inodes had ever been added.
    is_absent: bool,
    added: u64,
}

/// All inodes of a mount.
#[derive(Debug)]
pub(super) struct InodeTable {
    /// Nothing is called while it is held that takes another lock.
    table: RwLock<Table>,
    /// Hashes names before the lock is taken; the table has the same one.
    hasher: DefaultHashBuilder,
    width: Width,
    /// How often the lock was taken exclusively, for tests: operations on known inodes never do.
    exclusive: AtomicU64,
}

impl InodeTable {
    /// The mount's root is `root`, or no directory of a tree (`None`).
    pub(super) fn new(width: Width, root: Option<(Digest, u64)>) -> Self {
        let hasher = DefaultHashBuilder::default();
        Self {
            table: RwLock::new(Table::new(hasher.clone(), root)),
            hasher,
            width,
            exclusive: AtomicU64::new(0),
        }
    }

    /// The mount's root is another directory from now on, or none of a tree (`None`).
    pub(super) fn set_root(&self, directory: Option<(Digest, u64)>) {
        self.write().set_root(directory);
    }

    pub(super) fn len(&self) -> usize {
        self.read().len()
    }

    /// How often the lock was taken exclusively.
    pub(super) fn exclusive_locks(&self) -> u64 {
        self.exclusive.load(Ordering::Relaxed)
    }

    pub(super) fn get(&self, id: u64) -> Result<InodeView, FsError> {
        self.with(id, Inode::view)
    }

    /// A directory that is listed, as it was when that began.
    ///
    /// # Errors
    /// When it is not known.
    pub(super) fn listed(&self, id: u64, offset: u64) -> Result<ListedInode, FsError> {
        let table = self.read();
        let position = self.positions().position(offset, table.generation());
        let inode = table.at(id, position.generation);
        Ok(ListedInode {
            inode: inode.ok_or(FsError::UnknownInode)?,
            position,
        })
    }

    /// How offsets of listings are laid out.
    pub(super) const fn positions(&self) -> Layout {
        self.width.positions()
    }

    /// Where a symlink points, `None` when the inode is none.
    pub(super) fn target(&self, id: u64) -> Result<Option<Vec<u8>>, FsError> {
        self.with(id, |inode| match &inode.content {
            Content::Symlink(target) => Some(target.to_vec()),
            Content::Directory { .. } | Content::File { .. } => None,
        })
    }

    /// Looks for an entry of a directory of a tree, with one lookup more where it is known: then the directory's content need not be at
    /// hand.
    ///
    /// # Errors
    /// When the directory is not known.
    pub(super) fn find(&self, parent: u64, name: &[u8]) -> Result<Search, FsError> {
        let hash = self.hasher.hash_one((parent, name));
        let table = self.read();
        if let Some(known) = table.named_by(hash, parent, name) {
            known.lookups.fetch_add(1, Ordering::Relaxed);
            return Ok(Search::Known(known.view()));
        }
        let parent = table.get(parent).ok_or(FsError::UnknownInode)?.view();
        let added = table.added();
        Ok(Search::Absent(Place {
            parent,
            hash,
            added,
            is_absent: true,
        }))
    }

    /// The inode of an entry, with one lookup more, in the place that [`InodeTable::find`] found for it.
    ///
    /// # Errors
    /// When the directory was given another content since: the entry may be one of the old content.
    pub(super) fn insert(
        &self,
        place: &Place,
        name: &[u8],
        node: NodeRef<'_>,
    ) -> Result<InodeView, Stale> {
        let &Place {
            parent,
            hash,
            added,
            ..
        } = place;
        let number = self.number(parent.number, name, node);
        let mut table = self.write();
        let mut is_absent = place.is_absent && table.added() == added;
        if !is_absent {
            match table.look_up(hash, parent.id, name, node) {
                // Another thread was first.
                Found::Known(known) => return Ok(known),
                Found::Other => {}
                Found::Absent => is_absent = true,
            }
        }
        if table.content_of(parent.id) != Some(parent.node) {
            return Err(Stale);
        }
        let make = |id| Inode::new(id, parent.id, number, name, node.into());
        Ok(table.insert(hash, is_absent, make))
    }

    /// The inode of an entry, with one lookup more, where it is not sure that what is known under its name is still there: `parent` may
    /// have another content by now, or none that is known here.
    ///
    /// # Errors
    /// As with [`InodeTable::insert`].
    pub(super) fn look_up(
        &self,
        parent: &InodeView,
        name: &[u8],
        node: NodeRef<'_>,
    ) -> Result<InodeView, Stale> {
        let hash = self.hasher.hash_one((parent.id, name));
        let (found, added) = {
            let table = self.read();
            (table.look_up(hash, parent.id, name, node), table.added())
        };
        let is_absent = match found {
            Found::Known(known) => return Ok(known),
            Found::Other => false,
            Found::Absent => true,
        };
        let place = Place {
            parent: *parent,
            hash,
            added,
            is_absent,
        };
        self.insert(&place, name, node)
    }

    /// The number of an entry, whether it is known or not.
    pub(super) fn number(&self, parent_number: u64, name: &[u8], node: NodeRef<'_>) -> u64 {
        self.width.of(parent_number, name, node)
    }

    /// Takes back lookups, as pairs of a node id and a count; an inode without any is dropped. True when much was: then
    /// [`InodeTable::give_back_memory`] is worth its time.
    pub(super) fn forget(&self, forgotten: impl IntoIterator<Item = (u64, u64)>) -> bool {
        let mut forgotten = forgotten.into_iter().peekable();
        let mut much = false;
        // A message may have 65,000 of them: other threads get in between.
        while forgotten.peek().is_some() {
            let mut table = self.write();
            for (id, count) in forgotten.by_ref().take(FORGET_AT_ONCE) {
                table.forget(id, count);
            }
            much |= table.much_was_forgotten();
        }
        much
    }

    /// Forgets all inodes but the root.
    pub(super) fn clear(&self) {
        let forgotten = self.write().clear();
        // Freed without the lock.
        drop(forgotten);
    }

    /// Gives memory that forgotten inodes took back to the system.
    pub(super) fn give_back_memory(&self) {
        self.write().shrink();
        #[cfg(target_env = "gnu")]
        // SAFETY: has no preconditions; it is an ordinary call into the allocator.
        unsafe {
            libc::malloc_trim(0);
        }
    }

    /// One more handle of a file is open.
    pub(super) fn opened(&self, id: u64) {
        let _ = self.with(id, |inode| inode.opens.fetch_add(1, Ordering::Relaxed));
    }

    /// One less; the inode when it was the last.
    pub(super) fn released(&self, id: u64) -> Option<InodeView> {
        let last = |inode: &Inode| {
            let closed = inode
                .opens
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |opens| {
                    opens.checked_sub(1)
                });
            (closed == Ok(1)).then(|| inode.view())
        };
        self.with(id, last).ok().flatten()
    }

    /// Whether a directory is not counted yet; from now on it is.
    pub(super) fn count_once(&self, id: u64) -> bool {
        let first = self.with(id, |inode| !inode.counted.swap(true, Ordering::Relaxed));
        first.unwrap_or(false)
    }

    /// The ids of the files with this content, or of all files.
    pub(super) fn of_blob(&self, blob: Option<Digest>) -> Vec<u64> {
        let table = self.read();
        let files = table.iter().filter(|inode| {
            matches!(inode.content, Content::File { digest, .. } if blob.is_none_or(|blob| digest == blob))
        });
        files.map(|inode| inode.id).collect()
    }

    /// The name of an inode in the directory where it was found.
    pub(super) fn name(&self, id: u64) -> Result<Vec<u8>, FsError> {
        self.with(id, |inode| inode.name.as_bytes().to_vec())
    }

    /// The names that lead from the mount's root to an inode; `None` when a directory on the way was forgotten.
    pub(super) fn path(&self, id: u64) -> Option<Vec<Vec<u8>>> {
        let table = self.read();
        let mut names = Vec::new();
        let mut at = id;
        while at != ROOT_ID {
            let inode = table.get(at)?;
            names.push(inode.name.as_bytes().to_vec());
            at = inode.parent;
            if names.len() > MAX_DEPTH {
                return None;
            }
        }
        names.reverse();
        Some(names)
    }

    /// The directory uppermost on the way to an inode: the root of a closure that has all directories on it. Its own, where a
    /// directory on the way was forgotten.
    pub(super) fn closure(&self, id: u64) -> Option<Digest> {
        let table = self.read();
        let (mut at, mut closure) = (id, None);
        for _ in 0..MAX_DEPTH {
            let Some(inode) = table.get(at) else { break };
            if let Content::Directory { digest, .. } = inode.content {
                closure = Some(digest);
            }
            if at == ROOT_ID {
                break;
            }
            if !table.is_found(inode) {
                // It is of a tree that was shown before, and still open or somebody's working directory.
                return table.root_before().or(closure);
            }
            at = inode.parent;
        }
        closure
    }

    fn with<T>(&self, id: u64, look: impl FnOnce(&Inode) -> T) -> Result<T, FsError> {
        let table = self.read();
        table.get(id).map(look).ok_or(FsError::UnknownInode)
    }

    fn read(&self) -> RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Table> {
        self.exclusive.fetch_add(1, Ordering::Relaxed);
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn table() -> InodeTable {
        InodeTable::new(Width::Full, Some((Digest::empty(), 0)))
    }

    fn file(content: &[u8]) -> NodeRef<'static> {
        NodeRef::File {
            digest: Digest::of(content),
            size: content.len() as u64,
            executable: false,
        }
    }

    fn directory(content: &[u8]) -> NodeRef<'static> {
        NodeRef::Directory {
            digest: Digest::of(content),
            size: 0,
        }
    }

    fn look_up(table: &InodeTable, parent: u64, name: &str, node: NodeRef<'_>) -> InodeView {
        let parent = table.get(parent).unwrap();
        table.look_up(&parent, name.as_bytes(), node).unwrap()
    }

    /// Equal files shared one node id, and programs took them for one file: overlayfs wrote both when one was written.
    #[test]
    fn each_path_has_an_id_of_its_own() {
        let table = table();
        let root = ROOT_ID;
        let a = look_up(&table, root, "a", file(b"x"));
        assert_eq!(a.id, look_up(&table, root, "a", file(b"x")).id);
        let b = look_up(&table, root, "b", file(b"x"));
        assert_ne!(a.id, b.id);
        assert_ne!(a.number, b.number);
        let link = |name| look_up(&table, root, name, NodeRef::Symlink { target: b"a" });
        assert_ne!(link("l").id, link("m").id);
        let d = look_up(&table, root, "d", directory(b"x"));
        let e = look_up(&table, root, "e", directory(b"x"));
        assert_ne!(d.id, e.id);
        let (da, ea) = (
            look_up(&table, d.id, "a", file(b"x")),
            look_up(&table, e.id, "a", file(b"x")),
        );
        assert_ne!(da.id, ea.id);
        assert_ne!(da.number, ea.number);
        assert_eq!(table.path(ea.id).unwrap(), [b"e", b"a"]);
        assert_eq!(table.closure(ea.id), Some(Digest::empty()));
    }

    #[test]
    fn a_name_that_stands_for_something_else_has_another_id() {
        let table = table();
        let old = look_up(&table, ROOT_ID, "a", file(b"old"));
        let new = look_up(&table, ROOT_ID, "a", file(b"new"));
        assert_ne!(old.id, new.id);
        assert_ne!(old.number, new.number);
        // The old one lives until it is forgotten, and going takes nothing away from the new one.
        assert!(table.get(old.id).is_ok());
        table.forget([(old.id, 1)]);
        assert!(table.get(old.id).is_err());
        assert_eq!(look_up(&table, ROOT_ID, "a", file(b"new")).id, new.id);
    }

    #[test]
    fn a_known_inode_is_looked_up_under_the_shared_lock() {
        let table = table();
        let known = look_up(&table, ROOT_ID, "a", file(b"x"));
        let before = table.exclusive_locks();
        for _ in 0..10_000 {
            assert_eq!(look_up(&table, ROOT_ID, "a", file(b"x")), known);
            assert_eq!(table.get(known.id).unwrap(), known);
        }
        assert_eq!(table.exclusive_locks(), before);
        // All of them count.
        table.forget([(known.id, 10_000)]);
        assert!(table.get(known.id).is_ok());
        table.forget([(known.id, 1)]);
        assert!(table.get(known.id).is_err());
    }

    #[test]
    fn a_directory_changes_in_place() {
        let table = table();
        let d = look_up(&table, ROOT_ID, "d", directory(b"old"));
        let kept = look_up(&table, d.id, "kept", file(b"kept"));
        let gone = look_up(&table, d.id, "gone", file(b"gone"));
        let change = Change {
            directory: d.id,
            digest: Digest::of(b"new"),
            size: 7,
            names: vec![
                ChangedName {
                    name: b"gone".to_vec(),
                    how: HowChanged::Replaced,
                },
                ChangedName {
                    name: b"not-looked-up".to_vec(),
                    how: HowChanged::Unknown,
                },
            ],
            all: false,
        };
        assert_eq!(table.change(vec![change]), [(d.id, b"gone".to_vec())]);
        let now = table.get(d.id).unwrap();
        assert_eq!((now.id, now.number), (d.id, d.number));
        assert_ne!(now.node, d.node);
        assert!(table.get(gone.id).is_ok(), "it may be open");
        assert_eq!(look_up(&table, d.id, "kept", file(b"kept")).id, kept.id);
        // Who still has the old content finds nothing new in it.
        assert_eq!(table.look_up(&d, b"late", file(b"late")), Err(Stale));
        assert_eq!(table.look_up(&d, b"kept", file(b"kept")).unwrap(), kept);
    }

    /// What is below a directory that a switch took away was looked for in the new tree's closure.
    #[test]
    fn what_was_taken_away_is_of_the_tree_before() {
        let table = table();
        let d = look_up(&table, ROOT_ID, "d", directory(b"d"));
        let below = look_up(&table, d.id, "below", directory(b"below"));
        let new_root = Digest::of(b"new root");
        table.change(vec![Change {
            directory: ROOT_ID,
            digest: new_root,
            size: 0,
            names: vec![ChangedName {
                name: b"d".to_vec(),
                how: HowChanged::Replaced,
            }],
            all: false,
        }]);
        assert_eq!(table.closure(below.id), Some(Digest::empty()));
        let e = look_up(&table, ROOT_ID, "e", directory(b"e"));
        assert_eq!(table.closure(e.id), Some(new_root));
        assert_eq!(table.closure(ROOT_ID), Some(new_root));
    }

    /// A directory that was forgotten and looked up again, while a switch compared the trees, showed the old one for ever.
    #[test]
    fn a_directory_that_is_looked_up_again_meanwhile_is_stale() {
        let table = table();
        let old = look_up(&table, ROOT_ID, "d", directory(b"old"));
        let change = |id| {
            let name = b"d".to_vec();
            let how = HowChanged::Followed(id);
            let root = Change {
                directory: ROOT_ID,
                digest: Digest::of(b"new root"),
                size: 1,
                names: vec![ChangedName { name, how }],
                all: false,
            };
            let below = Change {
                directory: id,
                digest: Digest::of(b"new"),
                size: 1,
                names: vec![],
                all: false,
            };
            vec![root, below]
        };
        table.forget([(old.id, 1)]);
        let again = look_up(&table, ROOT_ID, "d", directory(b"old"));
        assert_ne!(old.id, again.id);
        assert_eq!(table.change(change(old.id)), [(ROOT_ID, b"d".to_vec())]);
        let new = look_up(&table, ROOT_ID, "d", directory(b"new"));
        assert!(new.id != again.id && table.change(change(new.id)).is_empty());
    }

    #[test]
    fn an_inode_fits_its_budget() {
        // With a table of slots, at 5 bytes for each of at most 2.3 buckets, and 4 bytes of the id, 150 bytes are the promise.
        assert!(
            size_of::<Option<Inode>>() <= 120,
            "{}",
            size_of::<Option<Inode>>()
        );
    }

    proptest! {
        /// Against a map: whatever is looked up and forgotten, ids are never used twice, and an inode is there exactly as long as
        /// it has lookups.
        #[test]
        fn lookups_and_forgets(steps in proptest::collection::vec((0..40_u8, 0..3_u8, 0..4_u64), 0..400)) {
            let table = table();
            let mut lookups = std::collections::HashMap::<u64, u64>::new();
            let mut current = std::collections::HashMap::<u8, (u8, u64)>::new();
            let mut seen = std::collections::HashSet::new();
            for (name, content, forget) in steps {
                let view = look_up(&table, ROOT_ID, &format!("a rather long name {name}"), file(&[content]));
                match current.insert(name, (content, view.id)) {
                    Some((old, id)) if old == content && lookups.contains_key(&id) => prop_assert_eq!(id, view.id),
                    _ => prop_assert!(seen.insert(view.id), "an id was used again"),
                }
                *lookups.entry(view.id).or_default() += 1;
                table.forget([(view.id, forget)]);
                let left = lookups[&view.id].saturating_sub(forget);
                if left == 0 {
                    lookups.remove(&view.id);
                } else {
                    lookups.insert(view.id, left);
                }
                prop_assert_eq!(table.get(view.id).is_ok(), left > 0);
                prop_assert_eq!(table.len(), lookups.len() + 1);
            }
        }
    }

    #[test]
    fn many_come_and_go() {
        let table = table();
        let parent = table.get(ROOT_ID).unwrap();
        let ids: Vec<_> = (0..20_000)
            .map(|number| {
                let name = format!("{number}");
                table
                    .look_up(&parent, name.as_bytes(), file(b"x"))
                    .unwrap()
                    .id
            })
            .collect();
        assert_eq!(table.len(), 20_001);
        table.forget(ids.iter().map(|id| (*id, 1)));
        table.give_back_memory();
        assert_eq!(table.len(), 1);
        let again = look_up(&table, ROOT_ID, "0", file(b"x"));
        assert!(!ids.contains(&again.id));
    }
}
