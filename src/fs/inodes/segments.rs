use std::collections::BTreeSet;

use super::Inode;

/// Inodes of one segment. One that is left over keeps half a megabyte at the most.
const LEN: usize = 4096;

/// Inodes by node id. They lie in segments that can be given back when the last of their inodes is forgotten, which one growing
/// array could not be.
///
/// The lower half of a node id is the slot, the upper half counts how often the slot was used, from 1 on: so an id is found without a
/// search, and never used again.
#[derive(Debug, Default)]
pub(super) struct Segments {
    all: Vec<Segment>,
    /// Segments that have a free slot. The first is filled first, so the others become empty.
    with_room: BTreeSet<usize>,
    /// Number of inodes.
    len: usize,
}

#[derive(Debug, Default)]
struct Segment {
    /// Empty, or [`LEN`] of them.
    slots: Box<[Option<Inode>]>,
    /// Of each slot, the upper half of the next id.
    next: Box<[u32]>,
    /// The same for all slots of a segment that was given back.
    next_of_all: u32,
    /// Slots that may be used, the next one last.
    free: Vec<u16>,
}

impl Segments {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, id: u64) -> Option<&Inode> {
        let (segment, at) = split(slot_of(id));
        let inode = self.all.get(segment)?.slots.get(at)?.as_ref();
        inode.filter(|inode| inode.id == id)
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Inode> {
        let (segment, at) = split(slot_of(id));
        let inode = self.all.get_mut(segment)?.slots.get_mut(at)?.as_mut();
        inode.filter(|inode| inode.id == id)
    }

    /// Whatever is in a slot.
    pub(super) fn at(&self, slot: u32) -> Option<&Inode> {
        let (segment, at) = split(slot);
        self.all.get(segment)?.slots.get(at)?.as_ref()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Inode> {
        let segments = self.all.iter();
        segments.flat_map(|segment| segment.slots.iter().flatten())
    }

    /// Adds the inode that `make` makes of its id.
    pub(super) fn insert(&mut self, make: impl FnOnce(u64) -> Inode) -> &Inode {
        let segment = self.with_room.first().copied().unwrap_or_else(|| {
            self.all.push(Segment {
                next_of_all: 1,
                ..Segment::default()
            });
            let last = self.all.len() - 1;
            self.with_room.insert(last);
            last
        });
        let room = &mut self.all[segment];
        if room.slots.is_empty() {
            room.slots = std::iter::repeat_with(|| None).take(LEN).collect();
            room.next = vec![room.next_of_all; LEN].into();
            room.free = (0..LEN)
                .rev()
                .filter_map(|at| u16::try_from(at).ok())
                .collect();
        }
        let at = usize::from(room.free.pop().unwrap_or_default());
        if room.free.is_empty() {
            self.with_room.remove(&segment);
        }
        self.len += 1;
        let id = u64::from(room.next[at]) << 32 | u64::from(join(segment, at));
        room.slots[at].insert(make(id))
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Inode> {
        self.get(id)?;
        let (segment, at) = split(slot_of(id));
        let room = self.all.get_mut(segment)?;
        let inode = room.slots.get_mut(at)?.take()?;
        // After four thousand million uses it begins again: what had that id was forgotten long ago.
        room.next[at] = room.next[at].checked_add(1).unwrap_or(1);
        room.free.extend(u16::try_from(at));
        self.with_room.insert(segment);
        self.len -= 1;
        Some(inode)
    }

    /// Takes all out. Their ids are not used again.
    pub(super) fn clear(&mut self) -> impl Sized + use<> {
        let emptied = self.all.iter().map(|room| {
            let last = room.next.iter().copied().max();
            // What is in a slot has the next id still.
            let next_of_all =
                last.map_or(room.next_of_all, |last| last.checked_add(1).unwrap_or(1));
            Segment {
                next_of_all,
                ..Segment::default()
            }
        });
        let emptied: Vec<_> = emptied.collect();
        self.with_room = (0..emptied.len()).collect();
        self.len = 0;
        std::mem::replace(&mut self.all, emptied)
    }

    /// Gives segments back in which nothing is left.
    pub(super) fn shrink(&mut self) {
        for room in &mut self.all {
            if room.free.len() == LEN {
                let next_of_all = room.next.iter().copied().max().unwrap_or(1);
                *room = Segment {
                    next_of_all,
                    ..Segment::default()
                };
            }
        }
    }
}

/// The slot of a node id.
#[expect(clippy::cast_possible_truncation, reason = "it is the lower half")]
pub(super) const fn slot_of(id: u64) -> u32 {
    id as u32
}

const fn split(slot: u32) -> (usize, usize) {
    (slot as usize / LEN, slot as usize % LEN)
}

fn join(segment: usize, at: usize) -> u32 {
    // A table of four thousand million inodes does not fit in memory.
    u32::try_from(segment * LEN + at).unwrap_or(u32::MAX)
}
