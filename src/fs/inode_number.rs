use smallvec::SmallVec;

use crate::model::NodeRef;

/// The mount's root has this number, and nothing else has: 0 means "no inode" to some programs.
pub(super) const ROOT: u64 = 1;
/// Numbers have this many bits: overlayfs puts the number of the layer into the upper ones (`xino`).
const BITS: u32 = 56;

/// How `st_ino` is made of what an entry is and where.
///
/// A number is relative to the mount's root and has nothing of the mount, the cache or the machine in it. That of a directory stays
/// the same when its content changes, that of a file or a symlink does not, so whoever compares trees by it (`git status`,
/// `make`, `rsync`) reads again what has changed, and nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    Full,
    /// For programs whose `stat` has 32 bits: they get `EOVERFLOW` otherwise.
    Folded,
}

impl Width {
    /// The number of the entry `name` in the directory whose number is `parent`.
    pub(super) fn of(self, parent: u64, name: &[u8], node: NodeRef<'_>) -> u64 {
        // Each begins with another byte, and what varies in length comes last or behind what does not. Most fit one block of the
        // hash function, and none allocates but for a long target.
        let mut hashed = SmallVec::<[u8; 320]>::new();
        hashed.push(match node {
            NodeRef::Directory { .. } => b'd',
            NodeRef::File { .. } => b'f',
            NodeRef::Symlink { .. } => b'l',
        });
        hashed.extend_from_slice(&parent.to_le_bytes());
        match node {
            NodeRef::Directory { .. } => {}
            NodeRef::File {
                digest, executable, ..
            } => {
                hashed.extend_from_slice(digest.as_bytes());
                hashed.push(u8::from(executable));
            }
            NodeRef::Symlink { target } => {
                hashed.extend_from_slice(target);
                hashed.push(0); // In no target and in no name.
            }
        }
        hashed.extend_from_slice(name);
        let mut first = [0; 8];
        first.copy_from_slice(&blake3::hash(&hashed).as_bytes()[..8]);
        self.shorten(u64::from_le_bytes(first))
    }

    /// Never 0 or [`ROOT`].
    const fn shorten(self, hash: u64) -> u64 {
        let number = match self {
            Self::Full => hash & ((1 << BITS) - 1),
            Self::Folded => (hash ^ hash >> 32) & u32::MAX as u64,
        };
        match number {
            0 | ROOT => number + 2,
            number => number,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Digest;

    fn file(content: &[u8], executable: bool) -> NodeRef<'static> {
        NodeRef::File {
            digest: Digest::of(content),
            size: 1,
            executable,
        }
    }

    fn directory(content: &[u8]) -> NodeRef<'static> {
        NodeRef::Directory {
            digest: Digest::of(content),
            size: 1,
        }
    }

    #[test]
    fn a_number_is_of_place_and_content() {
        let number = |parent, name: &str, node| Width::Full.of(parent, name.as_bytes(), node);
        let a = number(ROOT, "a", file(b"x", false));
        assert_eq!(a, number(ROOT, "a", file(b"x", false)));
        assert_ne!(a, number(ROOT, "b", file(b"x", false)));
        assert_ne!(a, number(2, "a", file(b"x", false)));
        assert_ne!(a, number(ROOT, "a", file(b"y", false)));
        assert_ne!(a, number(ROOT, "a", file(b"x", true)));
        // A directory's is of its place alone.
        let d = number(ROOT, "d", directory(b"x"));
        assert_eq!(d, number(ROOT, "d", directory(b"y")));
        assert_ne!(d, number(ROOT, "e", directory(b"x")));
        let link = |name, target| number(ROOT, name, NodeRef::Symlink { target });
        assert_ne!(link("l", b"ab"), link("bl", b"a"));
    }

    /// Numbers are promised to be the same on all machines, so they must not change from one version to the next. These were computed
    /// by another implementation of BLAKE3.
    #[test]
    fn golden_numbers() {
        let number = |name: &str, node| Width::Full.of(ROOT, name.as_bytes(), node);
        assert_eq!(
            [
                number("a", file(b"x", false)),
                number("a", file(b"x", true)),
                number("d", directory(b"")),
                number("l", NodeRef::Symlink { target: b"a" }),
            ],
            [
                44_177_908_928_520_432,
                13_422_810_131_301_961,
                38_524_932_214_722_724,
                35_988_548_667_379_221
            ]
        );
    }

    #[test]
    fn numbers_have_their_bits_and_are_never_reserved() {
        assert_eq!(Width::Full.shorten(0), 2);
        assert_eq!(Width::Full.shorten(1), 3);
        assert_eq!(Width::Full.shorten(u64::MAX), (1 << 56) - 1);
        assert_eq!(Width::Folded.shorten(u64::MAX), 2);
        for seed in 0..1000_u64 {
            let number = Width::Folded.of(seed, b"x", file(b"", false));
            assert!(u32::try_from(number).is_ok() && number > ROOT);
        }
    }
}
