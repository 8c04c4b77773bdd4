use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow};

use super::{
    control::{self, Request, Switched},
    mountpoint, mounts, paths, runtime,
};
use crate::{
    fs::fuse::mountinfo::{self, Mounted},
    model::RootRef,
};

/// The mount may have to ask its remotes for the new tree.
const ANSWER_WITHIN: Duration = Duration::from_secs(300);

/// Have a mount show another tree
///
/// Whoever looks from now on sees the new tree. Files that are open stay what they were, and directories are the same ones with
/// what is in them now. The mount asks its own remotes.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  castore switch /mnt/toolchain toolchain-1.96")]
pub(super) struct Args {
    /// Where the tree is mounted
    mountpoint: PathBuf,

    /// A digest, a name or a Nix store path
    #[arg(value_name = "ROOT")]
    root: String,

    /// Directory of the mount's cache; needed only for one that this user's runtime directory does not name
    #[arg(long, env = "CASTORE_CACHE_DIR", value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    RootRef::parse(&args.root)?;
    let path = mountpoint::absolute(&args.mountpoint)?;
    let dir = args.cache_dir.clone().unwrap_or_else(paths::default_cache);
    let socket = mounts::find(&path, &dir)?;
    let request = Request::Switch(args.root.clone());
    let switched: Switched = control::ask(&socket, &request, ANSWER_WITHIN).with_context(|| {
        format!("the mount on {path:?} has not said that it shows another tree")
    })?;
    println!("{}", switched.map_err(|reason| anyhow!(reason))?);
    for overlay in overlays(&mountinfo::table()?, &path) {
        eprintln!(
            "castore: the overlay on {:?} has {path:?} below it and may show the old tree, or parts of both, until it is \
             mounted again",
            overlay.mountpoint
        );
    }
    Ok(())
}

/// The overlays that lie above a mount.
fn overlays<'a>(table: &'a [Mounted], path: &Path) -> Vec<&'a Mounted> {
    let lies_above = |mounted: &&Mounted| mounted.lower.iter().any(|dir| dir.starts_with(path));
    table.iter().filter(lies_above).collect()
}
