use std::collections::{BTreeMap, VecDeque};

use super::InodeNode;

/// Switches after which a directory can still be listed as it was before: as many as a position has room for where numbers have 32 bits.
const SWITCHES: u32 = 15;
/// Directories that are remembered at the most, some 5 MB of them.
const DIRECTORIES: usize = 1 << 16;

/// What directories were before another tree was shown, for those who had begun to list them.
#[derive(Debug, Default)]
pub(super) struct Retired {
    /// By node id and the last generation of trees in which it was so.
    contents: BTreeMap<(u64, u32), InodeNode>,
    /// The keys of `contents`, the oldest first.
    keys: VecDeque<(u64, u32)>,
}

impl Retired {
    /// A directory was that up to a generation.
    pub(super) fn add(&mut self, directory: u64, generation: u32, content: InodeNode) {
        let key = (directory, generation);
        if self.contents.insert(key, content).is_none() {
            self.keys.push_back(key);
        }
        while let Some(oldest) = self.keys.front()
            && (self.keys.len() > DIRECTORIES || generation - oldest.1 >= SWITCHES)
        {
            self.contents.remove(oldest);
            self.keys.pop_front();
        }
    }

    /// What a directory was in a generation, `None` when that is what it still is.
    pub(super) fn at(&self, directory: u64, generation: u32) -> Option<InodeNode> {
        let later = (directory, generation)..=(directory, u32::MAX);
        self.contents
            .range(later)
            .next()
            .map(|(_, content)| *content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    fn content(size: u64) -> InodeNode {
        InodeNode::Directory {
            digest: Digest::empty(),
            size,
        }
    }

    #[test]
    fn a_directory_is_found_as_it_was() {
        let mut retired = Retired::default();
        // It changed at the first switch and at the third.
        retired.add(7, 0, content(1));
        retired.add(7, 2, content(2));
        let at = |generation| retired.at(7, generation);
        assert_eq!(
            [at(0), at(1), at(2)],
            [1, 2, 2].map(|size| Some(content(size)))
        );
        assert_eq!(at(3), None);
        assert_eq!(retired.at(6, 0), None);
        assert_eq!(retired.at(8, 0), None);
    }

    #[test]
    fn old_ones_go() {
        let mut retired = Retired::default();
        for generation in 0..100 {
            retired.add(7, generation, content(1));
            retired.add(8, generation, content(1));
        }
        assert_eq!(retired.keys.len(), 2 * SWITCHES as usize);
        for directory in 0..2 * DIRECTORIES as u64 {
            retired.add(directory, 100, content(1));
        }
        assert_eq!(
            (retired.keys.len(), retired.contents.len()),
            (DIRECTORIES, DIRECTORIES)
        );
        assert_eq!(retired.at(7, 99), None);
    }
}
