use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    hash::Hash,
};

use super::kind::{KINDS, Kind};

/// What waits to be fetched: the most pressing kind first, the sources of a kind in turns, and each source in its order. What
/// is in it is in it once.
#[derive(Debug)]
pub(super) struct Queue<S, K, J> {
    lanes: [Lane<S, K, J>; KINDS],
    /// With their sources.
    known: HashMap<K, S>,
}

#[derive(Debug)]
struct Lane<S, K, J> {
    /// Whose turn it is; those in `jobs`, each once.
    turns: VecDeque<S>,
    /// None of them empty.
    jobs: HashMap<S, VecDeque<(K, J)>>,
}

impl<S, K, J> Default for Lane<S, K, J> {
    fn default() -> Self {
        Self {
            turns: VecDeque::new(),
            jobs: HashMap::new(),
        }
    }
}

impl<S, K, J> Default for Queue<S, K, J> {
    fn default() -> Self {
        Self {
            lanes: Default::default(),
            known: HashMap::new(),
        }
    }
}

impl<S: Copy + Eq + Hash, K: Copy + Eq + Hash, J> Queue<S, K, J> {
    /// False when it was there already.
    pub(super) fn push(&mut self, kind: Kind, source: S, key: K, job: J) -> bool {
        match self.known.entry(key) {
            Entry::Occupied(_) => return false,
            Entry::Vacant(entry) => entry.insert(source),
        };
        let lane = &mut self.lanes[kind as usize];
        let jobs = lane.jobs.entry(source).or_default();
        if jobs.is_empty() {
            lane.turns.push_back(source);
        }
        jobs.push_back((key, job));
        true
    }

    /// As [`Queue::push`], before all else of that source.
    pub(super) fn push_front(&mut self, kind: Kind, source: S, key: K, job: J) -> bool {
        if !self.push(kind, source, key, job) {
            return false;
        }
        if let Some(jobs) = self.lanes[kind as usize].jobs.get_mut(&source) {
            jobs.rotate_right(1);
        }
        true
    }

    /// What is to be fetched next.
    pub(super) fn peek(&self) -> Option<(Kind, &J)> {
        Kind::ALL.into_iter().find_map(|kind| {
            let lane = &self.lanes[kind as usize];
            let (_, job) = lane.jobs.get(lane.turns.front()?)?.front()?;
            Some((kind, job))
        })
    }

    /// Takes what [`Queue::peek`] shows.
    pub(super) fn pop(&mut self) -> Option<(Kind, S, K, J)> {
        for kind in Kind::ALL {
            let lane = &mut self.lanes[kind as usize];
            let Some(source) = lane.turns.pop_front() else {
                continue;
            };
            let jobs = lane.jobs.get_mut(&source)?;
            let (key, job) = jobs.pop_front()?;
            if jobs.is_empty() {
                lane.jobs.remove(&source);
            } else {
                lane.turns.push_back(source);
            }
            self.known.remove(&key);
            return Some((kind, source, key, job));
        }
        None
    }

    /// Drops what a source wanted.
    pub(super) fn cancel(&mut self, source: S) {
        for lane in &mut self.lanes {
            if let Some(jobs) = lane.jobs.remove(&source) {
                lane.turns.retain(|turn| *turn != source);
                for (key, _) in jobs {
                    self.known.remove(&key);
                }
            }
        }
    }

    /// Whose job it is; `None` when it is not there.
    pub(super) fn source_of(&self, key: &K) -> Option<S> {
        self.known.get(key).copied()
    }

    /// How many jobs of a kind there are.
    pub(super) fn len_of(&self, kind: Kind) -> usize {
        self.lanes[kind as usize]
            .jobs
            .values()
            .map(VecDeque::len)
            .sum()
    }

    /// The jobs of a kind.
    pub(super) fn jobs_of(&self, kind: Kind) -> impl Iterator<Item = &J> {
        let lane = &self.lanes[kind as usize];
        lane.jobs.values().flatten().map(|(_, job)| job)
    }

    /// How many sources of a kind there are.
    pub(super) fn sources(&self, kind: Kind) -> usize {
        self.lanes[kind as usize].turns.len()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_pressing_go_first_and_sources_take_turns() {
        let mut queue = Queue::default();
        queue.push(Kind::Tree, 'x', 0, "tree");
        for key in 1..=3 {
            queue.push(Kind::Sequential, 'a', key, "a");
        }
        queue.push(Kind::Sequential, 'b', 5, "b");
        queue.push_front(Kind::Sequential, 'b', 4, "b");
        assert!(!queue.push(Kind::Siblings, 'c', 4, "is there"));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop().map(|(.., key, _)| key)).collect();
        assert_eq!(order, [1, 4, 2, 5, 3, 0]);
    }

    proptest! {
        /// What goes in comes out once, unless it is cancelled, and never a less pressing kind before another.
        #[test]
        fn nothing_is_lost(
            steps in proptest::collection::vec((0..4_usize, 0..4_u8, 0..100_u32, 0..5_u8), 1..200),
        ) {
            let mut queue = Queue::default();
            let mut model: HashMap<u32, (Kind, u8)> = HashMap::new();
            for (kind, source, key, what) in steps {
                match what {
                    0 => {
                        queue.cancel(source);
                        model.retain(|_, (_, of)| *of != source);
                    }
                    1 => {
                        let peeked = queue.peek().map(|(kind, job)| (kind, *job));
                        let popped = queue.pop();
                        prop_assert_eq!(peeked, popped.map(|(kind, .., job)| (kind, job)));
                        if let Some((kind, _, key, _)) = popped {
                            model.remove(&key).unwrap();
                            prop_assert!(model.values().all(|(other, _)| *other >= kind));
                        }
                    }
                    _ => {
                        let kind = Kind::ALL[kind];
                        let is_new = queue.push(kind, source, key, key);
                        prop_assert_eq!(is_new, !model.contains_key(&key));
                        model.entry(key).or_insert((kind, source));
                    }
                }
                prop_assert_eq!(queue.known.len(), model.len());
                for kind in Kind::ALL {
                    let of_kind = model.values().filter(|(other, _)| *other == kind).count();
                    prop_assert_eq!(queue.len_of(kind), of_kind);
                }
            }
        }
    }
}
