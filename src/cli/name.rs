use anyhow::{Context, bail};

use super::{
    args::{CacheArgs, RemoteArgs, StoreArgs},
    open, runtime,
};
use crate::{
    model::{Name, Node, RootRef},
    remote,
};

/// Let a name stand for a tree
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore name toolchain b3:rxNJufX5oaagQE3qNtzJSZvLJcmtwRK3zJqTyuQfMmI=
  castore name stable toolchain-1.95")]
pub(super) struct Args {
    /// The name
    name: String,

    /// A digest, or another name
    #[arg(value_name = "ROOT")]
    root: String,

    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    let name = new_name(&args.name)?;
    let root = RootRef::parse(&args.root)?;
    runtime::block_on(async {
        let address = args.store.address()?;
        let publish = remote::open_for_writing(&address, &args.store.wait.policy())?;
        let remotes = RemoteArgs::of(address, args.store.wait.clone());
        let cache = open::cache(&args.cache, &remotes)?;
        let node = open::root(&cache, &root).await?;
        if let Node::Directory { digest, .. } = node
            && digest != crate::model::Digest::empty()
            && !publish.has_closure(digest).await?
        {
            bail!(
                "{} does not have {digest} as the root of a tree; import it there first",
                publish.address()
            );
        }
        publish.put_root(&name, &node).await?;
        publish.sync().await?;
        cache.close();
        Ok(())
    })
}

/// A name that can be told from a digest.
pub(super) fn new_name(text: &str) -> anyhow::Result<Name> {
    match RootRef::parse(text) {
        Ok(RootRef::Digest(_)) => bail!("the name {text:?} would be taken for a digest"),
        Err(error) => Err(error).with_context(|| format!("{text:?} cannot be a name")),
        Ok(RootRef::Name(_) | RootRef::StorePath(_)) => {
            Ok(Name::new(text.to_owned().into_bytes())?)
        }
    }
}
