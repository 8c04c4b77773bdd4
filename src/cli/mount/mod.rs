//! `castore mount`: what was asked for, and going to the background.
//!
//! - `serve`: the mount, from mounting to unmounting
//! - `served`: what a mount answers to `castore status`, `switch` and `trace`

mod serve;
mod served;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use clap::ValueEnum;

use self::serve::serve;
use super::{
    args::{CacheArgs, RemoteArgs},
    daemon::{self, Log},
    mountpoint, open, runtime,
    shown::{ShownArgs, What},
};
use crate::{cache, remote::parse_duration};

/// Mount a tree
///
/// Goes to the background once the mount answers; its log is castore.log in the cache directory.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "castore mount [OPTIONS] ROOT MOUNTPOINT\n       castore mount [OPTIONS] --all MOUNTPOINT\n       castore mount [OPTIONS] --nix MOUNTPOINT",
    after_help = "\
Examples:
  castore mount toolchain /mnt/toolchain
  castore mount b3:rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI= /mnt/tree
  castore mount --all --list-root false /mnt/all
  castore mount --nix --remote grpc+http://localhost:8000 /nix/store
  castore mount --cache-dir /ssd/castore --cache-size 20GiB toolchain /mnt/toolchain

In /etc/fstab (with a link /sbin/mount.castore to castore):
  toolchain  /mnt/toolchain  castore  nofail,cache-size=20GiB  0  0"
)]
pub(super) struct Args {
    /// A digest, a name or a Nix store path, and the directory to mount on; with --all or --nix, the directory alone
    #[arg(value_name = "ROOT MOUNTPOINT", num_args = 1..=2)]
    positions: Vec<std::ffi::OsString>,

    /// Take root, mount point and options from this preset of castore.toml
    #[arg(long, env = "CASTORE_PRESET", value_name = "NAME")]
    preset: Option<String>,

    /// How long the kernel keeps an entry of a root that changes (--all, --nix), or that there is none
    #[arg(long, env = "CASTORE_NAMES_TTL", value_name = "TIME", default_value = "1s", value_parser = parse_duration)]
    names_ttl: Duration,

    /// Let other users in; always on for root. Others need user_allow_other in /etc/fuse.conf
    #[arg(long, env = "CASTORE_ALLOW_OTHER")]
    allow_other: bool,

    /// Programs on the mount cannot be executed
    #[arg(long, env = "CASTORE_NOEXEC")]
    noexec: bool,

    /// Threads that answer the kernel [default: twice the processors, 4 to 16]
    #[arg(long, env = "CASTORE_THREADS", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,

    /// How files are opened: small is best for many small files, large answers each open
    #[arg(
        long,
        env = "CASTORE_IO_MODE",
        value_name = "MODE",
        default_value = "small"
    )]
    io_mode: IoMode,

    /// Serve /metrics (for Prometheus) and /healthz over HTTP at this address
    #[arg(long, env = "CASTORE_METRICS", value_name = "ADDR")]
    metrics: Option<SocketAddr>,

    /// Stay in the foreground, log to stderr and tell systemd when the mount answers
    ///
    /// INT, TERM and QUIT unmount, and so does HUP when the terminal closes. In the background, HUP has the log file opened
    /// anew.
    #[arg(long, env = "CASTORE_FOREGROUND")]
    foreground: bool,

    #[command(flatten)]
    shown: ShownArgs,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum IoMode {
    Small,
    Large,
}

/// What to mount and where.
struct Request {
    what: What,
    mountpoint: PathBuf,
}

pub(super) fn run(mut args: Args) -> anyhow::Result<()> {
    if args.foreground {
        runtime::log_to_stderr();
        return mount(&args, None);
    }
    if !daemon::is_background() {
        // A word that is not understood is told without starting anything.
        request(&args)?;
        return daemon::start();
    }
    daemon::end_with_parent();
    let result = background(&mut args);
    if let Err(error) = &result {
        tracing::error!("{error:#}");
        daemon::tell_failure(error);
        // The parent prints it.
        std::process::exit(1);
    }
    result
}

fn background(args: &mut Args) -> anyhow::Result<()> {
    // Relative paths are of the directory that this process leaves.
    let dir = cache::prepare(&std::path::absolute(args.cache.dir())?)?;
    args.cache.cache_dir = Some(dir.clone());
    args.shown.prefetch.make_absolute()?;
    if let Some(last) = args.positions.last_mut() {
        *last = mountpoint::absolute(last.as_ref())?.into();
    }
    std::env::set_current_dir("/")?;
    let log = Log::open(&dir)?;
    runtime::log_to(Arc::clone(&log));
    mount(args, Some(&log))
}

fn request(args: &Args) -> anyhow::Result<Request> {
    let usage = "castore mount ROOT MOUNTPOINT";
    let (what, mountpoint) = args.shown.what(&args.positions, "a mount point", usage)?;
    Ok(Request {
        what,
        mountpoint: mountpoint.into(),
    })
}

/// `log` is where a background process logs to.
fn mount(args: &Args, log: Option<&Arc<Log>>) -> anyhow::Result<()> {
    let Request { what, mountpoint } = request(args)?;
    // Made first: whether the mount point is inside it can only be said of a directory that is there.
    cache::prepare(&args.cache.dir())?;
    let mountpoint = mountpoint::prepare(&mountpoint, &args.cache.dir())?;
    runtime::block_on(async {
        let cache = open::resized_cache(&args.cache, &args.remotes)?;
        let served = serve(args, &what, mountpoint, &cache, log).await;
        let closing = Arc::clone(&cache);
        tokio::task::spawn_blocking(move || closing.close()).await?;
        served
    })
}
