use std::{
    collections::BTreeSet,
    sync::{Arc, PoisonError},
};

use super::{Filesystem, Root};
use crate::{cache::CacheError, model::Name};

/// Why a mount does not go over to another tree.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SwitchError {
    #[error("this mount shows whatever the remotes have (--all or --nix), and no tree")]
    Changes,
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl Filesystem {
    /// Shows another tree from now on. What is open stays what it was: inodes are those of content, and only the root's
    /// entries stand for something else. Gives the names that the kernel must forget, below the root.
    ///
    /// # Errors
    /// When the mount shows no tree, or the new one's root directory cannot be had.
    pub async fn switch(&self, root: Root) -> Result<Vec<Name>, SwitchError> {
        if self.changes || root.changes() {
            return Err(SwitchError::Changes);
        }
        let mut names = self.names(&self.root()).await?;
        names.extend(self.names(&root).await?);
        self.inodes.set_root(&root);
        *self.root.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(root);
        Ok(names.into_iter().collect())
    }

    async fn names(&self, root: &Root) -> Result<BTreeSet<Name>, CacheError> {
        Ok(match root {
            Root::Directory { digest, .. } => {
                let directory = self.cache.directory(*digest, *digest).await?;
                let names = directory.entries().iter().map(|entry| entry.name.clone());
                names.collect()
            }
            Root::Single { name, .. } => BTreeSet::from([name.clone()]),
            Root::Names | Root::StorePaths => BTreeSet::new(),
        })
    }
}
