use std::ops::Range;

/// The most chunks that are fetched ahead.
const MAX: usize = 32;

/// Where a reader is in a blob, in chunks.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The first chunk that the reader waited for last.
    at: usize,
    /// The first chunk that was neither asked for nor fetched ahead.
    next: usize,
    /// Chunks to fetch ahead.
    len: usize,
}

impl Window {
    /// A reader waits for the chunks from `first` to `last` of a blob that has `count`. Answers what to fetch besides.
    ///
    /// A miss from where the reader was up to where the window ends is a reader in order, and the window doubles: also one
    /// for what is still on its way, which came too late. Any other miss is a new reader or a random one: it gets nothing
    /// until it goes on from there.
    pub(super) fn missed(&mut self, first: usize, last: usize, count: usize) -> Range<usize> {
        let in_order = self.next > 0 && self.at <= first && first <= self.next;
        self.len = match in_order {
            true => (self.len * 2).clamp(1, MAX),
            false => 0,
        };
        let after = last.saturating_add(1).min(count);
        let end = after.saturating_add(self.len).min(count);
        // What is on its way already is not asked for again.
        let start = match in_order {
            true => after.max(self.next).min(end),
            false => after,
        };
        self.at = first;
        self.next = match in_order {
            true => end.max(self.next),
            false => end,
        };
        start..end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_doubles_while_the_reader_goes_on() {
        let mut window = Window::default();
        assert_eq!(window.missed(0, 0, 100), 1..1);
        assert_eq!(window.missed(1, 1, 100), 2..3);
        assert_eq!(window.missed(3, 3, 100), 4..6);
        assert_eq!(window.missed(6, 6, 100), 7..11);
        // Too late: what comes is on its way, and the reader waits in the middle of it.
        assert_eq!(window.missed(8, 8, 100), 11..17);
        assert_eq!(window.missed(50, 50, 100), 51..51);
        assert_eq!(window.missed(51, 52, 100), 53..54);
    }

    proptest! {
        #[test]
        fn never_what_was_asked_and_never_beyond_the_end(
            misses in proptest::collection::vec((0..50_usize, 0..4_usize), 1..50),
        ) {
            let mut window = Window::default();
            for (first, more) in misses {
                let last = (first + more).min(49);
                let ahead = window.missed(first, last, 50);
                prop_assert!(ahead.start > last && ahead.end <= 50 && ahead.len() <= MAX);
            }
        }
    }
}
