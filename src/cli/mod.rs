//! The command line: one file for each subcommand, and what they share.
//!
//! - `config`: castore.toml
//! - `args`: the options, their defaults and their environment variables
//! - `paths`: where things are when nobody says
//! - `shown`: what a mount or a guest is shown
//! - `open`: remotes and caches from options, nodes from what a person typed
//! - `walk`: what a tree is made of
//! - `progress`: bars on a terminal
//! - `runtime`: the only place that blocks on a future
//! - `mountpoint`: what can be mounted on
//! - `daemon`: going to the background, and its log
//! - `signals`: what ends a mount, and what it ignores
//! - `control`: how commands talk to mounts
//! - `registry`: which process serves which mount
//! - `mounts`: mounts of the mount table, and whether they answer
//! - `detach`: taking mounts away, also those that hang
//! - `process`: processes that cannot be taken for others
//! - `raw_path`: paths that are not UTF-8, in JSON and for a shell
//! - `fstab`: being called as `mount.castore`

#![allow(
    clippy::doc_markdown,
    reason = "doc comments of arguments are help texts, which are no Markdown"
)]

mod args;
mod cat;
mod config;
mod control;
mod copy;
mod daemon;
mod detach;
mod fetch;
mod fstab;
mod import;
mod ls;
mod mount;
mod mountpoint;
mod mounts;
mod name;
mod open;
mod paths;
mod prefetch;
mod process;
mod profile;
mod progress;
mod raw_path;
mod registry;
mod resize;
mod roots;
mod runtime;
mod serve;
mod shown;
mod signals;
mod status;
mod switch;
mod trace;
mod unmount;
mod verify;
#[cfg(all(feature = "virtiofs", target_os = "linux"))]
mod virtiofs;
mod walk;

use std::{ffi::OsString, process::ExitCode};

use clap::{Parser, Subcommand};

use self::fstab::Called;

#[derive(Debug, Parser)]
#[command(
    name = "castore",
    version,
    about = "Mounts content-addressed trees read-only, with a local cache",
    long_about = "castore keeps trees of files by the digest of their content (BLAKE3), mounts them read-only over FUSE, \
                  and serves them from a local cache that fills itself from a store.",
    after_help = EXAMPLES,
    arg_required_else_help = true
)]
struct Cli {
    /// File with settings, beside those of the system and the user; see `castore config --help`
    #[arg(long, global = true, env = "CASTORE_CONFIG", value_name = "FILE")]
    config: Option<std::path::PathBuf>,

    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  castore import --name toolchain /opt/toolchain   put a tree into the store, under a name
  castore mount toolchain /mnt/toolchain           mount it, in the background
  castore status                                   what is mounted, how full the cache is
  castore unmount /mnt/toolchain

Every option can also be given as an environment variable: --cache-dir as CASTORE_CACHE_DIR, and so on.
CASTORE_LOG sets what is logged (error, warn, info, debug, trace).";

#[derive(Debug, Subcommand)]
enum Command {
    Import(import::Args),
    Mount(Box<mount::Args>),
    Unmount(unmount::Args),
    Ls(ls::Args),
    Cat(cat::Args),
    Fetch(fetch::Args),
    Verify(verify::Args),
    Copy(copy::Args),
    Config(config::Args),
    Name(name::Args),
    Roots(roots::Args),
    Serve(Box<serve::Args>),
    Status(status::Args),
    Profile(profile::Args),
    Resize(resize::Args),
    Trace(trace::Args),
    Switch(switch::Args),
    #[cfg(all(feature = "virtiofs", target_os = "linux"))]
    Virtiofs(Box<virtiofs::Args>),
}

/// Runs what the command line says.
#[must_use]
pub fn main() -> ExitCode {
    runtime::introduce();
    let args: Vec<OsString> = std::env::args_os().collect();
    let args = match fstab::called(&args) {
        None => args,
        Some(Ok(Called::Mount(args))) => args,
        Some(Ok(Called::Fake)) => return ExitCode::SUCCESS,
        Some(Ok(Called::Remount { mountpoint, noexec })) => {
            return ended(fstab::remount(&mountpoint, noexec));
        }
        Some(Err(error)) => return report(&error),
    };
    let understood = config::load(&args).and_then(|loaded| {
        let cli = config::parse(args, &loaded)?;
        Ok((loaded, cli))
    });
    let (loaded, cli) = match understood {
        Ok(understood) => understood,
        Err(error) => return report(&error.into()),
    };
    let result = match cli.command {
        Command::Import(args) => import::run(args),
        Command::Mount(args) => mount::run(*args),
        Command::Unmount(args) => unmount::run(&args),
        Command::Ls(args) => ls::run(&args),
        Command::Cat(args) => cat::run(&args),
        Command::Fetch(args) => fetch::run(&args),
        Command::Verify(args) => verify::run(&args),
        Command::Copy(args) => copy::run(&args),
        Command::Config(args) => config::run(&args, &loaded),
        Command::Name(args) => name::run(&args),
        Command::Resize(args) => resize::run(&args),
        Command::Roots(args) => roots::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Switch(args) => switch::run(&args),
        #[cfg(all(feature = "virtiofs", target_os = "linux"))]
        Command::Virtiofs(args) => virtiofs::run(&args),
        Command::Profile(args) => {
            return profile::run(&args).unwrap_or_else(|error| report(&error));
        }
        Command::Trace(args) => {
            return trace::run(&args).unwrap_or_else(|error| report(&error));
        }
    };
    ended(result)
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

fn report(error: &anyhow::Error) -> ExitCode {
    // A reader that has seen enough, such as `head`, is no failure.
    let broken_pipe = error
        .downcast_ref::<std::io::Error>()
        .is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe);
    if !broken_pipe {
        eprintln!("castore: {error:#}");
    }
    ExitCode::FAILURE
}
