use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::Semaphore;

use crate::{
    cache::Cache,
    model::{Digest, Directory, NodeRef},
};

/// Directories that are fetched at first, and at the most, beside one that is waited for.
const FIRST: usize = 16;
const MOST: usize = 256;
/// Directories of which it is remembered how far their children were fetched.
const REMEMBERED: usize = 1024;

/// Requests under way at once.
const AT_ONCE: usize = 256;

/// Which children of a directory were asked for.
#[derive(Debug)]
struct Asked {
    positions: Range<usize>,
    /// How many at a time.
    len: usize,
}

/// Fetches the directories that come after one that somebody had to wait for: of a huge tree they are not there yet, and of
/// others they are on their way.
#[derive(Debug)]
pub(super) struct Listings {
    /// Directories whose children were asked for. The lock is held for a look only.
    state: Mutex<HashMap<Digest, Asked>>,
    /// So many at once.
    places: Arc<Semaphore>,
}

impl Default for Listings {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            places: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

impl Default for Asked {
    fn default() -> Self {
        Self {
            positions: 0..0,
            len: FIRST / 2,
        }
    }
}

impl Listings {
    /// Somebody waits for the directory that is at a position of `parent`, of which `digest` is the digest.
    pub(super) fn missed(
        &self,
        cache: &Arc<Cache>,
        runtime: &tokio::runtime::Handle,
        (digest, parent): (Digest, &Directory),
        position: usize,
        closure: Digest,
    ) {
        let positions = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.len() >= REMEMBERED && !state.contains_key(&digest) {
                state.clear();
            }
            let asked = state.entry(digest).or_default();
            asked.next(position, parent.len())
        };
        for entry in positions.filter_map(|position| parent.at(position)) {
            let NodeRef::Directory { digest, .. } = entry.node else {
                continue;
            };
            if cache.directory_at_hand(digest).is_none() {
                // Where there is no place, it is asked for when somebody looks at it.
                let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
                    return;
                };
                let cache = Arc::clone(cache);
                runtime.spawn(async move {
                    let _place = place;
                    // A failure is told to whoever asks for it.
                    let _ = cache.directory(digest, closure).await;
                });
            }
        }
    }
}

impl Asked {
    /// The positions to fetch after `position`, of `count`: none while half of what was asked for is still ahead of the reader.
    fn next(&mut self, position: usize, count: usize) -> Range<usize> {
        let from = (position + 1).min(count);
        if position < self.positions.start || position > self.positions.end {
            // Another reader, or one who has gone elsewhere: whether in order, the next look will tell.
            *self = Self {
                positions: position..from,
                ..Self::default()
            };
            return from..from;
        }
        if self.positions.end > from + self.len / 2 {
            return from..from;
        }
        self.len = (self.len * 2).min(MOST);
        let start = from.max(self.positions.end).min(count);
        let end = (from + self.len).min(count).max(start);
        self.positions.end = end;
        start..end
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_keeps_ahead_of_a_reader_in_order() {
        let mut asked = Asked::default();
        assert_eq!(asked.next(0, 1000), 1..17);
        assert_eq!(asked.next(1, 1000), 2..2);
        assert_eq!(asked.next(8, 1000), 17..41);
        assert_eq!(asked.next(999, 1000), 1000..1000);
        // From elsewhere, it takes a second look.
        assert_eq!(asked.next(100, 1000), 101..101);
        assert_eq!(asked.next(101, 1000), 102..118);
    }

    proptest! {
        #[test]
        fn never_twice_in_order_and_never_beyond_the_end(
            steps in proptest::collection::vec(1..40_usize, 1..100),
            count in 1..2000_usize,
        ) {
            let (mut asked, mut position, mut until) = (Asked::default(), 0, 0);
            for step in steps {
                position = (position + step).min(count - 1);
                let range = asked.next(position, count);
                prop_assert!(range.end <= count && range.start <= range.end && range.len() <= MOST);
                prop_assert!(range.is_empty() || range.start >= until && range.start > position);
                until = until.max(range.end);
            }
        }
    }
}
