use std::{hash::BuildHasher, sync::atomic::Ordering};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::{
    Content, Inode, InodeNode, InodeView,
    retired::Retired,
    segments::{Segments, slot_of},
};
use crate::{
    fs::{inode_number, root::ROOT_ID},
    model::{Digest, NodeRef},
};

/// Memory is given back to the system when so many inodes were forgotten: some 14 MB.
const TRIM_AFTER: usize = 1 << 17;
/// And when so many were, and fewer are left.
const TRIM_LAST: usize = 1 << 12;

/// Inodes by id and by name.
#[derive(Debug)]
pub(super) struct Table {
    /// The mount's root, where it is a directory of a tree. It has no name.
    root: Option<Inode>,
    inodes: Segments,
    /// Slots by parent and name. Invariant: there is an inode in each. One whose name stands for something else by now is not here any
    /// more.
    by_name: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// How often another tree was shown.
    generation: u32,
    retired: Retired,
    /// Inodes that were ever added.
    added: u64,
    /// Inodes forgotten since memory was given back to the system.
    forgotten: usize,
}

/// What is known of an entry.
pub(super) enum Found {
    /// It was looked up.
    Known(InodeView),
    /// The name stood for something else.
    Other,
    Absent,
}

impl Table {
    pub(super) fn new(hasher: DefaultHashBuilder, root: Option<(Digest, u64)>) -> Self {
        Self {
            root: root.map(root_inode),
            inodes: Segments::default(),
            by_name: HashTable::new(),
            hasher,
            generation: 0,
            retired: Retired::default(),
            added: 0,
            forgotten: 0,
        }
    }

    /// Nothing is found in the root any more that was known there.
    pub(super) fn set_root(&mut self, directory: Option<(Digest, u64)>) {
        let in_root = self.inodes.iter().filter(|inode| inode.parent == ROOT_ID);
        let names: Vec<_> = in_root
            .map(|inode| inode.name.as_bytes().to_vec())
            .collect();
        for name in names {
            self.detach(ROOT_ID, &name);
        }
        if let Some(root) = &self.root {
            self.retired
                .add(ROOT_ID, self.generation, root.content.view());
        }
        self.generation += 1;
        self.root = directory.map(root_inode);
    }

    /// The names that are known in a directory. Looks at all inodes.
    pub(super) fn names_in(&self, directory: u64) -> Vec<Vec<u8>> {
        let inside = self.inodes.iter().filter(|inode| inode.parent == directory);
        inside.map(|inode| inode.name.as_bytes().to_vec()).collect()
    }

    /// Another tree is shown from now on.
    pub(super) const fn next_generation(&mut self) {
        self.generation += 1;
    }

    pub(super) const fn generation(&self) -> u32 {
        self.generation
    }

    /// Gives a directory another content.
    pub(super) fn set_directory(&mut self, id: u64, digest: Digest, size: u64) {
        let inode = match id {
            ROOT_ID => self.root.as_mut(),
            id => self.inodes.get_mut(id),
        };
        if let Some(inode) = inode {
            self.retired.add(id, self.generation, inode.content.view());
            inode.content = Content::Directory { digest, size };
            *inode.counted.get_mut() = false;
        }
    }

    /// A directory as it was in a generation.
    pub(super) fn at(&self, directory: u64, generation: u32) -> Option<InodeView> {
        let known = self.get(directory).map(Inode::view);
        let is_root = || (directory == ROOT_ID).then(InodeView::root_of_no_tree);
        let mut inode = known.or_else(is_root)?;
        if let Some(node) = self.retired.at(directory, generation) {
            inode.node = node;
            inode.is_counted = true;
        }
        Some(inode)
    }

    /// The root of the tree that was shown before this one.
    pub(super) fn root_before(&self) -> Option<Digest> {
        match self.retired.at(ROOT_ID, self.generation.checked_sub(1)?)? {
            InodeNode::Directory { digest, .. } => Some(digest),
            InodeNode::File { .. } | InodeNode::Symlink { .. } => None,
        }
    }

    /// Whether an inode is what its name stands for.
    pub(super) fn is_found(&self, inode: &Inode) -> bool {
        let named = self.named(inode.parent, inode.name.as_bytes());
        named.is_some_and(|named| named.id == inode.id)
    }

    pub(super) fn len(&self) -> usize {
        self.inodes.len() + usize::from(self.root.is_some())
    }

    /// As long as it stays the same, nothing that was absent is known.
    pub(super) const fn added(&self) -> u64 {
        self.added
    }

    pub(super) fn get(&self, id: u64) -> Option<&Inode> {
        match id {
            ROOT_ID => self.root.as_ref(),
            id => self.inodes.get(id),
        }
    }

    /// What a directory stands for, where it is known.
    pub(super) fn content_of(&self, directory: u64) -> Option<InodeNode> {
        self.at(directory, self.generation).map(|inode| inode.node)
    }

