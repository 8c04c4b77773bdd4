use std::{error::Error, fmt, sync::Arc};

use crate::model::{Digest, Name};

/// What a request was about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Blob(Digest),
    Chunk(Digest),
    Directory(Digest),
    Root(Name),
    Roots,
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
            Self::Store => f.write_str("the store"),
        }
    }
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
        cause: Arc<dyn Error + Send + Sync>,
    },
    #[error("{object} could not be written to {remote}: {cause}")]
    Write {
        remote: Arc<str>,
        object: Object,
        cause: Arc<dyn Error + Send + Sync>,
    },
    #[error("{object} is damaged at {remote}: {cause}")]
    Corrupt {
        remote: Arc<str>,
        object: Object,
        cause: Arc<dyn Error + Send + Sync>,
    },
}

impl RemoteError {
    #[must_use]
    pub const fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }

    /// The remote it came from.
    #[must_use]
    pub fn remote(&self) -> &str {
        match self {
            Self::NotFound { remote, .. }
            | Self::Read { remote, .. }
            | Self::Write { remote, .. }
            | Self::Corrupt { remote, .. } => remote,
        }
    }
}
