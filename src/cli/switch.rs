use std::{path::PathBuf, time::Duration};

use anyhow::{anyhow, bail};

use super::{
    args::CacheArgs,
    control::{self, Request, Switched},
    mountpoint, runtime,
};
use crate::model::RootRef;

/// The mount may have to ask its remotes for the new tree.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// Have a mount show another tree
///
/// Whoever looks from now on sees the new tree. Files and directories that are open stay what they were. The mount asks
/// its own remotes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  castore switch /mnt/toolchain toolchain-1.96")]
pub(super) struct Args {
    /// Where the tree is mounted
    mountpoint: PathBuf,

    /// A digest, a name or a Nix store path
    #[arg(value_name = "ROOT")]
    root: String,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    RootRef::parse(&args.root)?;
    let path = mountpoint::absolute(&args.mountpoint)?;
    let dir = args.cache.dir();
    let (mounts, _) = control::ask_all(&dir);
    let Some(mount) = mounts.iter().rfind(|mount| mount.mountpoint == path) else {
        bail!(
            "nothing is mounted on {path:?} with the cache {dir:?}; `castore status` lists its mounts, --cache-dir names \
             another cache"
        );
    };
    let request = Request::Switch(args.root.clone());
    let switched: Switched = control::ask_one(&dir, mount.pid, &request, ANSWER_WITHIN)?;
    println!("{}", switched.map_err(|reason| anyhow!(reason))?);
    Ok(())
}
