use std::{hash::BuildHasher, sync::atomic::Ordering};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::{
    Content, Inode, InodeView,
    segments::{Segments, slot_of},
};
use crate::{
    fs::{inode_number, root::ROOT_ID},
    model::{Digest, NodeRef},
};

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
    /// Inodes that were ever added.
    added: u64,
    /// Inodes forgotten since memory was given back to the system.
    pub(super) forgotten: usize,
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
    pub(super) fn new(hasher: DefaultHashBuilder) -> Self {
        Self {
            root: None,
            inodes: Segments::default(),
            by_name: HashTable::new(),
            hasher,
            added: 0,
            forgotten: 0,
        }
    }

    pub(super) fn set_root(&mut self, directory: Option<(Digest, u64)>) {
        self.root = directory.map(|(digest, size)| {
            let content = Content::Directory { digest, size };
            Inode::new(ROOT_ID, ROOT_ID, inode_number::ROOT, b"", content)
        });
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

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Inode> {
        match id {
            ROOT_ID => self.root.as_mut(),
            id => self.inodes.get_mut(id),
        }
    }

    /// All but the root.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Inode> {
        self.inodes.iter()
    }

    pub(super) fn named(&self, parent: u64, name: &[u8]) -> Option<&Inode> {
        self.named_by(self.hasher.hash_one((parent, name)), parent, name)
    }

    /// `hash` is that of parent and name.
    fn named_by(&self, hash: u64, parent: u64, name: &[u8]) -> Option<&Inode> {
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

    pub(super) fn remove(&mut self, id: u64) {
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

    pub(super) fn shrink(&mut self) {
        self.inodes.shrink();
        let (inodes, hasher) = (&self.inodes, &self.hasher);
        self.by_name
            .shrink_to_fit(|slot| hash_of_name(inodes, hasher, *slot));
    }
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
