use std::{fmt::Write, time::SystemTime};

use anyhow::bail;
use indicatif::{BinaryBytes, HumanDuration};
use serde::Serialize;

use super::{
    args::{CacheArgs, RemoteArgs},
    control::{self, MountStatus},
    open, runtime,
};
use crate::{
    cache::{Counter, Usage},
    prefetch::Kind,
};

/// Show what is mounted, how full the cache is and what went wrong lately
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
    cache: CacheStatus,
    remotes: Vec<String>,
    mounts: Vec<MountStatus>,
    /// Mounts that did not answer.
    silent: usize,
}

#[derive(Debug, Serialize)]
struct CacheStatus {
    dir: std::path::PathBuf,
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
    if !dir.join("index.sqlite").exists() {
        bail!(
            "there is no cache at {dir:?} yet; it is made by the first `castore mount`, or name another --cache-dir"
        );
    }
    runtime::block_on(async {
        let cache = open::cache(&args.cache, &args.remotes)?;
        let (mounts, silent) = control::ask_all(cache.dir());
        let (usage, counters) = cache.usage()?;
        let counters = counters.into_iter().collect();
        let status = Status {
            cache: CacheStatus {
                dir: cache.dir().to_owned(),
                usage,
                hit_rate: hit_rate(&counters),
                counters,
            },
            remotes: args.remotes.shown()?,
            mounts,
            silent,
        };
        cache.close();
        match args.json {
            true => println!("{}", serde_json::to_string_pretty(&status)?),
            false => print!("{}", text(&status)?),
        }
        Ok(())
    })
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn hit_rate(counters: &std::collections::BTreeMap<String, u64>) -> Option<f64> {
    let get = |name: &str| counters.get(name).copied().unwrap_or_default();
    let hits = get("memory_hits") + get("disk_hits");
    let all = hits + get("misses");
    (all > 0).then(|| hits as f64 / all as f64)
}

/// What became of what a mount has fetched ahead, one line for each reason.
fn fetched_ahead(counters: &[(String, u64)]) -> Vec<String> {
    let get = |counter: Counter| {
        let found = counters.iter().find(|(name, _)| name == counter.name());
        found.map_or(0, |(_, value)| *value)
    };
    let kinds = Kind::ALL.into_iter().filter_map(|kind| {
        let counters = kind.counters();
        let fetched = get(counters.fetched);
        (fetched > 0).then(|| {
            format!(
                "fetched ahead ({}): {}, of which {} were read ({} of them late) and {} wasted",
                kind.name(),
                BinaryBytes(fetched),
                BinaryBytes(get(counters.used)),
                BinaryBytes(get(counters.late)),
                BinaryBytes(get(counters.wasted))
            )
        })
    });
    kinds.collect()
}

fn text(status: &Status) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let cache = &status.cache;
    let usage = &cache.usage;
    writeln!(out, "cache {}", cache.dir.display())?;
    writeln!(
        out,
        "  {} of {} used, in {} files with {} chunks; {} directories",
        BinaryBytes(usage.data_bytes + usage.other_bytes),
        BinaryBytes(usage.quota_bytes),
        usage.files,
        usage.chunks,
        usage.directories
    )?;
    if let Some(rate) = cache.hit_rate {
        writeln!(out, "  {:.1} % of reads were at hand", rate * 100.0)?;
    }
    for (name, value) in &cache.counters {
        writeln!(out, "  {name} {value}")?;
    }
    for remote in &status.remotes {
        writeln!(out, "remote {remote}")?;
    }
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    for mount in &status.mounts {
        let age = now.saturating_sub(std::time::Duration::from_secs(mount.since));
        writeln!(
            out,
            "mount {} of {}{} for {} (process {})",
            mount.mountpoint.display(),
            mount.root,
            mount
                .digest
                .as_ref()
                .filter(|digest| **digest != mount.root)
                .map(|digest| format!(" ({digest})"))
                .unwrap_or_default(),
            HumanDuration(age),
            mount.pid
        )?;
        for remote in &mount.remotes {
            match (&remote.away, &remote.reason) {
                (true, reason) => writeln!(
                    out,
                    "  from {}, which has not answered for {} s{}{}",
                    remote.address,
                    remote.failing_for.unwrap_or_default(),
                    if reason.is_some() { ": " } else { "" },
                    reason.as_deref().unwrap_or_default()
                )?,
                (false, _) => writeln!(out, "  from {}", remote.address)?,
            }
        }
        for line in fetched_ahead(&mount.counters) {
            writeln!(out, "  {line}")?;
        }
        for error in &mount.errors {
            writeln!(
                out,
                "  error at {} ({} times): {}",
                error.path, error.count, error.message
            )?;
            writeln!(out, "    {}", error.remedy)?;
        }
    }
    if status.silent > 0 {
        writeln!(out, "{} mounts do not answer", status.silent)?;
    }
    Ok(out)
}
