use std::sync::atomic::{AtomicU32, Ordering};

use crate::fs::Kind;

/// Callers that are told apart. Those that share a place only start anew.
const CALLERS: usize = 64;
/// Entries that a caller is given an inode of before it has shown that it looks at what it lists: a program that lists only
/// leaves no more inodes in the kernel, and one that looks after it has listed (`du`, up to 100,000 entries at once) finds nearly all
/// of a usual directory there.
const AT_FIRST: u32 = 49_152;
/// And once it has.
const ONCE_SHOWN: u32 = 262_144;

/// Whose listings come with inodes.
///
/// READDIRPLUS can give each entry its inode, which spares a LOOKUP of whoever looks at it next (`ls -l`, `du`) and costs the
/// kernel a kilobyte that is never used where nobody does (`ls -f`, `find -name`). What a caller does with an inode it was given does not come
/// here, what it does without one does: it is looked up. So a caller is given inodes until its credit is used up, and again
/// when it has looked up a file after that.
#[derive(Debug)]
pub(super) struct LookupCredit {
    callers: [Caller; CALLERS],
    /// Callers whose credit is used up, or were: looked at by each lookup, so kept apart from what changes often.
    exhausted: AtomicU32,
}

#[derive(Debug)]
struct Caller {
    /// Thread id.
    id: AtomicU32,
    /// Entries that it will still be given an inode of.
    left: AtomicU32,
}

impl Default for LookupCredit {
    fn default() -> Self {
        Self {
            callers: std::array::from_fn(|_| Caller {
                id: AtomicU32::new(u32::MAX),
                left: AtomicU32::new(AT_FIRST),
            }),
            exhausted: AtomicU32::new(0),
        }
    }
}

impl LookupCredit {
    /// Whether an entry of a listing is given an inode. Two transport threads that serve one caller may race for the last few: then it is
    /// given one more.
    pub(super) fn take(&self, caller: u32) -> bool {
        let place = self.of(caller);
        if place.id.load(Ordering::Relaxed) != caller {
            place.id.store(caller, Ordering::Relaxed);
            place.left.store(AT_FIRST, Ordering::Relaxed);
        }
        let left = place.left.load(Ordering::Relaxed);
        if left == 0 {
            return false;
        }
        place.left.store(left - 1, Ordering::Relaxed);
        if left == 1 {
            self.exhausted.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    /// A caller has looked something up.
    pub(super) fn looked_up(&self, caller: u32, kind: Kind) {
        // Directories are looked up by whoever goes down a tree, without looking at files.
        if self.exhausted.load(Ordering::Relaxed) == 0 || kind == Kind::Directory {
            return;
        }
        let place = self.of(caller);
        if place.id.load(Ordering::Relaxed) == caller && place.left.load(Ordering::Relaxed) == 0 {
            place.left.store(ONCE_SHOWN, Ordering::Relaxed);
        }
    }

    const fn of(&self, caller: u32) -> &Caller {
        &self.callers[caller as usize % CALLERS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_used_up_and_renewed_by_looking() {
        let credit = LookupCredit::default();
        let given = (0..100_000).filter(|_| credit.take(7)).count();
        assert_eq!(given, AT_FIRST as usize);
        credit.looked_up(7, Kind::Directory);
        assert!(!credit.take(7));
        credit.looked_up(8, Kind::File);
        assert!(!credit.take(7), "another caller's");
        credit.looked_up(7, Kind::File);
        assert!((0..ONCE_SHOWN).all(|_| credit.take(7)));
        assert!(!credit.take(7));
        // A caller with the same place starts anew.
        assert!(credit.take(7 + 64));
    }
}