    /// All but the root.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.iter()
    }

    pub(super) fn named(&self, parent: u64, name: &[u8]) -> Option<&Inode> {
        self.named_by(self.hasher.hash_one((parent, name)), parent, name)
    }

    /// `hash` is that of parent and name.
    pub(super) fn named_by(&self, hash: u64, parent: u64, name: &[u8]) -> Option<&Inode> {
        let is_it = |slot: &u32| is_named(&self.inodes, *slot, parent, name);
        self.inodes.at(*self.by_name.find(hash, is_it)?)
    }

    /// Looks an entry up, if it is known. `hash` is that of parent and name.
    pub(super) fn look_up(&self, hash: u64, parent: u64, name: &[u8], node: NodeRef<'_>) -> Found {
        match self.named_by(hash, parent, name) {
            Some(inode) if inode.content.is(node) => {
                inode.lookups.fetch_add(1, Ordering::Relaxed);
                Found::Known(inode.view())
            }
            Some(_) => Found::Other,
            None => Found::Absent,
        }
    }

    /// Adds an inode under its name, of which `is_absent` says that nothing has it; what the name stood for otherwise is not found by it any more.
    /// `hash` is that of parent and name.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        is_absent: bool,
        make: impl FnOnce(u64) -> Inode,
    ) -> InodeView {
        let view = self.inodes.insert(make).view();
        self.added += 1;
        let slot = slot_of(view.id);
        let (inodes, hasher) = (&self.inodes, &self.hasher);
        let hash_of = |slot: &u32| hash_of_name(inodes, hasher, *slot);
        if is_absent {
            self.by_name.insert_unique(hash, slot, hash_of);
            return view;
        }
        let name = inodes.at(slot).map(|inode| inode.name.as_bytes());
        let name = name.unwrap_or_default();
        let is_it = |known: &u32| is_named(inodes, *known, view.parent, name);
        match self.by_name.entry(hash, is_it, hash_of) {
            Entry::Occupied(mut known) => *known.get_mut() = slot,
            Entry::Vacant(place) => {
                place.insert(slot);
            }
        }
        view
    }

    /// The name stands for something else from now on. The kernel may still use what it stood for.
    pub(super) fn detach(&mut self, parent: u64, name: &[u8]) {
        if let Some(slot) = self.named(parent, name).map(|inode| slot_of(inode.id)) {
            let hash = self.hasher.hash_one((parent, name));
            if let Ok(entry) = self.by_name.find_entry(hash, |known| *known == slot) {
                entry.remove();
            }
        }
    }

    /// Takes lookups back; an inode without any is dropped.
    pub(super) fn forget(&mut self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        let Some(inode) = self.inodes.get_mut(id) else {
            return;
        };
        let lookups = inode.lookups.get_mut();
        *lookups = lookups.saturating_sub(count);
        if *lookups == 0 {
            self.remove(id);
        }
    }

    /// Whether so much was forgotten since it was last asked that giving memory back is worth its time.
    pub(super) fn much_was_forgotten(&mut self) -> bool {
        let few_are_left = self.forgotten >= TRIM_LAST && self.len() < TRIM_LAST;
        let much = self.forgotten >= TRIM_AFTER || few_are_left;
        if much {
            self.forgotten = 0;
        }
        much
    }

    fn remove(&mut self, id: u64) {
        let Some(inode) = self.inodes.remove(id) else {
            return;
        };
        self.forgotten += 1;
        let hash = self.hasher.hash_one((inode.parent, inode.name.as_bytes()));
        let slot = slot_of(id);
        if let Ok(entry) = self.by_name.find_entry(hash, |known| *known == slot) {
            entry.remove();
        }
    }

    /// Forgets all but the root; what is returned is to be dropped without the lock.
    pub(super) fn clear(&mut self) -> impl Sized + use<> {
        (self.inodes.clear(), std::mem::take(&mut self.by_name))
    }

    pub(super) fn shrink(&mut self) {
        self.inodes.shrink();
        let (inodes, hasher) = (&self.inodes, &self.hasher);
        self.by_name
            .shrink_to_fit(|slot| hash_of_name(inodes, hasher, *slot));
    }
}

fn root_inode((digest, size): (Digest, u64)) -> Inode {
    let content = Content::Directory { digest, size };
    Inode::new(ROOT_ID, ROOT_ID, inode_number::ROOT, b"", content)
}

fn is_named(inodes: &Segments, slot: u32, parent: u64, name: &[u8]) -> bool {
    let inode = inodes.at(slot);
    inode.is_some_and(|inode| inode.parent == parent && inode.name.as_bytes() == name)
}

fn hash_of_name(inodes: &Segments, hasher: &DefaultHashBuilder, slot: u32) -> u64 {
    inodes.at(slot).map_or(0, |inode| {
        hasher.hash_one((inode.parent, inode.name.as_bytes()))
    })
}
