use std::{path::PathBuf, time::Duration};

use anyhow::anyhow;

use super::{
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

    /// Directory of the mount's cache, where the mount does not tell (--xattr false)
    #[arg(long, env = "CASTORE_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    RootRef::parse(&args.root)?;
    let path = mountpoint::absolute(&args.mountpoint)?;
    let (dir, pid) = control::find(&path, args.cache_dir.as_deref())?;
    let request = Request::Switch(args.root.clone());
    let switched: Switched = control::ask_one(&dir, pid, &request, ANSWER_WITHIN)?;
    println!("{}", switched.map_err(|reason| anyhow!(reason))?);
    Ok(())
}
