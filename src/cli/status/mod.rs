//! `castore status`: what is mounted (`survey`), and how that and the cache are shown to a person (`text`).

mod survey;
mod text;

use std::time::Duration;

use anyhow::bail;
use serde::Serialize;

use self::survey::{Dead, Silent, survey};
use super::{
    args::{CacheArgs, RemoteArgs},
    control::MountStatus,
    open,
    raw_path::RawPath,
    runtime,
};
use crate::cache::Usage;

/// The index of a cache answers within this time, unless another process has locked it.
const INDEX_WITHIN: Duration = Duration::from_secs(2);

/// Show what is mounted, how full the cache is and what went wrong lately
///
/// With --cache-dir, mounts of that cache are shown, else all of this user. No mount is looked at, so none that hangs can hold
/// this up.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Examples:\n  castore status\n  castore status --json | jq .cache")]
pub(super) struct Args {
    /// For programs
    #[arg(long, env = "CASTORE_JSON")]
    json: bool,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Debug, Serialize)]
struct Status {
    /// `null` where there is none yet.
    cache: Option<CacheStatus>,
    remotes: Vec<String>,
    mounts: Vec<MountStatus>,
    /// Mounts that do not answer.
    silent: Vec<Silent>,
    /// Mounts whose process is gone.
    dead: Vec<Dead>,
}

#[derive(Debug, Serialize)]
struct CacheStatus {
    dir: RawPath,
    #[serde(flatten)]
    usage: Usage,
    /// Slices of reads that were at hand, of all; `null` before the first.
    hit_rate: Option<f64>,
    /// Summed over all mounts and commands that ever used this cache.
    counters: std::collections::BTreeMap<String, u64>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    let dir = args.cache.dir();
    let has_cache = dir.join("index.sqlite").exists();
    let mut found = survey(&dir, args.cache.cache_dir.is_some());
    found.sort();
    if !has_cache && found.is_empty() {
        bail!(
            "there is no cache at {dir:?} yet; it is made by the first `castore mount`, or name another --cache-dir"
        );
    }
    let cache = match has_cache {
        true => within_reason(args, !found.silent.is_empty())?,
        false => None,
    };
    let status = Status {
        cache,
        remotes: args.remotes.shown()?,
        mounts: found.mounts,
        silent: found.silent,
        dead: found.dead,
    };
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&status)?),
        false => print!("{}", text::text(&status)?),
    }
    Ok(())
}

/// A process that hangs may hold the lock of the index; then the mounts alone are shown, after a note.
fn within_reason(args: &Args, some_hang: bool) -> anyhow::Result<Option<CacheStatus>> {
    if !some_hang {
        return cache(args).map(Some);
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let own = args.clone();
    std::thread::spawn(move || sender.send(cache(&own)));
    if let Ok(status) = receiver.recv_timeout(INDEX_WITHIN) {
        return status.map(Some);
    }
    eprintln!("castore: the cache is not shown: a process that hangs holds its index");
    Ok(None)
}

fn cache(args: &Args) -> anyhow::Result<CacheStatus> {
    runtime::block_on(async {
        let cache = open::cache(&args.cache, &args.remotes)?;
        let (usage, counters) = cache.usage()?;
        let counters = counters.into_iter().collect();
        let status = CacheStatus {
            dir: RawPath(cache.dir().to_owned()),
            usage,
            hit_rate: hit_rate(&counters),
            counters,
        };
        cache.close();
        Ok(status)
    })
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn hit_rate(counters: &std::collections::BTreeMap<String, u64>) -> Option<f64> {
    let get = |name: &str| counters.get(name).copied().unwrap_or_default();
    let hits = get("memory_hits") + get("disk_hits");
    let all = hits + get("misses");
    (all > 0).then(|| hits as f64 / all as f64)
}
