//! A directory: a list of named nodes, kept in the canonical encoding that its digest is of.
//!
//! - [`Directory`]: the encoding and an offset for each entry, so an entry is found without decoding the others
//! - [`Entry`], [`EntryRef`]: a named node, owned and borrowed
//! - `encoding`: reading and writing the encoding
//! - `name_index`: finding entries of large directories

mod encoding;
mod name_index;

use self::{
    encoding::{Parsed, entry_at, name_at},
    name_index::NameIndex,
};
use super::{Digest, DigestError, Name, NameError, Node, NodeRef, TargetError};

/// A named node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub name: Name,
    pub node: Node,
}

/// A named node of a [`Directory`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EntryRef<'a> {
    /// A valid [`Name`].
    pub name: &'a [u8],
    pub node: NodeRef<'a>,
}

impl EntryRef<'_> {
    /// A copy of the name.
    #[must_use]
    pub fn to_name(&self) -> Name {
        Name::of_valid(self.name)
    }

    #[must_use]
    pub fn to_entry(&self) -> Entry {
        Entry {
            name: self.to_name(),
            node: self.node.to_node(),
        }
    }
}

/// A directory's entries, sorted by name.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Directory {
    /// Invariant: a canonical encoding (see [`Directory::decode`]) of at most `u32::MAX` bytes.
    encoded: Box<[u8]>,
    /// Where each entry begins in `encoded`. Invariant: in the order of the names, bytewise; no name occurs twice.
    offsets: Box<[u32]>,
    index: NameIndex,
    /// Entries at and below it, each counted once.
    size: u64,
    /// Sum of the sizes of its files, in bytes; saturates.
    content: u64,
}

