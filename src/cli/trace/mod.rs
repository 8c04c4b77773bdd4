//! `castore trace`: what a mount reads, as a picture (`svg`).

mod svg;

use std::{
    fs,
    path::PathBuf,
    process::{Command, ExitCode},
    time::Duration,
};

use anyhow::Context;

use super::{
    control::{self, Request},
    mountpoint, mounts, paths, runtime,
};
use crate::{
    prefetch::{Trace, What},
    remote::parse_duration,
};

const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Draw what is read from a mount: time against place in the file, what was there, fetched ahead or waited for
///
/// It watches until the command ends, for the time given with --for, or until it is interrupted (Ctrl-C). What the kernel has
/// in its own cache does not come by the mount and is not seen.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore trace /mnt/toolchain -- /mnt/toolchain/bin/rustc --version
  castore trace /mnt/toolchain --for 10s --output rustc.svg")]
pub(super) struct Args {
    /// Where the tree is mounted
    mountpoint: PathBuf,

    /// The picture, an SVG; with a name that ends in .json, the events themselves
    #[arg(
        long,
        short,
        env = "CASTORE_OUTPUT",
        value_name = "FILE",
        default_value = "castore-trace.svg"
    )]
    output: PathBuf,

    /// How long to watch
    #[arg(long = "for", env = "CASTORE_FOR", value_name = "TIME", value_parser = parse_duration, conflicts_with = "command")]
    time: Option<Duration>,

    /// Directory of the mount's cache; needed only for one that this user's runtime directory does not name
    #[arg(long, env = "CASTORE_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,

    /// What to run meanwhile
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<std::ffi::OsString>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    runtime::log_to_stderr();
    let path = mountpoint::absolute(&args.mountpoint)?;
    let dir = args.cache_dir.clone().unwrap_or_else(paths::default_cache);
    let socket = mounts::find(&path, &dir)?;
    // Told before anything is run.
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&args.output)
        .with_context(|| format!("{:?} cannot be written", args.output))?;
    let number: u64 = control::ask(&socket, &Request::TraceStart, ANSWER_WITHIN)?;
    let watched = watch(args);
    let trace: Option<Trace> = control::ask(&socket, &Request::TraceStop(number), ANSWER_WITHIN)
        .context("the mount has ended meanwhile")?;
    let trace = trace.context("another trace of this mount has begun meanwhile")?;
    let code = watched?;
    let is_json = args
        .output
        .extension()
        .is_some_and(|extension| extension == "json");
    let drawn = match is_json {
        true => serde_json::to_string(&trace)?,
        false => svg::draw(&trace, &args.mountpoint.display().to_string()),
    };
    fs::write(&args.output, drawn)
        .with_context(|| format!("{:?} cannot be written", args.output))?;
    let count = |what| {
        trace
            .events
            .iter()
            .filter(|event| event.what == what)
            .count()
    };
    eprintln!(
        "{:?}: {} files; {} reads of what was there, {} that had to wait; {} chunks fetched ahead{}",
        args.output,
        trace.files.len(),
        count(What::Read),
        count(What::Missed),
        count(What::Prefetched),
        if trace.cut_short { "; cut short" } else { "" }
    );
    Ok(code)
}

fn watch(args: &Args) -> anyhow::Result<ExitCode> {
    if let [program, words @ ..] = &args.command[..] {
        let mut command = Command::new(program);
        command.args(words);
        // What was seen until it was interrupted is drawn.
        let status = runtime::run(command).with_context(|| format!("{program:?} cannot be run"))?;
        return Ok(runtime::code(status));
    }
    runtime::block_on(async {
        let interrupted = tokio::signal::ctrl_c();
        match args.time {
            Some(time) => {
                let _ = tokio::time::timeout(time, interrupted).await;
            }
            None => interrupted.await?,
        }
        Ok(ExitCode::SUCCESS)
    })
}
