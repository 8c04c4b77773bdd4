use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    cache::Cache,
    model::{Digest, Directory, Node},
};

/// Directories that are fetched at first, and at the most, beside one that is waited for.
const FIRST: usize = 16;
const MOST: usize = 256;
/// Directories of which it is remembered how far their children were fetched.
const REMEMBERED: usize = 1024;

/// Fetches the directories that come after one that somebody had to wait for: of a huge tree they are not there yet, and of
/// others they are on their way.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// For each directory, the position up to which its children were asked for, and how many at a time. The lock is held for
    /// a look only.
    state: Mutex<HashMap<Digest, (usize, usize)>>,
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
            let (until, len) = state.entry(digest).or_insert((0, FIRST / 2));
            next(position, parent.entries().len(), until, len)
        };
        for entry in &parent.entries()[positions] {
            let Node::Directory { digest, .. } = entry.node else {
                continue;
            };
            if cache.directory_at_hand(digest).is_none() {
                let cache = Arc::clone(cache);
                runtime.spawn(async move {
                    // A failure is told to whoever asks for it.
                    let _ = cache.directory(digest, closure).await;
                });
            }
        }
    }
}

/// The positions to fetch after `position`, of `count`: none while half of what was asked for is still ahead of the reader.
fn next(
    position: usize,
    count: usize,
    until: &mut usize,
    len: &mut usize,
) -> std::ops::Range<usize> {
    let from = (position + 1).min(count);
    if *until > from + *len / 2 {
        return from..from;
    }
    *len = (*len * 2).min(MOST);
    let start = from.max(*until).min(count);
    let end = (from + *len).min(count).max(start);
    *until = end;
    start..end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn it_keeps_ahead_of_a_reader_in_order() {
        let (mut until, mut len) = (0, FIRST / 2);
        assert_eq!(next(0, 1000, &mut until, &mut len), 1..17);
        assert_eq!(next(1, 1000, &mut until, &mut len), 2..2);
        assert_eq!(next(8, 1000, &mut until, &mut len), 17..41);
        assert_eq!(next(999, 1000, &mut until, &mut len), 1000..1000);
    }

    proptest! {
        #[test]
        fn never_twice_in_order_and_never_beyond_the_end(
            steps in proptest::collection::vec(1..40_usize, 1..100),
            count in 1..2000_usize,
        ) {
            let (mut until, mut len, mut position, mut asked) = (0, FIRST / 2, 0, 0);
            for step in steps {
                position = (position + step).min(count - 1);
                let range = next(position, count, &mut until, &mut len);
                prop_assert!(range.end <= count && range.start <= range.end && range.len() <= MOST);
                prop_assert!(range.is_empty() || range.start >= asked && range.start > position);
                asked = asked.max(range.end);
            }
        }
    }
}
