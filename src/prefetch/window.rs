use std::ops::Range;

/// What is fetched ahead at first, in bytes.
const FIRST: u64 = 1 << 20;
/// Readers of one file that are followed at once; the one that has not read for longest goes first.
const CURSORS: usize = 32;
/// A read that begins so many bytes after the one before goes on from it, at the most …
const NEAR: u64 = 128 << 10;
/// … and, once the reader has gone on so many times, it may skip or go back as many bytes as …
const PROVEN: u32 = 3;
/// … these.
const STRIDE: u64 = 1 << 20;
/// So many new readers, without one that has gone on as often as that, make the file one that is read at random: then who goes
/// on once may do so by chance.
const RANDOM: u32 = 16;

/// Where the readers of one file are, in bytes. Numbers to numbers: it knows no clock and no network.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    /// The one that read last is the last.
    readers: Vec<Cursor>,
    /// New readers since one was proven.
    lone: u32,
    /// The number of the next new reader.
    next: u32,
}

/// What a reader wants ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ahead {
    /// The number of the reader.
    pub(super) reader: u32,
    /// What was not wanted for it before, in bytes.
    pub(super) new: Range<u64>,
    /// All that is wanted for it.
    pub(super) all: Range<u64>,
}

#[derive(Debug, Clone)]
struct Cursor {
    number: u32,
    /// Where its first read began.
    first: u64,
    /// End of what it has read.
    at: u64,
    /// End of what was to be fetched for it.
    ahead: u64,
    /// Bytes that it has read.
    read: u64,
    /// Reads that went on from the one before.
    steps: u32,
}

impl Cursors {
    /// Somebody reads `range` of a file of `size` bytes, and up to `most` bytes may be fetched ahead of it. Answers what
    /// to fetch besides.
    ///
    /// A read from where a reader was, or a little further, is that reader's; all else is a new reader. One that goes on
    /// gets twice as much ahead as it has read, from 1 MiB on, unless it skips more than it reads. A new one gets nothing
    /// before it goes on, except at the beginning of the file.
    pub(super) fn read(&mut self, range: Range<u64>, size: u64, most: u64) -> Ahead {
        if range.is_empty() || range.end > size {
            let nothing = range.end..range.end;
            return Ahead {
                reader: 0,
                new: nothing.clone(),
                all: nothing,
            };
        }
        let Some(index) = self.reader_at(range.start) else {
            return self.begin(&range, size, most);
        };
        let mut cursor = self.readers.remove(index);
        if range.end > cursor.at {
            cursor.read += range.end - range.start.max(cursor.at);
            cursor.at = range.end;
            cursor.steps = cursor.steps.saturating_add(1);
            if cursor.steps >= PROVEN {
                self.lone = 0;
            }
        }
        let passed = cursor.at - cursor.first;
        let is_chance = self.lone >= RANDOM && cursor.steps < PROVEN;
        let pays = !is_chance && passed <= cursor.read.saturating_mul(2).saturating_add(FIRST);
        let window = match pays {
            true => cursor.read.saturating_mul(2).max(FIRST).min(most),
            false => 0,
        };
        let start = cursor.ahead.max(cursor.at);
        let end = cursor.at.saturating_add(window).min(size).max(start);
        cursor.ahead = end;
        let ahead = Ahead {
            reader: cursor.number,
            new: start..end,
            all: cursor.at..end,
        };
        self.readers.push(cursor);
        ahead
    }

    /// The reader whom a read that begins there belongs to: the nearest that it can go on from.
    fn reader_at(&self, start: u64) -> Option<usize> {
        let candidates = self.readers.iter().enumerate().filter(|(_, cursor)| {
            if cursor.steps < PROVEN {
                return (cursor.at..=cursor.at.saturating_add(NEAR)).contains(&start);
            }
            let from = cursor.at.saturating_sub(STRIDE);
            let to = cursor.ahead.max(cursor.at).saturating_add(STRIDE);
            (from..=to).contains(&start)
        });
        candidates
            .min_by_key(|(_, cursor)| cursor.at.abs_diff(start))
            .map(|(index, _)| index)
    }

