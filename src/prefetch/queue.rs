use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

use super::kind::{KINDS, Kind};

/// What waits to be fetched: the most pressing kind first, the sources of a kind in turns, and each source in its order. What
/// is in it is in it once, for the most pressing of those that want it.
#[derive(Debug)]
pub(super) struct Queue<S, K, J> {
    lanes: [Lane<S, K, J>; KINDS],
    /// Where each key is. What else is found of it in a lane has been left behind there, and is nothing.
    known: HashMap<K, (Kind, S)>,
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
    /// False when it was there already, and as pressing.
    pub(super) fn push(&mut self, kind: Kind, source: S, key: K, job: J) -> bool {
        if self
            .known
            .get(&key)
            .is_some_and(|(known, _)| *known <= kind)
        {
            return false;
        }
        self.known.insert(key, (kind, source));
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
    pub(super) fn peek(&mut self) -> Option<(Kind, &J)> {
        let kind = Kind::ALL.into_iter().find(|kind| self.settle(*kind))?;
        let lane = &self.lanes[kind as usize];
        let (_, job) = lane.jobs.get(lane.turns.front()?)?.front()?;
        Some((kind, job))
    }

    /// Takes what [`Queue::peek`] shows.
    pub(super) fn pop(&mut self) -> Option<(Kind, S, K, J)> {
        let kind = Kind::ALL.into_iter().find(|kind| self.settle(*kind))?;
        let (source, key, job) = self.lanes[kind as usize].take()?;
        self.known.remove(&key);
        Some((kind, source, key, job))
    }

    /// Drops what was left behind at the front of a lane. Whether something is there after that.
    fn settle(&mut self, kind: Kind) -> bool {
        let lane = &mut self.lanes[kind as usize];
        while let Some(source) = lane.turns.front() {
            let front = lane.jobs.get(source).and_then(VecDeque::front);
            let is_there = front.is_some_and(|(key, _)| {
                self.known
                    .get(key)
                    .is_some_and(|(known, of)| *known == kind && of == source)
            });
            if is_there {
                return true;
            }
            lane.take();
        }
        false
    }

    /// Drops what sources wanted.
    pub(super) fn cancel(&mut self, is_cancelled: impl Fn(&S) -> bool) {
        let mut sources = self.lanes.iter().flat_map(|lane| lane.jobs.keys());
        if !sources.any(&is_cancelled) {
            return;
        }
        self.known.retain(|_, (_, source)| !is_cancelled(source));
        for lane in &mut self.lanes {
            lane.turns.retain(|source| !is_cancelled(source));
            lane.jobs.retain(|source, _| !is_cancelled(source));
        }
    }

    /// Whose job it is; `None` when it is not there.
    pub(super) fn source_of(&self, key: &K) -> Option<S> {
        self.known.get(key).map(|(_, source)| *source)
    }

    /// How many jobs of a kind there are, with what was left behind.
    pub(super) fn len_of(&self, kind: Kind) -> usize {
        let lane = &self.lanes[kind as usize];
        lane.jobs.values().map(VecDeque::len).sum()
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

impl<S: Copy + Eq + Hash, K, J> Lane<S, K, J> {
    /// Takes the next job, and gives the turn to the next source.
    fn take(&mut self) -> Option<(S, K, J)> {
        let source = self.turns.pop_front()?;
        let jobs = self.jobs.get_mut(&source)?;
        let taken = jobs.pop_front();
        if jobs.is_empty() {
            self.jobs.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        taken.map(|(key, job)| (source, key, job))
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

    #[test]
    fn what_becomes_pressing_goes_first() {
        let mut queue = Queue::default();
        for key in 0..3 {
            queue.push(Kind::Tree, 'x', key, ());
        }
        assert!(queue.push(Kind::Sequential, 'a', 1, ()));
        assert!(!queue.push(Kind::Tree, 'y', 1, ()));
        let order: Vec<_> =
            std::iter::from_fn(|| queue.pop().map(|(_, source, key, ())| (source, key))).collect();
        assert_eq!(order, [('a', 1), ('x', 0), ('x', 2)]);
        assert!(queue.lanes.iter().all(|lane| lane.turns.is_empty()));
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
                        queue.cancel(|of| *of == source);
                        model.retain(|_, (_, of)| *of != source);
                    }
                    1 => {
                        let peeked = queue.peek().map(|(kind, job)| (kind, *job));
                        let popped = queue.pop();
                        prop_assert_eq!(peeked, popped.map(|(kind, .., job)| (kind, job)));
                        if let Some((kind, source, key, _)) = popped {
                            prop_assert_eq!(model.remove(&key), Some((kind, source)));
                            prop_assert!(model.values().all(|(other, _)| *other >= kind));
                        } else {
                            prop_assert!(model.is_empty());
                        }
                    }
                    _ => {
                        let kind = Kind::ALL[kind];
                        let is_new = queue.push(kind, source, key, key);
                        let known = model.get(&key).is_some_and(|(known, _)| *known <= kind);
                        prop_assert_eq!(is_new, !known);
                        if is_new {
                            model.insert(key, (kind, source));
                        }
                    }
                }
                prop_assert_eq!(queue.known.len(), model.len());
            }
        }
    }
}
