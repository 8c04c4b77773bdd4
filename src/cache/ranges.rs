use std::collections::{BTreeMap, HashMap};

/// Ranges of data files, none of which overlap.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    /// By file; ends by beginnings.
    files: HashMap<u64, BTreeMap<u64, u64>>,
}

impl Ranges {
    /// Adds a range that [`Ranges::overlap`] says is free.
    pub(super) fn insert(&mut self, file: u64, offset: u64, size: u64) {
        let ranges = self.files.entry(file).or_default();
        ranges.insert(offset, offset.saturating_add(size));
    }

    /// Whether one of them has a byte of this one.
    pub(super) fn overlap(&self, file: u64, offset: u64, size: u64) -> bool {
        let ranges = self.files.get(&file);
        let before = ranges.and_then(|ranges| {
            let mut before = ranges.range(..offset.saturating_add(size));
            before.next_back()
        });
        before.is_some_and(|(_, end)| *end > offset)
    }

    pub(super) fn remove(&mut self, file: u64) {
        self.files.remove(&file);
    }

    pub(super) fn clear(&mut self) {
        self.files.clear();
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    proptest! {
        #[test]
        fn they_overlap_where_bytes_are_shared(wanted in vec((0..2_u64, 0..50_u64, 1..9_u64), 0..40)) {
            let (mut ranges, mut bytes) = (Ranges::default(), std::collections::HashSet::new());
            for (file, offset, size) in wanted {
                let mut of_range = (offset..offset + size).map(|byte| (file, byte));
                let overlaps = of_range.clone().any(|byte| bytes.contains(&byte));
                prop_assert_eq!(ranges.overlap(file, offset, size), overlaps);
                if !overlaps {
                    ranges.insert(file, offset, size);
                    bytes.extend(&mut of_range);
                }
            }
            ranges.remove(0);
            prop_assert!(!ranges.overlap(0, 0, 100));
        }
    }
}
