use crate::cache::Counter;

/// Why something is fetched ahead, the most pressing first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A reader goes through a file in order.
    Sequential,
    /// A reader goes from file to file.
    Siblings,
    /// An earlier mount read it at this point.
    Profile,
    /// The whole tree is wanted, or paths of it.
    Tree,
}

/// How many kinds there are.
pub(super) const KINDS: usize = 4;

/// The counters of a kind, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct Counters {
    /// Fetched ahead.
    pub fetched: Counter,
    /// Of that, read.
    pub used: Counter,
    /// Of what was read, waited for.
    pub late: Counter,
    /// Never read.
    pub wasted: Counter,
}

impl Kind {
    pub const ALL: [Self; KINDS] = [Self::Sequential, Self::Siblings, Self::Profile, Self::Tree];

    /// As in the names of counters.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sequential => "sequential",
            Self::Siblings => "siblings",
            Self::Profile => "profile",
            Self::Tree => "tree",
        }
    }

    #[must_use]
    pub const fn counters(self) -> Counters {
        use Counter as C;
        let (fetched, used, late, wasted) = match self {
            Self::Sequential => (
                C::SequentialBytes,
                C::SequentialUsed,
                C::SequentialLate,
                C::SequentialWasted,
            ),
            Self::Siblings => (
                C::SiblingBytes,
                C::SiblingUsed,
                C::SiblingLate,
                C::SiblingWasted,
            ),
            Self::Profile => (
                C::ProfileBytes,
                C::ProfileUsed,
                C::ProfileLate,
                C::ProfileWasted,
            ),
            Self::Tree => (C::TreeBytes, C::TreeUsed, C::TreeLate, C::TreeWasted),
        };
        Counters {
            fetched,
            used,
            late,
            wasted,
        }
    }
}
