use std::{io, path::PathBuf};

use crate::{
    model::{DirectoryError, ManifestError, NameError, TargetError},
    remote::RemoteError,
};

/// Why nothing was imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("cannot read {path:?}: {cause}")]
    Read { path: PathBuf, cause: io::Error },
    #[error(
        "{path:?} is {kind}, which a tree cannot hold; leave it out, or pass --skip-special to leave all such files out"
    )]
    Special { path: PathBuf, kind: &'static str },
    #[error("{path:?}: {cause}")]
    Name { path: PathBuf, cause: NameError },
    #[error("{path:?} is {cause}")]
    Target { path: PathBuf, cause: TargetError },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    #[error("the archive cannot be read: {0}")]
    Archive(io::Error),
    #[error("the archive has an entry {path:?}: {reason}")]
    Entry { path: PathBuf, reason: String },
    #[error("the import was stopped")]
    Stopped,
}
