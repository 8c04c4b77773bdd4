use std::{io::Write, sync::Arc};

use anyhow::bail;
use futures::{StreamExt, TryStreamExt};
use indicatif::BinaryBytes;

use super::{
    args::{CacheArgs, RemoteArgs},
    open, runtime,
    walk::Tree,
};
use crate::cache::{Cache, Check};

/// Files that are looked at at once.
const FILES: usize = 16;

/// Say whether a tree, or a part of it, is complete in the local cache
///
/// Asks no remote. All bytes on disk are read and compared with their digests. What is missing or damaged is listed, and what is
/// damaged is forgotten; the exit status is 1 then.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  castore verify toolchain\n  castore verify toolchain/lib")]
pub(super) struct Args {
    /// A digest, a name or a Nix store path, and perhaps a path in it
    #[arg(value_name = "ROOT[/PATH]")]
    root: String,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    let remotes = RemoteArgs {
        offline: true,
        ..args.remotes.clone()
    };
    runtime::block_on(async {
        let cache = open::cache(&args.cache, &remotes)?;
        let verified = verify(&args.root, &cache).await;
        tokio::task::spawn_blocking(move || cache.close()).await?;
        verified
    })
}

async fn verify(root: &str, cache: &Arc<Cache>) -> anyhow::Result<()> {
    let (node, closure) = open::node(cache, root.as_ref()).await?;
    let mut tree = Tree::default();
    tree.add(cache, &node, closure, root).await;
    let mut missing: Vec<_> = futures::stream::iter(&tree.files)
        .map(|((digest, size), path)| async move {
            let bytes = cache.missing_bytes(*digest, *size, Check::Always).await?;
            anyhow::Ok((bytes > 0).then_some((path, *digest, bytes)))
        })
        .buffer_unordered(FILES)
        .try_filter_map(|missing| std::future::ready(Ok(missing)))
        .try_collect()
        .await?;
    missing.sort();
    let mut out = std::io::stdout().lock();
    for (digest, path, _) in &tree.missing {
        writeln!(out, "missing directory {digest} {path}")?;
    }
    for (path, digest, bytes) in &missing {
        writeln!(out, "missing {bytes} bytes of {digest} {path}")?;
    }
    if tree.missing.is_empty() && missing.is_empty() {
        writeln!(
            out,
            "{root} is complete: {} files with {}",
            tree.files.len(),
            BinaryBytes(tree.bytes())
        )?;
        return Ok(());
    }
    let bytes = missing.iter().map(|(.., bytes)| bytes).sum();
    let below = match tree.missing.len() {
        0 => String::new(),
        directories => format!(", {directories} directories with all below them"),
    };
    bail!(
        "{root} is not complete in {:?}: {} of {} files are missing{below}; `castore fetch {root}` brings them",
        cache.dir(),
        BinaryBytes(bytes),
        missing.len(),
    )
}
