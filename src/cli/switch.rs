use std::{path::PathBuf, time::Duration};

use anyhow::{anyhow, bail};

use super::{
    control::{self, Request, Switched},
    mountpoint, paths, runtime,
};
use crate::{fs::CACHE_DIR, model::RootRef};

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
    let dir = told(&path)
        .or_else(|| args.cache_dir.clone())
        .unwrap_or_else(paths::default_cache);
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

/// The cache that the mount on a path says it uses.
fn told(path: &std::path::Path) -> Option<PathBuf> {
    let mut value = vec![0; 4096];
    let len = rustix::fs::getxattr(path, CACHE_DIR, &mut value).ok()?;
    value.truncate(len);
    Some(PathBuf::from(String::from_utf8(value).ok()?)).filter(|dir| dir.is_absolute())
}
