use std::{error::Error, fmt, sync::Arc, time::Duration};

use crate::model::{Digest, Name, OutputHash};

/// What a request was about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Object {
    Blob(Digest),
    Chunk(Digest),
    Directory(Digest),
    Root(Name),
    Roots,
    StorePath(OutputHash),
    StorePaths,
    Store,
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blob(digest) => write!(f, "the blob {digest}"),
            Self::Chunk(digest) => write!(f, "the chunk {digest}"),
            Self::Directory(digest) => write!(f, "the directory {digest}"),
            Self::Root(name) => write!(f, "the root name {name:?}"),
            Self::Roots => f.write_str("the list of root names"),
            Self::StorePath(hash) => write!(f, "the store path {hash}-…"),
            Self::StorePaths => f.write_str("the list of store paths"),
            Self::Store => f.write_str("the store"),
        }
    }
}

/// What to make of a request that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No answer, or half of one, or the remote says that it is out of order: it may go well later.
    Unavailable,
    /// The remote asks to be left alone for a while, and may say for how long.
    Overload(Option<Duration>),
    /// The remote turns prefetch away for the sake of its readers, and may say for how long.
    Shed(Option<Duration>),
    /// The remote is well, but those that it would have to ask are away …
    Upstream,
    /// … or have not answered yet.
    Pending,
    /// It will be the same each time.
    Refused,
}

/// Why a remote did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RemoteError {
    #[error("{object} is not at {remote}")]
    NotFound { remote: Arc<str>, object: Object },
    #[error("{object} could not be read from {remote}: {cause}")]
    Read {
        remote: Arc<str>,
        object: Object,
        fault: Fault,
        cause: Arc<dyn Error + Send + Sync>,
    },
    #[error("{object} could not be written to {remote}: {cause}")]
    Write {
        remote: Arc<str>,
        object: Object,
        fault: Fault,
        cause: Arc<dyn Error + Send + Sync>,
    },
    #[error("{object} is damaged at {remote}: {cause}")]
    Corrupt {
        remote: Arc<str>,
        object: Object,
        cause: Arc<dyn Error + Send + Sync>,
    },
    #[error("{object} is not in the cache, and --offline asks no remote")]
    Offline { object: Object },
}

impl RemoteError {
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// What to make of it, where the remote failed to give a proper answer.
    #[must_use]
    pub const fn fault(&self) -> Option<Fault> {
        match self {
            Self::Read { fault, .. } | Self::Write { fault, .. } => Some(*fault),
            Self::NotFound { .. } | Self::Corrupt { .. } | Self::Offline { .. } => None,
        }
    }

    /// Whether it may go well later.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        matches!(
            self.fault(),
            Some(
                Fault::Unavailable
                    | Fault::Overload(_)
                    | Fault::Shed(_)
                    | Fault::Upstream
                    | Fault::Pending
            )
        )
    }

    /// The remote it came from.
    #[must_use]
    pub fn remote(&self) -> &str {
        match self {
            Self::NotFound { remote, .. }
            | Self::Read { remote, .. }
            | Self::Write { remote, .. }
            | Self::Corrupt { remote, .. } => remote,
            Self::Offline { .. } => "no remote (--offline)",
        }
    }
}
