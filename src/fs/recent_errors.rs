use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::FsError;
use crate::{cache::CacheError, model::Digest, remote::RemoteError};

/// Errors that are kept.
const KEPT: usize = 20;
/// The same error is logged once in this time, in seconds.
const QUIET: u64 = 10;

/// An error that a reader has met, in words for a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentError {
    /// When it was met last, in seconds since 1970.
    pub at: u64,
    /// Path from the mount's root.
    pub path: String,
    pub digest: Option<String>,
    pub remote: Option<String>,
    pub message: String,
    /// What to do.
    pub remedy: String,
    /// How often it was met.
    pub count: u64,
    /// The log has it from elsewhere.
    #[serde(skip)]
    told: bool,
}

impl RecentError {
    pub(super) fn new(path: String, digest: Option<Digest>, error: &FsError) -> Self {
        let remote = match error {
            FsError::Cache(error) => error.remote().map(ToOwned::to_owned),
            _ => None,
        };
        Self {
            at: SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            path,
            digest: digest.map(|digest| digest.to_string()),
            remote,
            message: error.to_string(),
            remedy: remedy(error).to_owned(),
            count: 1,
            told: Self::is_told(error),
        }
    }

    /// Whether the cache has told the log of it already, once for each digest.
    fn is_told(error: &FsError) -> bool {
        matches!(
            error,
            FsError::Cache(CacheError::Remote(RemoteError::Offline { .. }))
        )
    }

    fn is_again(&self, other: &Self) -> bool {
        (&self.path, &self.digest, &self.message) == (&other.path, &other.digest, &other.message)
    }
}

fn remedy(error: &FsError) -> &'static str {
    match error {
        FsError::Cache(CacheError::Remote(RemoteError::NotFound { .. })) => {
            "import the tree again, or add a remote that has it with --remote"
        }
        FsError::Cache(CacheError::Remote(RemoteError::Read { .. })) => {
            "see that the remote can be reached, then read again"
        }
        FsError::Cache(CacheError::Remote(RemoteError::Offline { .. })) => {
            "bring it into the cache with `castore fetch` while there is a network"
        }
        FsError::Cache(
            CacheError::Remote(RemoteError::Corrupt { .. } | RemoteError::Write { .. })
            | CacheError::BlobMismatch { .. }
            | CacheError::BadDirectory { .. }
            | CacheError::IncompleteClosure { .. }
            | CacheError::UnexpectedDirectory { .. },
        )
        | FsError::WrongBlob(_)
        | FsError::DirectorySize { .. } => {
            "the store is damaged: remove the damaged object there and import the tree again"
        }
        FsError::Cache(_) | FsError::Unreadable => {
            "see that the disk of the cache directory is healthy and not full"
        }
        _ => "read again",
    }
}

/// The last errors.
#[derive(Debug, Default)]
pub(super) struct RecentErrors {
    /// The lock is held for a change of the list only.
    list: Mutex<VecDeque<RecentError>>,
}

impl RecentErrors {
    pub(super) fn note(&self, error: RecentError) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let known = list.iter().position(|known| known.is_again(&error));
        let mut error = error;
        let mut log = !error.told;
        if let Some(known) = known.and_then(|position| list.remove(position)) {
            error.count += known.count;
            log &= error.at >= known.at + QUIET;
        }
        if log {
            tracing::warn!(
                path = error.path,
                digest = error.digest,
                remedy = error.remedy,
                "{}",
                error.message
            );
        }
        if list.len() >= KEPT {
            list.pop_front();
        }
        list.push_back(error);
    }

    pub(super) fn list(&self) -> Vec<RecentError> {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        list.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_twenty_are_kept_and_repeats_are_counted() {
        let errors = RecentErrors::default();
        for number in 0..30 {
            for _ in 0..3 {
                let path = format!("/{number}");
                errors.note(RecentError::new(path, None, &FsError::Unreadable));
            }
        }
        let list = errors.list();
        assert_eq!(list.len(), KEPT);
        assert_eq!((list[0].path.as_str(), list[0].count), ("/10", 3));
        assert_eq!(list[KEPT - 1].path, "/29");
    }
}
