use std::sync::{Arc, LazyLock};

use rusqlite::Connection;

use super::{Cache, CacheError, index};
use crate::model::{Digest, Directory};

/// Every store has it.
static EMPTY: LazyLock<Arc<Directory>> = LazyLock::new(Arc::default);
/// A directory whose encoding has at most so many bytes is read from the index by the thread that answers the reader: hashing and
/// reading it takes some 20 µs.
const SHORT: u64 = 16 << 10;

// Directories that are here: in memory or in the index.
impl Cache {
    /// A directory that is in memory, or a short one of the index: a row is read sooner than another thread is woken.
    #[must_use]
    pub fn directory_at_hand(&self, digest: Digest) -> Option<Arc<Directory>> {
        if let Some(directory) = self.directory_in_memory(digest) {
            return Some(directory);
        }
        let directory = self
            .store
            .look_up(|connection| indexed_directory(connection, digest, SHORT))?;
        self.memory.keep_directory(digest, &directory);
        Some(directory)
    }

    #[must_use]
    pub fn directory_in_memory(&self, digest: Digest) -> Option<Arc<Directory>> {
        if digest == Digest::empty() {
            return Some(Arc::clone(&EMPTY));
        }
        self.memory.directory(digest)
    }

    /// From memory or from the index.
    pub(super) async fn local_directory(
        self: &Arc<Self>,
        digest: Digest,
    ) -> Result<Option<Arc<Directory>>, CacheError> {
        if let Some(directory) = self.directory_in_memory(digest) {
            return Ok(Some(directory));
        }
        let found = self
            .look_up(move |connection| indexed_directory(connection, digest, u64::MAX))
            .await?;
        if let Some(directory) = &found {
            self.memory.keep_directory(digest, directory);
        }
        Ok(found)
    }
}

/// A directory of the index, if its encoding has at most `longest` bytes. One that is damaged is fetched again.
fn indexed_directory(
    connection: &Connection,
    digest: Digest,
    longest: u64,
) -> rusqlite::Result<Option<Arc<Directory>>> {
    let encoded = index::directory(connection, digest, longest)?;
    Ok(encoded
        .filter(|encoded| Digest::of(encoded) == digest)
        .and_then(|encoded| Directory::decode(encoded).ok())
        .map(Arc::new))
}
