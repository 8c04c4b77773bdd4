use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use crate::fs::Kind;

/// Callers that are told apart.
const CALLERS: usize = 1024;
/// Entries that a caller is given an inode of before it has shown that it looks at what it lists: a program that lists only
/// leaves no more inodes in the kernel, and one that looks after it has listed (`du`, up to 100,000 entries at once) finds nearly all
/// of a usual directory there.
const AT_FIRST: u32 = 49_152;
/// And once it has.
const ONCE_SHOWN: u32 = 262_144;
/// A caller that has listed nothing for so long is another process by now, or does something else.
const REMEMBERED_FOR: Duration = Duration::from_secs(2);

/// No thread has this id.
const NOBODY: u32 = u32::MAX;

/// Whose listings come with inodes.
///
/// READDIRPLUS can give each entry its inode, which spares a LOOKUP of whoever looks at it next (`ls -l`, `du`) and costs the
/// kernel a kilobyte that is never used where nobody does (`ls -f`, `find -name`). What a caller does with an inode it was given does not come
/// here, what it does without one does: it is looked up. So a caller is given inodes until its credit is used up, and again
/// when it has looked something up in the directory that it listed last: a file, or a directory, which whoever goes down a tree looks up
/// without looking at the files.
#[derive(Debug)]
pub(super) struct LookupCredit {
    callers: Box<[Caller]>,
    /// How often a credit was used up. As long as it is 0, lookups need not look further.
    exhausted: AtomicU32,
    start: Instant,
}

/// Two threads of the transport that serve one caller may race for the last few: then it is given some more.
#[derive(Debug)]
struct Caller {
    /// Thread id; [`NOBODY`] where there is none yet. 0 is all those that this process cannot see.
    id: AtomicU32,
    files: AtomicU32,
    directories: AtomicU32,
    /// Node id of the directory that it listed last.
    directory: AtomicU64,
    /// When, in milliseconds since the start.
    listed: AtomicU64,
}

/// Of how many more entries a caller is given inodes: what is taken is given back by [`LookupCredit::spent`].
#[derive(Debug)]
pub(super) struct Grant {
    files: u32,
    directories: u32,
}

impl Default for Caller {
    fn default() -> Self {
        Self {
            id: AtomicU32::new(NOBODY),
            files: AtomicU32::default(),
            directories: AtomicU32::default(),
            directory: AtomicU64::default(),
            listed: AtomicU64::default(),
        }
    }
}

impl Default for LookupCredit {
    fn default() -> Self {
        Self {
            callers: std::iter::repeat_with(Caller::default)
                .take(CALLERS)
                .collect(),
            exhausted: AtomicU32::new(0),
            start: Instant::now(),
        }
    }
}

impl Grant {
    /// Whether an entry of a listing is given an inode.
    pub(super) fn take(&mut self, kind: Kind) -> bool {
        let left = match kind {
            Kind::Directory => &mut self.directories,
            Kind::File | Kind::Symlink => &mut self.files,
        };
        let taken = left.checked_sub(1);
        *left = taken.unwrap_or(0);
        taken.is_some()
    }
}

impl LookupCredit {
    /// A caller goes on listing a directory.
    pub(super) fn of(&self, caller: u32, directory: u64) -> Grant {
        let place = self.place(caller);
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        let listed = place.listed.swap(now, Ordering::Relaxed);
        let is_old = u128::from(now.saturating_sub(listed)) > REMEMBERED_FOR.as_millis();
        // Who comes to the place of another that is listing goes on with its credit: both would be given a new one in turn otherwise.
        let before = place.id.swap(caller, Ordering::Relaxed);
        if before == NOBODY || (before != caller && is_old) {
            place.files.store(AT_FIRST, Ordering::Relaxed);
            place.directories.store(AT_FIRST, Ordering::Relaxed);
        }
        place.directory.store(directory, Ordering::Relaxed);
        Grant {
            files: place.files.load(Ordering::Relaxed),
            directories: place.directories.load(Ordering::Relaxed),
        }
    }

