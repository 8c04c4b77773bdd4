use std::io::Write;

use anyhow::bail;

use super::{
    args::{CacheArgs, RemoteArgs},
    open, runtime,
};
use crate::{
    model::{Name, Node},
    remote,
};

/// List the names of trees, or remove some
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore roots
  castore roots --remove old-toolchain")]
pub(super) struct Args {
    /// Remove this name from the store; the tree stays. Can be given several times
    #[arg(
        long,
        value_name = "NAME",
        env = "CASTORE_REMOVE",
        value_delimiter = ','
    )]
    remove: Vec<String>,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    runtime::block_on(async {
        if args.remove.is_empty() {
            return list(args).await;
        }
        let addresses = args.remotes.addresses()?;
        for name in &args.remove {
            let name = Name::new(name.clone().into_bytes())?;
            let mut removed = false;
            for address in &addresses {
                removed |= remote::open_for_writing(address, &args.remotes.policy())?
                    .remove_root(&name)
                    .await?;
            }
            if !removed {
                let shown = args.remotes.shown()?.join(", ");
                bail!("the name {name:?} is not known at {shown}");
            }
        }
        Ok(())
    })
}

async fn list(args: &Args) -> anyhow::Result<()> {
    let cache = open::cache(&args.cache, &args.remotes)?;
    let mut out = std::io::stdout().lock();
    for (name, node) in cache.roots().await? {
        match node {
            Node::Directory { digest, .. } | Node::File { digest, .. } => {
                write!(out, "{digest} ")?;
            }
            Node::Symlink { target } => write!(out, "symlink to {target:?} ")?,
        }
        out.write_all(name.as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()?;
    cache.close();
    Ok(())
}
