use std::path::PathBuf;

use clap::Args;

use super::paths;
use crate::cache::{self, Quota};

/// Where bytes come from.
#[derive(Debug, Clone, Args)]
pub(super) struct RemoteArgs {
    /// Store to read from, in order of preference; can be given several times
    ///
    /// objectstore+file:///absolute/path is a directory in the object store layout of tvix and snix. The default is
    /// the user's own store, to which `castore import` writes ($XDG_DATA_HOME/castore/store, or
    /// /var/lib/castore/store for root).
    #[arg(
        long,
        env = "CASTORE_REMOTE",
        value_name = "URL",
        value_delimiter = ','
    )]
    pub(super) remote: Vec<String>,
}

impl RemoteArgs {
    /// What was given, or the default store.
    pub(super) fn addresses(&self) -> anyhow::Result<Vec<String>> {
        if self.remote.is_empty() {
            return Ok(vec![paths::address(&paths::default_store())?]);
        }
        Ok(self.remote.clone())
    }
}

/// The store to write to.
#[derive(Debug, Clone, Args)]
pub(super) struct StoreArgs {
    /// Store to write to [default: the user's own store]
    #[arg(long, env = "CASTORE_REMOTE", value_name = "URL")]
    pub(super) remote: Option<String>,
}

impl StoreArgs {
    pub(super) fn address(&self) -> anyhow::Result<String> {
        match &self.remote {
            Some(remote) => Ok(remote.clone()),
            None => Ok(paths::address(&paths::default_store())?),
        }
    }
}

/// The local cache.
#[derive(Debug, Clone, Args)]
pub(super) struct CacheArgs {
    /// Directory of the local cache [default: $XDG_CACHE_HOME/castore, or /var/cache/castore for root]
    ///
    /// Several mounts, also of other processes, can share one.
    #[arg(long, env = "CASTORE_CACHE_DIR", value_name = "DIR")]
    pub(super) cache_dir: Option<PathBuf>,

    /// Most that the cache may take, in B, KiB, MiB, GiB, TiB or % of the disk
    ///
    /// It is remembered, and what was said last holds for all who share the cache. The default is 20 % of the disk or
    /// 50 GiB, whichever is less.
    #[arg(long, env = "CASTORE_CACHE_SIZE", value_name = "SIZE")]
    pub(super) cache_size: Option<Quota>,

    /// Space on the cache's disk that is left free
    #[arg(
        long,
        env = "CASTORE_MIN_FREE",
        value_name = "SIZE",
        default_value = "5%"
    )]
    pub(super) min_free: Quota,

    /// Memory for cached values and bytes in flight [default: 256MiB, or a quarter of the cgroup's limit]
    #[arg(long, env = "CASTORE_MEMORY", value_name = "SIZE")]
    pub(super) memory: Option<Quota>,
}

impl CacheArgs {
    pub(super) fn dir(&self) -> PathBuf {
        self.cache_dir.clone().unwrap_or_else(paths::default_cache)
    }

    pub(super) fn config(&self) -> cache::Config {
        let memory = match self.memory {
            Some(Quota::Bytes(bytes)) => bytes,
            Some(share @ Quota::Share(_)) => share.bytes(cache::machine_memory()),
            None => cache::default_memory(),
        };
        cache::Config {
            dir: self.dir(),
            size: self.cache_size,
            min_free: self.min_free,
            memory,
        }
    }
}
