use std::{io, path::PathBuf, sync::Arc};

use super::GuardError;
use crate::{
    model::{Digest, DirectoryError},
    remote::RemoteError,
};

/// Why the cache could not be opened, or could not give what it was asked for. Cheap to clone: all waiters of one
/// fetch get the same.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CacheError {
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("the blob {digest} from {remote} has other bytes than its digest says")]
    BlobMismatch { digest: Digest, remote: String },
    #[error("the directory {digest} from {remote} is damaged: {cause}")]
    BadDirectory {
        digest: Digest,
        remote: String,
        cause: DirectoryError,
    },
    #[error("the closure of {root} at {remote} does not have the directory {digest}")]
    IncompleteClosure {
        root: Digest,
        digest: Digest,
        remote: String,
    },
    #[error("the closure of {root} at {remote} has a directory {digest} that nothing refers to")]
    UnexpectedDirectory {
        root: Digest,
        digest: Digest,
        remote: String,
    },
    #[error(transparent)]
    Guard(#[from] GuardError),
    #[error("{path:?}: {cause}")]
    Io {
        path: PathBuf,
        cause: Arc<io::Error>,
    },
    #[error("the index of the cache {path:?}: {cause}")]
    Index {
        path: PathBuf,
        cause: Arc<rusqlite::Error>,
    },
    #[error(
        "the cache {path:?} was written by a newer castore (schema {found}, this one knows {known}); \
         upgrade castore or name another --cache-dir"
    )]
    NewerSchema {
        path: PathBuf,
        found: i64,
        known: i64,
    },
    #[error(
        "a cache of {bytes} bytes is too small; give it at least {minimum} bytes with --cache-size"
    )]
    TooSmall { bytes: u64, minimum: u64 },
    #[error("the blob {digest} is cut in another way by now; read it again")]
    Recut { digest: Digest },
    #[error("a fetch ended without a result")]
    Aborted,
}

impl CacheError {
    pub(super) fn io(path: impl Into<PathBuf>, cause: io::Error) -> Self {
        Self::Io {
            path: path.into(),
            cause: Arc::new(cause),
        }
    }

    /// Whether what a remote sent was not what it should be.
    pub(super) const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Remote(RemoteError::Corrupt { .. })
                | Self::BlobMismatch { .. }
                | Self::BadDirectory { .. }
                | Self::IncompleteClosure { .. }
                | Self::UnexpectedDirectory { .. }
        )
    }

    /// Whether another process held the lock of the index for too long.
    pub(super) fn is_busy(&self) -> bool {
        let Self::Index { cause, .. } = self else {
            return false;
        };
        cause.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseBusy)
    }

    /// The remote it came from, where one is to blame.
    #[must_use]
    pub fn remote(&self) -> Option<&str> {
        match self {
            Self::Remote(error) => Some(error.remote()),
            Self::BlobMismatch { remote, .. }
            | Self::BadDirectory { remote, .. }
            | Self::IncompleteClosure { remote, .. }
            | Self::UnexpectedDirectory { remote, .. } => Some(remote),
            Self::Guard(_)
            | Self::Io { .. }
            | Self::Index { .. }
            | Self::NewerSchema { .. }
            | Self::TooSmall { .. }
            | Self::Recut { .. }
            | Self::Aborted => None,
        }
    }
}
