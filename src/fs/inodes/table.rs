use std::{hash::BuildHasher, sync::atomic::Ordering};

use hashbrown::{DefaultHashBuilder, HashTable, hash_table::Entry};

use super::{Inode, InodeView, segments::Segments};
use crate::{fs::root::ROOT_ID, model::NodeRef};

/// Inodes by id and by name.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) inodes: Segments,
    /// Slots by node id.
    pub(super) by_id: HashTable<u32>,
    /// Slots by parent and name. Invariant: each is in `by_id` too. An inode whose name stands for something else by now is not here
    /// any more.
    by_name: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Never goes back: an id is not used twice, so no generation numbers are needed.
    pub(super) next: u64,
    /// Inodes forgotten since memory was given back to the system.
    pub(super) forgotten: usize,
}

impl Table {
    pub(super) fn new(hasher: DefaultHashBuilder) -> Self {
        Self {
            inodes: Segments::default(),
            by_id: HashTable::new(),
            by_name: HashTable::new(),
            hasher,
            next: ROOT_ID + 1,
            forgotten: 0,
        }
    }

    pub(super) fn slot(&self, id: u64) -> Option<u32> {
        let is_it = |slot: &u32| self.inodes.get(*slot).is_some_and(|inode| inode.id == id);
        self.by_id.find(self.hasher.hash_one(id), is_it).copied()
    }

    pub(super) fn get(&self, id: u64) -> Option<&Inode> {
        self.inodes.get(self.slot(id)?)
    }

    pub(super) fn named(&self, parent: u64, name: &[u8]) -> Option<u32> {
        self.named_by(self.hasher.hash_one((parent, name)), parent, name)
    }

    /// `hash` is that of parent and name.
    pub(super) fn named_by(&self, hash: u64, parent: u64, name: &[u8]) -> Option<u32> {
        let is_it = |slot: &u32| is_named(&self.inodes, *slot, parent, name);
        self.by_name.find(hash, is_it).copied()
    }

    pub(super) fn look_up_known(
        &self,
        hash: u64,
        parent: u64,
        name: &[u8],
        node: NodeRef<'_>,
    ) -> Option<InodeView> {
        let inode = self.inodes.get(self.named_by(hash, parent, name)?)?;
        if !inode.content.is(node) {
            return None;
        }
        inode.lookups.fetch_add(1, Ordering::Relaxed);
        Some(inode.view())
    }

    /// Adds an inode under its name; what the name stood for before is not found by it any more. `hash` is that of parent and name.
    pub(super) fn insert(&mut self, hash: u64, inode: Inode) {
        let slot = self.insert_root(inode);
        let (inodes, hasher) = (&self.inodes, &self.hasher);
        let Some(Inode { parent, name, .. }) = inodes.get(slot) else {
            return;
        };
        let is_it = |known: &u32| is_named(inodes, *known, *parent, name.as_bytes());
        let hash_of = |slot: &u32| hash_of_name(inodes, hasher, *slot);
        match self.by_name.entry(hash, is_it, hash_of) {
            Entry::Occupied(mut known) => *known.get_mut() = slot,
            Entry::Vacant(place) => {
                place.insert(slot);
            }
        }
    }

    /// Adds an inode that is found by its id only.
    pub(super) fn insert_root(&mut self, inode: Inode) -> u32 {
        let hash = self.hasher.hash_one(inode.id);
        let slot = self.inodes.insert(inode);
        let (inodes, hasher) = (&self.inodes, &self.hasher);
        self.by_id
            .insert_unique(hash, slot, |slot| hash_of_id(inodes, hasher, *slot));
        slot
    }

    /// The name stands for something else from now on. The kernel may still use what it stood for.
    pub(super) fn detach(&mut self, parent: u64, name: &[u8]) {
        if let Some(slot) = self.named(parent, name) {
            let hash = self.hasher.hash_one((parent, name));
            if let Ok(entry) = self.by_name.find_entry(hash, |known| *known == slot) {
                entry.remove();
            }
        }
    }

    pub(super) fn remove(&mut self, slot: u32) {
        let Some(inode) = self.inodes.remove(slot) else {
            return;
        };
        let hash = self.hasher.hash_one(inode.id);
        if let Ok(entry) = self.by_id.find_entry(hash, |known| *known == slot) {
            entry.remove();
        }
        let hash = self.hasher.hash_one((inode.parent, inode.name.as_bytes()));
        if let Ok(entry) = self.by_name.find_entry(hash, |known| *known == slot) {
            entry.remove();
        }
    }

    pub(super) fn shrink(&mut self) {
        let (inodes, hasher) = (&self.inodes, &self.hasher);
        self.by_id
            .shrink_to_fit(|slot| hash_of_id(inodes, hasher, *slot));
        self.by_name
            .shrink_to_fit(|slot| hash_of_name(inodes, hasher, *slot));
    }
}

fn is_named(inodes: &Segments, slot: u32, parent: u64, name: &[u8]) -> bool {
    let inode = inodes.get(slot);
    inode.is_some_and(|inode| inode.parent == parent && inode.name.as_bytes() == name)
}

fn hash_of_id(inodes: &Segments, hasher: &DefaultHashBuilder, slot: u32) -> u64 {
    inodes
        .get(slot)
        .map_or(0, |inode| hasher.hash_one(inode.id))
}

fn hash_of_name(inodes: &Segments, hasher: &DefaultHashBuilder, slot: u32) -> u64 {
    inodes.get(slot).map_or(0, |inode| {
        hasher.hash_one((inode.parent, inode.name.as_bytes()))
    })
}
