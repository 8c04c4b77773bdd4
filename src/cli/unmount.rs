use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    process::{Pid, PidfdFlags},
};

use super::{control, mountpoint, paths};
use crate::fs::fuse::mountinfo;

/// The cache is synced within this time after the mount is gone.
const SYNC_WITHIN: Duration = Duration::from_secs(60);

/// Unmount a tree
///
/// Returns when the mount is gone and its cache is synced.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  castore unmount /mnt/toolchain")]
pub(super) struct Args {
    #[arg(value_name = "MOUNTPOINT")]
    mountpoint: PathBuf,

    /// Detach a mount that is in use: it goes away when nobody uses it any more
    #[arg(long, env = "CASTORE_LAZY")]
    lazy: bool,

    /// Cache directory of the mount; needed only for one with --xattr false that is not in the default place
    #[arg(long, env = "CASTORE_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let path = mountpoint::absolute(&args.mountpoint)?;
    match mountinfo::at(&path)? {
        None => bail!("nothing is mounted on {path:?}"),
        Some(mounted) if mounted.kind != mountinfo::TYPE => bail!(
            "what is mounted on {path:?} is of type {}, not a castore mount",
            mounted.kind
        ),
        Some(_) => {}
    }
    let daemon = daemon_of(args, &path)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    if args.lazy {
        mountpoint::detach(&path)?;
    } else if let Err(error) = mountpoint::take_away(&path) {
        let busy = error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.raw_os_error() == Some(libc::EBUSY));
        if busy {
            bail!(
                "{path:?} is in use: a program has a file open or its working directory there \
                 (`fuser -vm {}` shows which); end it, or detach the mount with --lazy",
                path.display()
            );
        }
        return Err(error).with_context(|| format!("{path:?} cannot be unmounted"));
    }
    let Some(daemon) = daemon else {
        return Ok(());
    };
    // A detached mount that is in use lives on with its users.
    let within = match args.lazy {
        true => Duration::from_secs(1),
        false => SYNC_WITHIN,
    };
    let deadline = Instant::now() + within;
    let mut ended = [PollFd::new(&daemon, PollFlags::IN)];
    let timeout = Timespec::try_from(deadline.saturating_duration_since(Instant::now()))?;
    let ready = rustix::event::poll(&mut ended, Some(&timeout))?;
    if ready == 0 && !args.lazy {
        bail!("{path:?} is unmounted, but its process has not finished writing the cache");
    }
    Ok(())
}

/// The process that serves a mount which has no attributes: it is asked where `status` asks.
fn daemon_of(args: &Args, path: &Path) -> Option<Pid> {
    let dir = args.cache_dir.clone().unwrap_or_else(paths::default_cache);
    let (mounts, _) = control::ask_all(&dir);
    let mount = mounts.into_iter().rfind(|mount| mount.mountpoint == path)?;
    Pid::from_raw(i32::try_from(mount.pid).ok()?)
}
