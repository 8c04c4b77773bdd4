use std::sync::Arc;

use anyhow::{Context, bail};
use indicatif::BinaryBytes;

use super::{
    args::{RemoteArgs, WaitArgs},
    open, paths,
    progress::{self, read},
    runtime,
};
use crate::{
    copy::{self, Progress},
    model::{Directory, Name, Node, RootRef, SizeRule},
    remote::{self, Chain, Patience, Publish},
};

/// Copy a tree from one store to another
///
/// Only what is missing moves. A copy that was interrupted goes on where it stopped. A root that is given by name has that
/// name at the other store too.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore copy toolchain --to objectstore+s3://bucket/castore
  castore copy toolchain --from grpc+https://hub:8000
  castore copy --all --from objectstore+s3://bucket --to objectstore+gs://mirror")]
pub(super) struct Args {
    /// A digest, a name or a Nix store path
    #[arg(value_name = "ROOT", conflicts_with = "all")]
    root: Option<String>,

    /// All trees that have names
    #[arg(long, env = "CASTORE_ALL")]
    all: bool,

    /// Store to copy from; can be given several times, in order of preference [default: the user's own store]
    #[arg(long, env = "CASTORE_FROM", value_name = "URL[,URL…]")]
    from: Vec<String>,

    /// Store to copy to [default: the user's own store]
    #[arg(long, env = "CASTORE_TO", value_name = "URL")]
    to: Option<String>,

    #[command(flatten)]
    wait: WaitArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    if args.root.is_none() && !args.all {
        bail!("name the tree to copy, ROOT, or pass --all");
    }
    if args.from.is_empty() && args.to.is_none() {
        bail!("name the store to copy from with --from, or the one to copy to with --to, or both");
    }
    let root = args.root.as_deref().map(RootRef::parse).transpose()?;
    runtime::block_on(copy(args, root))
}

async fn copy(args: &Args, root: Option<RootRef>) -> anyhow::Result<()> {
    let remotes = RemoteArgs {
        remote: args.from.clone(),
        wait: args.wait.clone(),
        offline: false,
    };
    let from = open::chain(&remotes)?;
    let to = match &args.to {
        Some(address) => address.clone(),
        None => paths::address(&paths::default_store())?,
    };
    let to = remote::open_for_writing(&to, &args.wait.policy())?;
    let roots = match &root {
        None => {
            let roots = from.roots().await?.0;
            if roots.is_empty() {
                bail!(
                    "{} tells no names, so there is nothing to copy; a plain web server cannot list them: name the trees",
                    from.address()
                );
            }
            let roots = roots.into_iter();
            roots.map(|(name, node)| (Some(name), node)).collect()
        }
        Some(root) => vec![resolve(&from, root).await?],
    };
    let progress = Arc::new(Progress::default());
    let shown = Arc::clone(&progress);
    let bar = progress::bar(move |bar| {
        bar.set_length(read(&shown.bytes_total));
        bar.set_position(read(&shown.bytes));
        bar.set_message(format!("{} moved,", BinaryBytes(read(&shown.moved))));
    });
    for (name, node) in &roots {
        copy_one(&from, &to, name.as_ref(), node, &progress).await?;
    }
    bar.abandon();
    println!(
        "{} of {} trees moved to {}, {} were there",
        BinaryBytes(read(&progress.moved)),
        roots.len(),
        to.address(),
        BinaryBytes(read(&progress.bytes).saturating_sub(read(&progress.moved))),
    );
    Ok(())
}

async fn copy_one(
    from: &Chain,
    to: &Arc<dyn Publish>,
    name: Option<&Name>,
    node: &Node,
    progress: &Progress,
) -> anyhow::Result<()> {
    copy::copy(from, to, node, progress).await?;
    if let Some(name) = name
        && to.root(name).await.ok().as_ref() != Some(node)
    {
        to.put_root(name, node).await?;
        to.sync().await?;
    }
    Ok(())
}

/// The node of a root, and its name where the other store is to have that too.
async fn resolve(from: &Chain, root: &RootRef) -> anyhow::Result<(Option<Name>, Node)> {
    match root {
        RootRef::Name(name) => {
            let node = from.root(name, Patience::Policy).await?;
            Ok((Some(name.clone()), node))
        }
        RootRef::StorePath(path) => {
            let name = path.basename();
            let info = from.path_info(path.hash(), Some(path.clone()), Patience::Policy);
            if let Ok(info) = info.await {
                return Ok((Some(name.clone()), info.node));
            }
            // It may be a name that looks like one.
            let node = from.root(name, Patience::Policy).await;
            let node = node.with_context(|| format!("the store path {path} is not known"))?;
            Ok((Some(name.clone()), node))
        }
        RootRef::Digest(digest) => {
            use futures::TryStreamExt;
            // Its size is only told by what it holds.
            let first = from.closure(*digest, 0).await?.try_next().await?;
            let directory = Directory::decode(first.unwrap_or_default())?;
            let size = directory.size(SizeRule::Protocol);
            let digest = *digest;
            Ok((None, Node::Directory { digest, size }))
        }
    }
}