/// Why bytes or entries make no directory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    #[error("the entry {0:?} occurs twice")]
    Duplicate(Name),
    #[error("the sizes of the directories below overflow at the entry {0:?}")]
    SizeOverflow(Name),
    #[error("the encoding is longer than 4 GiB")]
    TooLong,
    #[error("the encoding ends in the middle of an entry")]
    Truncated,
    #[error(
        "the encoding is not canonical: it has fields that are unknown, repeated or out of order, or a number that is \
         longer than it need be"
    )]
    NotCanonical,
    #[error("the {list} are not sorted: {name:?} comes too late")]
    Unsorted { list: &'static str, name: Name },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("the entry {name:?} has {cause}")]
    Target { name: Name, cause: TargetError },
    #[error("the entry {name:?} has a bad digest: {cause}")]
    Digest { name: Name, cause: DigestError },
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
    /// Sorts and encodes the entries.
    ///
    /// # Errors
    /// When a name occurs twice, the sizes overflow or the encoding is too long.
    pub fn new(mut entries: Vec<Entry>) -> Result<Self, DirectoryError> {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Self::decode(encoding::encode(&entries))
    }

    /// A directory of its canonical encoding: a protobuf message `Directory` (see `src/proto/tvix.proto`) with fields in
    /// order, without default values, with the shortest form of each number.
    ///
    /// # Errors
    /// Whatever the model does not allow, and any encoding but the canonical one: it would have another digest once it is
    /// written again.
    pub fn decode(encoded: impl Into<Vec<u8>>) -> Result<Self, DirectoryError> {
        let encoded = encoded.into().into_boxed_slice();
        let Parsed {
            offsets,
            size,
            content,
        } = encoding::parse(&encoded)?;
        Ok(Self {
            encoded,
            offsets,
            index: NameIndex::default(),
            size,
            content,
        })
    }

    /// The canonical encoding; its BLAKE3 digest names the directory.
    #[must_use]
    pub const fn encoded(&self) -> &[u8] {
        &self.encoded
    }

    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.encoded)
    }

    /// Number of entries.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.offsets.len()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.offsets.is_empty()
    }

    /// Bytes of memory that it takes at the most.
    #[must_use]
    pub const fn weight(&self) -> usize {
        let len = self.offsets.len();
        self.encoded.len() + len * size_of::<u32>() + NameIndex::weight(len) + size_of::<Self>()
    }

    /// In the order of their names, bytewise.
    #[must_use]
    pub fn entries(
        &self,
    ) -> impl DoubleEndedIterator<Item = EntryRef<'_>> + ExactSizeIterator + Clone + '_ {
        let offsets = self.offsets.iter();
        offsets.map(|offset| entry_at(&self.encoded, *offset))
    }

    /// The entry at a position in the order of names.
    #[must_use]
    pub fn at(&self, position: usize) -> Option<EntryRef<'_>> {
        let offset = self.offsets.get(position)?;
        Some(entry_at(&self.encoded, *offset))
    }

    /// The node with this name. Takes as many steps as the logarithm of the number of entries, and one where much is looked up.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<NodeRef<'_>> {
        Some(self.at(self.position(name)?)?.node)
    }

    /// Where the entry with this name is among the entries.
    #[must_use]
    pub fn position(&self, name: &[u8]) -> Option<usize> {
        let name_of = |position: usize| name_at(&self.encoded, self.offsets[position]);
        self.index.find(name, self.offsets.len(), name_of, || {
            self.offsets
                .binary_search_by(|offset| name_at(&self.encoded, *offset).cmp(name))
                .ok()
        })
    }

    /// Digests and sizes of the directories in it.
    pub fn directories(&self) -> impl Iterator<Item = (Digest, u64)> + '_ {
        self.entries().filter_map(|entry| match entry.node {
            NodeRef::Directory { digest, size } => Some((digest, size)),
            NodeRef::File { .. } | NodeRef::Symlink { .. } => None,
        })
    }

    /// Number of entries below it: its own and those of all its child directories.
    #[must_use]
    pub const fn size(&self, rule: SizeRule) -> u64 {
        match rule {
            SizeRule::Protocol => self.size,
            SizeRule::Snix => self.size + self.offsets.len() as u64,
        }
    }

    /// Sum of the sizes of its files, in bytes.
    #[must_use]
    pub const fn content(&self) -> u64 {
        self.content
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::{Target, tests::any_node};

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
        assert_eq!(dir.content(), 7);
        assert_eq!(Directory::default().size(SizeRule::Protocol), 0);
    }

    #[test]
    fn entries_are_sorted_over_the_three_lists_and_found() {
        let target = Target::new("b").unwrap();
        let dir = Directory::new(vec![
            entry("b", file()),
            entry("c", Node::Symlink { target }),
            entry("a", directory(5)),
            entry("d", directory(0)),
        ])
        .unwrap();
        let names: Vec<_> = dir.entries().map(|entry| entry.name).collect();
        assert_eq!(names, [b"a", b"b", b"c", b"d"]);
        assert_eq!(dir.get(b"b").unwrap().to_node(), file());
        assert_eq!(dir.get(b"c"), Some(NodeRef::Symlink { target: b"b" }));
        assert_eq!(dir.get(b"e"), None);
        assert_eq!(dir.position(b"d"), Some(3));
        assert_eq!(dir.directories().count(), 2);
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

    /// The bytes are written out by hand from the field numbers; the digests are what `b3sum` prints for them.
    #[test]
    fn golden_encoding() {
        // A file "a" of one byte "x", and a symlink "l" to "a".
        let x = Digest::of(b"x");
        let mut bytes = vec![0x12, 39, 0x0a, 1, b'a', 0x12, 32];
        bytes.extend_from_slice(x.as_bytes());
        bytes.extend_from_slice(&[0x18, 1]);
        bytes.extend_from_slice(&[0x1a, 6, 0x0a, 1, b'l', 0x12, 1, b'a']);
        let directory = Directory::decode(bytes.clone()).unwrap();
        let entries = directory.entries().map(|entry| entry.to_entry());
        let again = Directory::new(entries.collect()).unwrap();
        assert_eq!(again.encoded(), bytes);
        assert_eq!(Directory::default().encoded(), b"");
        assert_eq!(
            directory.digest().to_hex(),
            "c2b95e6129f4e7ebb8b9a37ee818788ef2398acf68d77acc4f9238a0c017ccd5"
        );
    }

    proptest! {
        #[test]
        fn entries_read_back(entries in proptest::collection::btree_map(
            proptest::collection::vec(1..=255_u8, 1..140).prop_filter_map("not a name", |name| Name::new(name).ok()),
            any_node(),
            0..20,
        )) {
            let entries: Vec<_> = entries.into_iter().map(|(name, node)| Entry { name, node }).collect();
            let directory = Directory::new(entries.clone()).unwrap();
            prop_assert_eq!(&Directory::decode(directory.encoded()).unwrap(), &directory);
            for (position, entry) in entries.iter().enumerate() {
                prop_assert_eq!(directory.position(entry.name.as_bytes()), Some(position));
                prop_assert_eq!(&directory.at(position).unwrap().to_entry(), entry);
            }
            prop_assert!(directory.entries().map(|entry| entry.to_entry()).eq(entries));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(directory) = Directory::decode(bytes.clone()) {
                let entries = directory.entries().map(|entry| entry.to_entry());
                let again = Directory::new(entries.collect()).unwrap();
                prop_assert_eq!(again.encoded(), bytes);
            }
        }

        /// One byte of a valid encoding is another one: it is refused, or read as what it says now.
        #[test]
        fn damage_is_refused_or_canonical(at in 0..1_000_usize, byte: u8) {
            let entries = vec![entry("b", file()), entry("a", directory(5)), entry("z", directory(300))];
            let mut bytes = Directory::new(entries).unwrap().encoded().to_vec();
            let at = at % bytes.len();
            bytes[at] = byte;
            if let Ok(directory) = Directory::decode(bytes.clone()) {
                let entries = directory.entries().map(|entry| entry.to_entry());
                let again = Directory::new(entries.collect()).unwrap();
                prop_assert_eq!(again.encoded(), bytes);
            }
        }
    }
}
