use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use super::paths;
use crate::{
    cache::{self, Bandwidth, Check, Quota},
    remote::{self, Outage, Policy, parse_duration},
};

/// How long remotes are waited for.
#[derive(Debug, Clone, Args)]
pub(super) struct WaitArgs {
    /// How long a remote may be silent before it counts as away, such as 30s
    #[arg(long, env = "CASTORE_TIMEOUT", value_name = "TIME", default_value = "30s", value_parser = timeout)]
    pub(super) timeout: Duration,

    /// What a read of uncached bytes gets when every remote is away: fail, or wait=TIME such as wait=10m
    ///
    /// fail waits and tries again for --timeout, then gives an error, and gives it at once from then on, until a remote
    /// answers again.
    #[arg(
        long,
        env = "CASTORE_OUTAGE",
        value_name = "fail|wait=TIME",
        default_value = "fail"
    )]
    pub(super) outage: Outage,

    /// Ask the next remote too when one has not answered after this time, such as 200ms, or off [default: off]
    #[arg(long, env = "CASTORE_HEDGE", value_name = "TIME", value_parser = hedge)]
    pub(super) hedge: Option<Duration>,
}

impl WaitArgs {
    pub(super) fn policy(&self) -> Policy {
        Policy {
            timeout: self.timeout,
            outage: self.outage,
            hedge: self.hedge.filter(|delay| !delay.is_zero()),
        }
    }
}

/// Where bytes come from.
#[derive(Debug, Clone, Args)]
pub(super) struct RemoteArgs {
    /// Store to read from, in order of preference; can be given several times
    ///
    /// objectstore+file:///absolute/path is a directory in the object store layout of tvix and snix, and
    /// objectstore+s3://bucket/prefix?region=… (gs, az, http, https) a store in a cloud; grpc+http://host:port, grpc+https
    /// and grpc+unix:///path are servers of castore, tvix or snix. A name is a remote of castore.toml. The default is the
    /// user's own store, to which `castore import` writes ($XDG_DATA_HOME/castore/store, or /var/lib/castore/store for
    /// root).
    #[arg(long, env = "CASTORE_REMOTE", value_name = "URL[,URL…]")]
    pub(super) remote: Vec<String>,

    #[command(flatten)]
    pub(super) wait: WaitArgs,

    /// Never use the network: what is cached is served, all else fails at once
    #[arg(long, env = "CASTORE_OFFLINE")]
    pub(super) offline: bool,
}

/// Zero is off.
fn hedge(text: &str) -> Result<Duration, String> {
    match text {
        "off" => Ok(Duration::ZERO),
        text => parse_duration(text).map_err(|error| error.to_string()),
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    let time = parse_duration(text).map_err(|error| error.to_string())?;
    match time.is_zero() {
        true => Err("it must be more than nothing".to_owned()),
        false => Ok(time),
    }
}

impl RemoteArgs {
    /// One remote.
    pub(super) fn of(address: String, wait: WaitArgs) -> Self {
        Self {
            remote: vec![address],
            wait,
            offline: false,
        }
    }

    /// The addresses without secrets.
    pub(super) fn shown(&self) -> anyhow::Result<Vec<String>> {
        let addresses = self.addresses()?;
        let shown = addresses
            .iter()
            .map(|address| Ok(remote::Address::parse(address)?.shown().to_owned()));
        shown.collect()
    }

    pub(super) fn policy(&self) -> Policy {
        self.wait.policy()
    }

    /// What was given, or the default store.
    pub(super) fn addresses(&self) -> anyhow::Result<Vec<String>> {
        if self.remote.is_empty() {
            return Ok(vec![paths::address(&paths::default_store())?]);
        }
        // One on each line, as `config` leaves them.
        let addresses = self.remote.iter().flat_map(|remote| remote.lines());
        Ok(addresses.map(str::to_owned).collect())
    }
}

/// The store to write to.
#[derive(Debug, Clone, Args)]
pub(super) struct StoreArgs {
    /// Store to write to [default: the user's own store]
    #[arg(long, env = "CASTORE_REMOTE", value_name = "URL")]
    pub(super) remote: Option<String>,

    #[command(flatten)]
    pub(super) wait: WaitArgs,
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
    /// It is remembered, and what `mount`, `virtiofs`, `serve`, `fetch` or `resize` said last holds for all who share the cache; other
    /// commands leave it as it is. The default is 20 % of the disk or 50 GiB, whichever is less.
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

    /// The most that is fetched, in bytes a second such as 10MiB, or prefetch:10MiB of what nobody waits for yet; or both,
    /// with a comma between
    #[arg(long, env = "CASTORE_BANDWIDTH", value_name = "RATE")]
    pub(super) bandwidth: Option<Bandwidth>,

    /// What may be served of a large blob that its remote does not split: verified once the whole was read, or
    /// stream, as it comes
    ///
    /// With stream, a blob that turns out wrong at its end gives errors from then on, and what the kernel keeps of it is
    /// dropped; until then readers may have seen wrong bytes.
    #[arg(
        long,
        env = "CASTORE_TRUST",
        value_name = "WHAT",
        default_value = "verified"
    )]
    pub(super) trust: Trust,

    /// When cached bytes are hashed that are read: once while nobody writes to their file, or always
    ///
    /// What the disk itself makes of them is seen with always alone. It costs a hash of the whole chunk for each read that memory does not
    /// answer, and the kernel keeps nothing of what is read from a mount.
    #[arg(
        long,
        env = "CASTORE_VERIFY",
        value_name = "WHEN",
        default_value = "stamp"
    )]
    pub(super) verify: Verify,
}

/// When cached bytes are hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Verify {
    Stamp,
    Always,
}

/// What may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Trust {
    Verified,
    Stream,
}

impl CacheArgs {
    /// Whether bytes are served before the whole blob was verified.
    #[cfg(all(feature = "virtiofs", target_os = "linux"))]
    pub(super) const fn trusts_streams(&self) -> bool {
        matches!(self.trust, Trust::Stream)
    }

    pub(super) fn dir(&self) -> PathBuf {
        self.cache_dir.clone().unwrap_or_else(paths::default_cache)
    }

    /// `resizes`: the quota is remembered.
    pub(super) fn config(&self, resizes: bool) -> cache::Config {
        let memory = match self.memory {
            Some(Quota::Bytes(bytes)) => bytes,
            Some(share @ Quota::Share(_)) => share.bytes(cache::machine_memory()),
            None => cache::default_memory(),
        };
        cache::Config {
            dir: self.dir(),
            size: self.cache_size,
            resizes,
            min_free: self.min_free,
            memory,
            check: match self.verify {
                Verify::Stamp => Check::Stamp,
                Verify::Always => Check::Always,
            },
            trust_streams: matches!(self.trust, Trust::Stream),
            keeps: false,
            bandwidth: self.bandwidth.unwrap_or_default(),
        }
    }
}
