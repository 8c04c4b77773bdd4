use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::Context;
use async_trait::async_trait;

use crate::{
    cache::Cache,
    cli::{
        control::{MountStatus, Mounted},
        open, profile,
        shown::{shown, tree},
    },
    fs::{Filesystem, fuse::Kernel},
    model::RootRef,
    prefetch::Trace,
};

/// A mount, as `castore status` and `castore switch` meet it.
pub(super) struct Served {
    pub(super) cache: Arc<Cache>,
    pub(super) fs: Arc<Filesystem>,
    /// Known once it is mounted.
    pub(super) kernel: OnceLock<Kernel>,
    /// The lock is held for a look only.
    pub(super) status: Mutex<MountStatus>,
    /// One switch at a time.
    pub(super) switching: tokio::sync::Mutex<()>,
}

impl Served {
    fn status(&self) -> std::sync::MutexGuard<'_, MountStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Mounted for Served {
    fn status(&self) -> MountStatus {
        let counters = self.cache.stats().iter();
        MountStatus {
            inodes: self.fs.inode_count(),
            counters: counters
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
            requests: self.kernel.get().map_or_else(Vec::new, |kernel| {
                let requests = kernel.requests().into_iter();
                requests
                    .filter(|(_, count)| *count > 0)
                    .map(|(name, count)| (name.to_owned(), count))
                    .collect()
            }),
            errors: self.fs.recent_errors(),
            remotes: self.cache.remote_status(),
            ..self.status().clone()
        }
    }

    fn trace(&self) -> u64 {
        self.fs.prefetch().trace()
    }

    fn traced(&self, number: u64) -> Option<Trace> {
        self.fs.prefetch().traced(number)
    }

    async fn switch(&self, root: &str) -> anyhow::Result<String> {
        let _one = self.switching.lock().await;
        let kernel = self.kernel.get().context("it is not mounted yet")?.clone();
        let root = RootRef::parse(root)?;
        let (shown, digest) = shown(&root, open::root(&self.cache, &root).await?)?;
        let tree = tree(&shown);
        let outdated = self.fs.switch(shown).await?;
        match tree {
            Some(tree) => self.fs.prefetch().show(tree, profile::name_of(&root)),
            None => self.fs.prefetch().show_none(),
        }
        // Waits for the kernel, which may wait for a look-up that waits for a remote.
        tokio::task::spawn_blocking(move || kernel.drop_outdated(&outdated)).await?;
        let mut status = self.status();
        status.root = root.to_string();
        status.digest.clone_from(&digest);
        tracing::info!(%root, digest, "switched");
        Ok(digest.unwrap_or_else(|| root.to_string()))
    }
}
