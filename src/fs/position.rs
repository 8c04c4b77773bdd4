use super::inode_number::Width;

/// Where a listing is: an index, and the generation of trees that it is an index of. An offset of the protocol has both, so a listing that
/// began before `castore switch` goes on in what the directory was then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// 0 is before `.`, 2 before the first entry.
    pub(super) index: u64,
    pub(super) generation: u32,
}

/// How an offset is laid out: the index, and the lower bits of the generation above it. Never negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    index_bits: u32,
    generation_bits: u32,
}

impl Width {
    /// A program whose inode numbers have 32 bits has positions of as many: its C library gives `EOVERFLOW` for longer ones.
    pub(super) const fn positions(self) -> Layout {
        match self {
            Self::Full => Layout {
                index_bits: 40,
                generation_bits: 23,
            },
            // More entries than the longest encoding has of files.
            Self::Folded => Layout {
                index_bits: 27,
                generation_bits: 4,
            },
        }
    }
}

impl Layout {
    /// What an offset means when the tree is of the generation `now`.
    pub(super) const fn position(self, offset: u64, now: u32) -> Position {
        let index = offset & ((1 << self.index_bits) - 1);
        if index == 0 {
            // A listing that begins, or begins anew.
            return Position {
                index,
                generation: now,
            };
        }
        let mask = (1 << self.generation_bits) - 1;
        #[expect(clippy::cast_possible_truncation, reason = "the lower bits are wanted")]
        let of_offset = (offset >> self.index_bits) as u32 & mask;
        let age = now.wrapping_sub(of_offset) & mask;
        Position {
            index,
            generation: now.saturating_sub(age),
        }
    }

    /// The offset of an index.
    pub(super) const fn offset(self, position: Position) -> u64 {
        let mask = (1 << self.generation_bits) - 1;
        ((position.generation & mask) as u64) << self.index_bits | position.index
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn an_offset_is_a_position(
            folded: bool,
            index in 1..1_u64 << 27,
            generation in 0..1_u32 << 20,
            age in 0..16_u32,
        ) {
            let layout = match folded {
                true => Width::Folded,
                false => Width::Full,
            }.positions();
            let position = Position { index, generation };
            let offset = layout.offset(position);
            prop_assert_eq!(layout.position(offset, generation + age), position);
            let bits = if folded { 31 } else { 63 };
            prop_assert!(offset < 1 << bits);
        }

        /// Whoever makes offsets up gets a position all the same.
        #[test]
        fn any_offset_has_a_position(offset: u64, now: u32) {
            let position = Width::Full.positions().position(offset, now);
            prop_assert!(position.generation <= now);
        }
    }

    #[test]
    fn a_listing_begins_with_what_is_there() {
        let layout = Width::Full.positions();
        assert_eq!(layout.position(0, 5).generation, 5);
        // The first offsets of a mount are small, as long as nothing was switched.
        let first = Position {
            index: 3,
            generation: 0,
        };
        assert_eq!(layout.offset(first), 3);
    }
}
