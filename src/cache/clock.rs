use std::{
    collections::VecDeque,
    hash::Hash,
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicU8, Ordering},
    },
};

use hashbrown::HashMap;

/// Values that each request looks at: directories, blobs, a file's readers. Bounded by the CLOCK algorithm with a count (a value is
/// passed over by the hand as often as it was looked at, three times at the most).
///
/// Not moka: its `get` allocates and takes a lock each hundred times or so, and it keeps nothing that is larger than its capacity. Here a
/// look takes a shared lock and allocates nothing, and what was inserted last stays, whatever its size.
#[derive(Debug)]
pub struct ClockCache<K, V> {
    /// Nothing is called while it is held.
    state: RwLock<State<K, V>>,
    /// In the unit of the weights: bytes, or a number.
    capacity: u64,
}

/// So that what is looked at again and again outlives what was looked at twice.
const MOST_CHANCES: u8 = 3;

#[derive(Debug)]
struct State<K, V> {
    values: HashMap<K, Slot<V>>,
    /// The keys of `values`, each once; the hand is at the front.
    clock: VecDeque<K>,
    /// Sum of the weights.
    weight: u64,
}

#[derive(Debug)]
struct Slot<V> {
    value: V,
    weight: u64,
    /// Times that the hand will pass it over.
    chances: AtomicU8,
}

impl<K: Clone + Eq + Hash, V: Clone> ClockCache<K, V> {
    /// `capacity` is in the unit of the weights.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        Self {
            state: RwLock::new(State {
                values: HashMap::new(),
                clock: VecDeque::new(),
                weight: 0,
            }),
            capacity,
        }
    }

    pub fn get(&self, key: &K) -> Option<V> {
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let slot = state.values.get(key)?;
        // The look before it keeps the cache line shared.
        let chances = slot.chances.load(Ordering::Relaxed);
        if chances < MOST_CHANCES {
            slot.chances.store(chances + 1, Ordering::Relaxed);
        }
        Some(slot.value.clone())
    }

    /// Keeps a value, in the place of one with the same key.
    pub fn insert(&self, key: &K, value: V, weight: u64) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let dropped = state.insert(key, value, weight, self.capacity);
        drop(state);
        // Values are freed without the lock: a directory can have megabytes.
        drop(dropped);
    }

    /// The value that is kept, or else `value`, which is kept from now on.
    pub fn get_or_insert(&self, key: &K, value: V, weight: u64) -> V {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = state.values.get(key) {
            return known.value.clone();
        }
        let dropped = state.insert(key, value.clone(), weight, self.capacity);
        drop(state);
        drop(dropped);
        value
    }

    pub fn remove(&self, key: &K) {
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        let removed = state.values.remove(key);
        if let Some(slot) = &removed {
            state.weight -= slot.weight;
            state.clock.retain(|known| known != key);
        }
    }
}

impl<K: Clone + Eq + Hash, V> State<K, V> {
    /// Returns what was dropped for it.
    fn insert(&mut self, key: &K, value: V, weight: u64, capacity: u64) -> Vec<Slot<V>> {
        // A value that is larger than the capacity stays beside smaller ones as long as it is used: there are two such at the most.
        let weight = weight.min(capacity / 2);
        self.weight += weight;
        let slot = Slot {
            value,
            weight,
            chances: AtomicU8::new(0),
        };
        let mut dropped = Vec::new();
        match self.values.insert(key.clone(), slot) {
            Some(old) => {
                self.weight -= old.weight;
                dropped.push(old);
            }
            None => self.clock.push_back(key.clone()),
        }
        // What was inserted stays. Each other loses a chance whenever it is passed over, so this ends.
        while self.weight > capacity
            && self.clock.len() > 1
            && let Some(hand) = self.clock.pop_front()
        {
            let passes = |slot: &mut Slot<V>| {
                let chances = slot.chances.get_mut();
                let passes = *chances > 0;
                *chances = chances.saturating_sub(1);
                passes
            };
            if hand == *key || self.values.get_mut(&hand).is_some_and(passes) {
                self.clock.push_back(hand);
            } else if let Some(old) = self.values.remove(&hand) {
                self.weight -= old.weight;
                dropped.push(old);
            }
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_looked_at_stays() {
        let cache = ClockCache::new(10);
        for key in 0..5 {
            cache.insert(&key, key, 2);
        }
        for key in 5..100 {
            assert_eq!(cache.get(&1), Some(1));
            cache.insert(&key, key, 2);
        }
        assert_eq!(cache.get(&1), Some(1));
        assert_eq!(cache.get(&0), None);
    }

    #[test]
    fn what_is_there_is_not_replaced_by_who_only_wants_one() {
        let cache = ClockCache::new(10);
        assert_eq!(cache.get_or_insert(&"a", 1, 1), 1);
        assert_eq!(cache.get_or_insert(&"a", 2, 1), 1);
        cache.insert(&"a", 3, 1);
        assert_eq!(cache.get(&"a"), Some(3));
    }

    #[test]
    fn the_last_one_stays_whatever_its_size() {
        let cache = ClockCache::new(10);
        cache.insert(&1000, 1, 1);
        cache.insert(&2000, 2, 1000);
        // A walk that goes in and out of a large directory threw it out each time.
        for small in 0..100 {
            assert_eq!(cache.get(&2000), Some(2));
            cache.insert(&small, small, 2);
            assert_eq!(cache.get(&small), Some(small));
        }
    }

    proptest! {
        /// The weight is that of what is there, and no more than the capacity.
        #[test]
        fn weights_add_up(steps in prop::collection::vec((0..30_u8, 0..9_u64, 0..4_u8), 0..300)) {
            let cache = ClockCache::new(20);
            for (key, weight, what) in steps {
                match what {
                    0 => cache.remove(&key),
                    1 => { cache.get(&key); }
                    _ => {
                        cache.insert(&key, weight, weight);
                        prop_assert_eq!(cache.get(&key), Some(weight));
                    }
                }
                let state = cache.state.read().unwrap();
                let sum: u64 = state.values.values().map(|slot| slot.weight).sum();
                prop_assert_eq!(sum, state.weight);
                prop_assert_eq!(state.values.len(), state.clock.len());
                prop_assert!(sum <= 20);
            }
        }
    }
}
