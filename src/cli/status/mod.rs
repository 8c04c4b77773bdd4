//! `castore status`: what is mounted (`survey`), and how that and the cache are shown to a person (`text`).

mod survey;
mod text;

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

/// Show what is mounted, how full the cache is and what went wrong lately
///
/// With --cache-dir, mounts of that cache are shown, else all of this user. No mount is looked at, so none that hangs can hold
/// this up.
#[derive(Debug, clap::Args)]
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
    let status = Status {
        cache: has_cache.then(|| cache(args)).transpose()?,
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
