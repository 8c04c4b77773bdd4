use super::{Name, Node};

/// A named node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Name,
    pub node: Node,
}

/// A directory's entries, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    /// Invariant: sorted by name, bytewise; no name occurs twice; the sizes of the child directories plus twice the
    /// number of entries fit a `u64`.
    entries: Box<[Entry]>,
}

/// Why entries make no directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    #[error("the entry {0:?} occurs twice")]
    Duplicate(Name),
    #[error("the sizes of the directories below overflow at the entry {0:?}")]
    SizeOverflow(Name),
}

/// How a directory's size is counted. It is part of the parent's encoding and so decides digests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SizeRule {
    /// Each entry once: what the protocol says.
    #[default]
    Protocol,
    /// Each entry twice: what tvix and snix have written since August 2024.
    Snix,
}

impl Directory {
    /// Sorts the entries.
    ///
    /// # Errors
    /// When a name occurs twice or the sizes overflow.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, DirectoryError> {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(DirectoryError::Duplicate(pair[0].name.clone()));
        }
        let mut sum = 0_u64;
        for entry in &entries {
            let below = match entry.node {
                Node::Directory { size, .. } => size,
                Node::File { .. } | Node::Symlink { .. } => 0,
            };
            sum = sum
                .checked_add(below)
                .and_then(|sum| sum.checked_add(2))
                .ok_or_else(|| DirectoryError::SizeOverflow(entry.name.clone()))?;
        }
        Ok(Self {
            entries: entries.into(),
        })
    }

    /// In the order of their names, bytewise.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The node with this name.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&Node> {
        self.position(name).map(|index| &self.entries[index].node)
    }

    /// Where the entry with this name is among the entries.
    #[must_use]
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        self.entries
            .binary_search_by(|entry| entry.name.as_bytes()[..].cmp(name))
            .ok()
    }

    /// Number of entries below it: its own and those of all its child directories.
    #[must_use]
    pub fn size(&self, rule: SizeRule) -> u64 {
        let own = match rule {
            SizeRule::Protocol => 1,
            SizeRule::Snix => 2,
        };
        self.entries
            .iter()
            .map(|entry| match entry.node {
                Node::Directory { size, .. } => size + own,
                Node::File { .. } | Node::Symlink { .. } => own,
            })
            .sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    fn entry(name: &'static str, node: Node) -> Entry {
        Entry {
            name: Name::new(name).unwrap(),
            node,
        }
    }

    fn directory(size: u64) -> Node {
        Node::Directory {
            digest: Digest::empty(),
            size,
        }
    }

    fn file() -> Node {
        Node::File {
            digest: Digest::empty(),
            size: 7,
            executable: false,
        }
    }

    #[test]
    fn size_counts_entries_not_bytes() {
        let dir = Directory::new(vec![entry("b", file()), entry("a", directory(5))]).unwrap();
        assert_eq!(dir.size(SizeRule::Protocol), 7);
        assert_eq!(dir.size(SizeRule::Snix), 9);
        assert_eq!(Directory::default().size(SizeRule::Protocol), 0);
    }

    #[test]
    fn entries_are_sorted_and_found() {
        let dir = Directory::new(vec![entry("b", file()), entry("a", directory(5))]).unwrap();
        assert_eq!(dir.entries()[0].name.to_string(), "a");
        assert_eq!(dir.get(b"b"), Some(&file()));
        assert_eq!(dir.get(b"c"), None);
    }

    #[test]
    fn duplicates_and_overflow_name_the_entry() {
        let twice = Directory::new(vec![entry("x", file()), entry("x", directory(0))]);
        assert_eq!(
            twice.unwrap_err().to_string(),
            "the entry \"x\" occurs twice"
        );
        let over = Directory::new(vec![
            entry("x", directory(u64::MAX - 3)),
            entry("y", directory(1)),
        ]);
        assert_eq!(
            over,
            Err(DirectoryError::SizeOverflow(Name::new("y").unwrap()))
        );
    }
}