    fn begin(&mut self, range: &Range<u64>, size: u64, most: u64) -> Ahead {
        self.lone = self.lone.saturating_add(1);
        let window = match range.start == 0 && self.lone < RANDOM {
            true => FIRST.min(most),
            false => 0,
        };
        let end = range.end.saturating_add(window).min(size);
        if self.readers.len() == CURSORS {
            self.readers.remove(0);
        }
        let number = self.next;
        self.next = self.next.wrapping_add(1);
        self.readers.push(Cursor {
            number,
            first: range.start,
            at: range.end,
            ahead: end,
            read: range.end - range.start,
            steps: 0,
        });
        Ahead {
            reader: number,
            new: range.end..end,
            all: range.end..end,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    const SIZE: u64 = 1 << 30;

    #[test]
    fn it_doubles_while_the_reader_goes_on() {
        let mut cursors = Cursors::default();
        let mut read = |start: u64, len: u64| cursors.read(start..start + len, SIZE, 16 * MIB).new;
        assert_eq!(read(0, 128 * KIB), 128 * KIB..128 * KIB + MIB);
        assert_eq!(read(128 * KIB, 384 * KIB).end, 512 * KIB + MIB);
        assert_eq!(read(512 * KIB, 512 * KIB), 1536 * KIB..3 * MIB);
        assert_eq!(read(MIB, MIB).end, 6 * MIB);
        assert_eq!(read(2 * MIB, 2 * MIB).end, 12 * MIB);
        assert_eq!(read(4 * MIB, 8 * MIB).end, 28 * MIB, "no more than may be");
        // A skip keeps the reader, and what was skipped is left alone.
        assert_eq!(read(28 * MIB + 512 * KIB, MIB).start, 29 * MIB + 512 * KIB);
        // And so does a short step back, which asks for nothing twice.
        let back = read(29 * MIB, KIB);
        assert!(back.is_empty(), "{back:?}");
    }

    #[test]
    fn interleaved_readers_are_told_apart() {
        let mut cursors = Cursors::default();
        let mut fetched = 0;
        for step in 0..64 {
            for reader in 0..8 {
                let start = reader * SIZE / 8 + step * 128 * KIB;
                let ahead = cursors.read(start..start + 128 * KIB, SIZE, 4 * MIB).new;
                fetched += ahead.end - ahead.start;
            }
        }
        assert_eq!(
            fetched,
            8 * 4 * MIB + 8 * 64 * 128 * KIB - 8 * 128 * KIB - lost(&cursors)
        );
    }

    /// What was not fetched ahead, because it was read first.
    fn lost(cursors: &Cursors) -> u64 {
        let of_one = |cursor: &Cursor| match cursor.first {
            0 => 0,
            _ => 128 * KIB,
        };
        cursors.readers.iter().map(of_one).sum()
    }

    #[test]
    fn random_reads_get_next_to_nothing() {
        let mut cursors = Cursors::default();
        let mut state = 1_u64;
        let mut fetched = 0;
        for _ in 0..1000 {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            let start = (state >> 20) % (SIZE - 4 * KIB) / (4 * KIB) * 4 * KIB;
            let ahead = cursors.read(start..start + 4 * KIB, SIZE, 16 * MIB).new;
            fetched += ahead.end - ahead.start;
        }
        // A thousand chunks of 256 KiB are touched.
        assert!(fetched < 16 * MIB, "{fetched}");
    }

    #[test]
    fn a_reader_that_skips_more_than_it_reads_gets_nothing() {
        let mut cursors = Cursors::default();
        let mut last = 0;
        for step in 0..100 {
            let start = step * 100 * KIB;
            let ahead = cursors.read(start..start + 4 * KIB, SIZE, 16 * MIB).new;
            last = ahead.end - ahead.start;
        }
        assert_eq!(last, 0);
    }

    proptest! {
        /// Never what was to be fetched before for the same reader, never beyond the file, never more than may be.
        #[test]
        fn it_keeps_to_its_bounds(
            reads in proptest::collection::vec((0..64_u64, 1..2048_u64, any::<bool>()), 1..200),
            most in 0..8 * MIB,
        ) {
            let size = 64 * MIB;
            let mut cursors = Cursors::default();
            let mut at = 0;
            for (place, kib, goes_on) in reads {
                let start = if goes_on { at } else { place * MIB };
                let end = (start + kib * KIB).min(size);
                at = end;
                let ends: Vec<_> = cursors.readers.iter().map(|cursor| cursor.ahead).collect();
                let Ahead { new: ahead, all, .. } = cursors.read(start..end, size, most);
                prop_assert!(all.end <= size.max(end) && all.end == ahead.end);
                prop_assert!(ahead.start <= ahead.end && ahead.end <= size.max(end));
                prop_assert!(ahead.end - ahead.start <= most + 2 * MIB);
                if !ahead.is_empty() {
                    let cursor = cursors.readers.last().unwrap();
                    prop_assert!(cursor.ahead - cursor.at <= most);
                    prop_assert!(ahead.start >= end.min(cursor.at));
                    prop_assert!(ahead.start == end || ends.contains(&ahead.start));
                }
                prop_assert!(cursors.readers.len() <= CURSORS);
            }
        }

        /// One reader in order is asked for each byte once.
        #[test]
        fn a_sequential_reader_has_no_byte_fetched_twice(
            lens in proptest::collection::vec(1..1024_u64, 1..200),
            most in MIB..32 * MIB,
        ) {
            let size = 64 * MIB;
            let mut cursors = Cursors::default();
            let (mut at, mut ahead_until) = (0, 0);
            for kib in lens {
                let end = (at + kib * KIB).min(size);
                let ahead = cursors.read(at..end, size, most).new;
                if !ahead.is_empty() {
                    prop_assert!(ahead.start >= ahead_until);
                    prop_assert_eq!(ahead.start, end.max(ahead_until));
                    ahead_until = ahead.end;
                }
                at = end;
            }
        }
    }
}
