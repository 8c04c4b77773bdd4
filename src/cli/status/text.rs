use std::{
    fmt::{Result, Write},
    time::Duration,
};

use indicatif::{BinaryBytes, HumanDuration};

use super::{CacheStatus, Status};
use crate::{
    cache::{self, Counter},
    cli::control::MountStatus,
    prefetch::Kind,
};

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

/// All of it, for a person.
pub(super) fn text(status: &Status) -> std::result::Result<String, std::fmt::Error> {
    let mut out = String::new();
    if let Some(cache) = &status.cache {
        write_cache(&mut out, cache)?;
    }
    for remote in &status.remotes {
        writeln!(out, "remote {remote}")?;
    }
    for mount in &status.mounts {
        write_mount(&mut out, mount)?;
    }
    for silent in &status.silent {
        writeln!(
            out,
            "mount {} does not answer: {}, mounted for {}",
            silent.mountpoint.0.display(),
            silent.silence,
            age(silent.since)
        )?;
        writeln!(out, "  {} takes it away", silent.mend)?;
    }
    for dead in &status.dead {
        let mountpoint = dead.mountpoint.0.display();
        match dead.pid {
            Some(pid) => writeln!(out, "mount {mountpoint} is dead: its process {pid} is gone")?,
            None => writeln!(
                out,
                "mount {mountpoint} may be dead: no process has registered it"
            )?,
        }
        writeln!(out, "  {} takes it away", dead.mend)?;
    }
    Ok(out)
}

fn age(since: u64) -> HumanDuration {
    HumanDuration(Duration::from_secs(cache::now().saturating_sub(since)))
}

fn write_cache(out: &mut String, cache: &CacheStatus) -> Result {
    let usage = &cache.usage;
    writeln!(out, "cache {}", cache.dir.0.display())?;
    writeln!(
        out,
        "  {} of {} used, in {} files with {} chunks; {} directories",
        BinaryBytes(usage.data_bytes + usage.other_bytes),
        BinaryBytes(usage.quota_bytes),
        usage.files,
        usage.chunks,
        usage.directories
    )?;
    if usage.foreign_bytes > 0 {
        writeln!(
            out,
            "  {} in files that are not the cache's, which do not count",
            BinaryBytes(usage.foreign_bytes)
        )?;
    }
    if let Some(rate) = cache.hit_rate {
        writeln!(out, "  {:.1} % of reads were at hand", rate * 100.0)?;
    }
    for (name, value) in &cache.counters {
        writeln!(out, "  {name} {value}")?;
    }
    Ok(())
}

fn write_mount(out: &mut String, mount: &MountStatus) -> Result {
    writeln!(
        out,
        "mount {} of {}{} for {} (process {})",
        mount.mountpoint.0.display(),
        mount.root,
        mount
            .digest
            .as_ref()
            .filter(|digest| **digest != mount.root)
            .map(|digest| format!(" ({digest})"))
            .unwrap_or_default(),
        age(mount.since),
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
    Ok(())
}
