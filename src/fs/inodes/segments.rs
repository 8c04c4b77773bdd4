use std::collections::BTreeSet;

use super::Inode;

/// Inodes of one segment. One that is left over keeps half a megabyte at the most.
const LEN: usize = 4096;

/// Inodes by slot. They lie in segments that are given back when the last of their inodes is forgotten, which one growing array
/// could not do.
#[derive(Debug, Default)]
pub(super) struct Segments {
    segments: Vec<Segment>,
    /// Segments that have a free slot. The first is filled first, so the others become empty.
    with_room: BTreeSet<usize>,
}

#[derive(Debug, Default)]
struct Segment {
    /// Empty, or [`LEN`] of them.
    slots: Box<[Option<Inode>]>,
    /// Slots that may be used, the next one last.
    free: Vec<u16>,
}

impl Segments {
    pub(super) fn get(&self, slot: u32) -> Option<&Inode> {
        let (segment, at) = split(slot);
        self.segments.get(segment)?.slots.get(at)?.as_ref()
    }

    pub(super) fn get_mut(&mut self, slot: u32) -> Option<&mut Inode> {
        let (segment, at) = split(slot);
        self.segments.get_mut(segment)?.slots.get_mut(at)?.as_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Inode> {
        let segments = self.segments.iter();
        segments.flat_map(|segment| segment.slots.iter().flatten())
    }

    /// Gives the slot.
    pub(super) fn insert(&mut self, inode: Inode) -> u32 {
        let segment = self.with_room.first().copied().unwrap_or_else(|| {
            self.segments.push(Segment::default());
            let last = self.segments.len() - 1;
            self.with_room.insert(last);
            last
        });
        let room = &mut self.segments[segment];
        if room.slots.is_empty() {
            room.slots = std::iter::repeat_with(|| None).take(LEN).collect();
            room.free = (0..LEN)
                .rev()
                .filter_map(|at| u16::try_from(at).ok())
                .collect();
        }
        let at = usize::from(room.free.pop().unwrap_or_default());
        room.slots[at] = Some(inode);
        if room.free.is_empty() {
            self.with_room.remove(&segment);
        }
        join(segment, at)
    }

    pub(super) fn remove(&mut self, slot: u32) -> Option<Inode> {
        let (segment, at) = split(slot);
        let room = self.segments.get_mut(segment)?;
        let inode = room.slots.get_mut(at)?.take()?;
        room.free.extend(u16::try_from(at));
        if room.free.len() == LEN {
            *room = Segment::default();
        }
        self.with_room.insert(segment);
        Some(inode)
    }
}

const fn split(slot: u32) -> (usize, usize) {
    (slot as usize / LEN, slot as usize % LEN)
}

fn join(segment: usize, at: usize) -> u32 {
    // A table of four thousand million inodes does not fit in memory.
    u32::try_from(segment * LEN + at).unwrap_or(u32::MAX)
}
