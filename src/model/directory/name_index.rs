use std::{
    hash::BuildHasher,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use hashbrown::{DefaultHashBuilder, HashTable};

/// Directories with fewer entries are searched as fast without.
const WORTH_IT: usize = 128;
/// It is made at the search that has this part of the entries behind it: making it takes as long as some of them.
const AFTER: usize = 64;
/// What a table takes for each entry, at the most: hashbrown has a byte and the position for each of up to 16/7 buckets.
const BYTES: usize = 12;

/// Positions of entries by their names, for a directory in which much is looked up: a binary search misses the processor's caches at each
/// of its steps, this does so twice.
#[derive(Debug, Default)]
pub(super) struct NameIndex {
    /// The position behind the one that was found last: whoever looks up what it has listed comes in that order.
    next: AtomicUsize,
    searches: AtomicUsize,
    table: OnceLock<(DefaultHashBuilder, HashTable<u32>)>,
}

impl NameIndex {
    /// Bytes that it takes once it is made.
    pub(super) const fn weight(len: usize) -> usize {
        if len < WORTH_IT { 0 } else { len * BYTES }
    }

    /// Where the name is among `len` entries, of which `name_at` gives the names, and which `search` finds slowly.
    pub(super) fn find<'a>(
        &self,
        name: &[u8],
        len: usize,
        name_at: impl Fn(usize) -> &'a [u8],
        search: impl Fn() -> Option<usize>,
    ) -> Option<usize> {
        let next = self.next.load(Ordering::Relaxed);
        if next < len && name_at(next) == name {
            self.next.store(next + 1, Ordering::Relaxed);
            return Some(next);
        }
        let found = match self.look(name, len, name_at) {
            Ok(found) => found,
            Err(NotMade) => search(),
        };
        if let Some(found) = found {
            self.next.store(found + 1, Ordering::Relaxed);
        }
        found
    }

    /// `Err` when there is no table.
    fn look<'a>(
        &self,
        name: &[u8],
        len: usize,
        name_at: impl Fn(usize) -> &'a [u8],
    ) -> Result<Option<usize>, NotMade> {
        if len < WORTH_IT {
            return Err(NotMade);
        }
        let Some((hasher, table)) = self.table.get() else {
            // One thread makes it, and none waits for it.
            if self.searches.fetch_add(1, Ordering::Relaxed) == len / AFTER {
                self.make(len, name_at);
            }
            return Err(NotMade);
        };
        let is_it = |position: &u32| name_at(*position as usize) == name;
        let found = table.find(hasher.hash_one(name), is_it);
        Ok(found.map(|position| *position as usize))
    }

    fn make<'a>(&self, len: usize, name_at: impl Fn(usize) -> &'a [u8]) {
        let hasher = DefaultHashBuilder::default();
        let hash_at = |position: &u32| hasher.hash_one(name_at(*position as usize));
        let mut table = HashTable::with_capacity(len);
        for position in (0..len).filter_map(|position| u32::try_from(position).ok()) {
            table.insert_unique(hash_at(&position), position, hash_at);
        }
        let _ = self.table.set((hasher, table));
    }
}

/// There is no table.
struct NotMade;

/// A copy makes its own.
impl Clone for NameIndex {
    fn clone(&self) -> Self {
        Self::default()
    }
}

/// It says nothing that the entries do not.
impl PartialEq for NameIndex {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for NameIndex {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_when_it_is_worth_it_and_finds_the_same() {
        for len in [0, 1, WORTH_IT - 1, WORTH_IT, 1000] {
            let names: Vec<_> = (0..len).map(|number| format!("{number:05}")).collect();
            let index = NameIndex::default();
            let search = |name: &str| names.binary_search_by(|known| (**known).cmp(name)).ok();
            let name_at = |at: usize| names[at].as_bytes();
            let find = |name: &str| index.find(name.as_bytes(), len, name_at, || search(name));
            for round in 0..3 {
                // In order, against it, and without any.
                for at in 0..len {
                    let at = [at, len - 1 - at, at * 7919 % len][round];
                    assert_eq!(find(&names[at]), Some(at));
                }
            }
            assert_eq!(find("absent"), None);
            assert_eq!(index.table.get().is_some(), len >= WORTH_IT);
            if let Some((_, table)) = index.table.get() {
                assert!(table.allocation_size() <= NameIndex::weight(len));
            }
        }
    }
}