    /// What is left of a grant.
    pub(super) fn spent(&self, caller: u32, left: &Grant) {
        let place = self.place(caller);
        let files = place.files.swap(left.files, Ordering::Relaxed);
        let used_up = |before: u32, left: u32| before > 0 && left == 0;
        let directories = place.directories.swap(left.directories, Ordering::Relaxed);
        if used_up(files, left.files) || used_up(directories, left.directories) {
            self.exhausted.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A caller has looked something up in a directory.
    pub(super) fn looked_up(&self, caller: u32, directory: u64, kind: Kind) {
        if self.exhausted.load(Ordering::Relaxed) == 0 {
            return;
        }
        let place = self.place(caller);
        if place.id.load(Ordering::Relaxed) != caller
            || place.directory.load(Ordering::Relaxed) != directory
        {
            return;
        }
        let left = match kind {
            Kind::Directory => &place.directories,
            Kind::File | Kind::Symlink => &place.files,
        };
        if left.load(Ordering::Relaxed) == 0 {
            left.store(ONCE_SHOWN, Ordering::Relaxed);
        }
    }

    fn place(&self, caller: u32) -> &Caller {
        &self.callers[caller as usize % CALLERS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIRECTORY: u64 = 5;

    /// How many entries of `wanted` a caller is given inodes of.
    fn list(credit: &LookupCredit, caller: u32, kind: Kind, wanted: u32) -> u32 {
        let mut given = 0;
        for _ in 0..wanted.div_ceil(100) {
            let mut grant = credit.of(caller, DIRECTORY);
            given += (0..100).map(|_| u32::from(grant.take(kind))).sum::<u32>();
            credit.spent(caller, &grant);
        }
        given
    }

    #[test]
    fn credit_is_used_up_and_renewed_by_looking() {
        let credit = LookupCredit::default();
        assert_eq!(list(&credit, 7, Kind::File, 100_000), AT_FIRST);
        credit.looked_up(7, DIRECTORY, Kind::Directory);
        credit.looked_up(8, DIRECTORY, Kind::File);
        credit.looked_up(7, DIRECTORY + 1, Kind::File);
        assert_eq!(
            list(&credit, 7, Kind::File, 100),
            0,
            "another's, and elsewhere"
        );
        credit.looked_up(7, DIRECTORY, Kind::File);
        assert_eq!(list(&credit, 7, Kind::File, 1_000_000), ONCE_SHOWN);
    }

    /// Callers of another PID namespace had a new credit for each reply.
    #[test]
    fn callers_that_cannot_be_seen_use_theirs_up() {
        let credit = LookupCredit::default();
        assert_eq!(list(&credit, 0, Kind::File, 100_000), AT_FIRST);
    }

    /// Going down a tree with `find -name` looks up each directory and no file.
    #[test]
    fn directories_have_a_credit_of_their_own() {
        let credit = LookupCredit::default();
        assert_eq!(list(&credit, 7, Kind::File, 100_000), AT_FIRST);
        assert_eq!(list(&credit, 7, Kind::Directory, 100_000), AT_FIRST);
        credit.looked_up(7, DIRECTORY, Kind::Directory);
        assert_eq!(list(&credit, 7, Kind::File, 100), 0);
        assert_eq!(list(&credit, 7, Kind::Directory, 1_000_000), ONCE_SHOWN);
    }

    /// Each began anew whenever the other had come between.
    #[test]
    fn callers_in_one_place_share_its_credit() {
        let credit = LookupCredit::default();
        let other = 7 + u32::try_from(CALLERS).unwrap();
        let given: u32 = (0..1000)
            .map(|_| list(&credit, 7, Kind::File, 100) + list(&credit, other, Kind::File, 100))
            .sum();
        assert_eq!(given, AT_FIRST);
    }
}
