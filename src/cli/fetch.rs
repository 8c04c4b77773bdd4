use std::{
    collections::HashSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream::FuturesUnordered};
use indicatif::BinaryBytes;
use tokio::sync::Semaphore;

use super::{
    args::{CacheArgs, RemoteArgs},
    open,
    progress::{self, read},
    runtime,
    walk::Tree,
};
use crate::{
    cache::{Cache, Check, Counter},
    model::{Node, RootRef, StorePath},
};

/// Files that are looked at at once …
const FILES: usize = 256;
/// … and chunks that are on their way.
const CHUNKS: usize = 128;
/// What was evicted while the rest came is fetched again so often.
const ROUNDS: usize = 3;
/// A file of its own has a partly filled block, and its manifest a row.
const OVERHEAD: u64 = 4096;

/// Bring a whole tree, or a part of it, into the local cache
///
/// When it returns, all of it can be read offline. What cannot fit into the cache is refused before anything is fetched.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore fetch toolchain
  castore fetch toolchain/lib
  castore fetch --closure /nix/store/00bgd045z0d4icpbc2yyz4gx48ak44la-hello-2.12")]
pub(super) struct Args {
    /// A digest, a name or a Nix store path, and perhaps a path in it
    #[arg(value_name = "ROOT[/PATH]")]
    root: String,

    /// Also all store paths that this one needs, and those that they need
    #[arg(long, env = "CASTORE_CLOSURE")]
    closure: bool,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    runtime::block_on(async {
        let cache = open::keeping_cache(&args.cache, &args.remotes)?;
        let fetched = fetch(args, &cache).await;
        cache.sync().await?;
        tokio::task::spawn_blocking(move || cache.close()).await?;
        fetched
    })
}

async fn fetch(args: &Args, cache: &Arc<Cache>) -> anyhow::Result<()> {
    let mut tree = Tree::default();
    if args.closure {
        for (path, node) in store_closure(cache, &args.root).await? {
            let closure = open::closure_of(&node);
            tree.add(cache, &node, closure, &path.to_string()).await;
        }
    } else {
        let (node, closure) = open::node(cache, args.root.as_ref()).await?;
        tree.add(cache, &node, closure, &args.root).await;
    }
    // Of a part, the directories above it too: without them it is not found without a remote.
    cache.closures_end().await;
    if let Some((_, path, error)) = tree.missing.pop() {
        return Err(error).with_context(|| format!("the directory {path} cannot be fetched"));
    }
    let need = tree.bytes() + OVERHEAD * tree.files.len() as u64 / 16;
    let capacity = cache.capacity()?;
    if need > capacity {
        bail!(
            "{} has {} and the cache {:?} can hold {}; nothing was fetched. Raise --cache-size, free space on its disk, \
             or fetch a part: ROOT/PATH",
            args.root,
            BinaryBytes(need),
            cache.dir(),
            BinaryBytes(capacity)
        );
    }
    let mut missing = missing(cache, &tree).await?;
    let wanted: u64 = missing.iter().map(|(_, bytes)| bytes).sum();
    let done = Arc::new(AtomicU64::new(0));
    let shown = Arc::clone(&done);
    let bar = progress::bar(move |bar| {
        bar.set_length(wanted);
        bar.set_position(read(&shown).min(wanted));
    });
    for _ in 0..ROUNDS {
        if missing.is_empty() {
            break;
        }
        let at_once = Semaphore::new(CHUNKS);
        futures::stream::iter(missing.iter().map(Ok::<_, anyhow::Error>))
            .try_for_each_concurrent(FILES, |(node, _)| {
                let (at_once, done) = (&at_once, &done);
                async move {
                    let count = |bytes| {
                        done.fetch_add(bytes, Ordering::Relaxed);
                    };
                    cache.bring(node, at_once, count).await?;
                    Ok(())
                }
            })
            .await?;
        cache.sync().await?;
        missing = self::missing(cache, &tree).await?;
    }
    bar.abandon();
    if !missing.is_empty() {
        let bytes = missing.iter().map(|(_, bytes)| bytes).sum();
        bail!(
            "{} of {} were not kept: the cache has too little room, or others use it at the same time; raise --cache-size",
            BinaryBytes(bytes),
            args.root
        );
    }
    // Other processes may have brought some of it.
    let fetched = cache.stats().get(Counter::FetchedBytes).min(wanted);
    println!(
        "{} is in the cache: {} files with {}, of which {} were fetched",
        args.root,
        tree.files.len(),
        BinaryBytes(tree.bytes()),
        BinaryBytes(fetched)
    );
    Ok(())
}

/// The files of which something is missing, and how many bytes.
async fn missing(cache: &Arc<Cache>, tree: &Tree) -> anyhow::Result<Vec<(Node, u64)>> {
    futures::stream::iter(tree.files.keys().copied())
        .map(|(digest, size)| async move {
            let bytes = cache.missing_bytes(digest, size, Check::Stamp).await?;
            let node = Node::File {
                digest,
                size,
                executable: false,
            };
            anyhow::Ok((bytes > 0).then_some((node, bytes)))
        })
        .buffer_unordered(FILES)
        .try_filter_map(|missing| std::future::ready(Ok(missing)))
        .try_collect()
        .await
}

/// A store path and all that it refers to, directly or not.
async fn store_closure(cache: &Arc<Cache>, root: &str) -> anyhow::Result<Vec<(StorePath, Node)>> {
    let RootRef::StorePath(path) = RootRef::parse(root)? else {
        bail!("--closure takes a Nix store path, and {root:?} is none");
    };
    // Its whole name counts.
    cache.store_path(&path).await?;
    let mut seen = HashSet::from([path.hash()]);
    let mut left = FuturesUnordered::new();
    let ask = |hash| async move { (hash, cache.path_info(hash).await) };
    left.push(ask(path.hash()));
    let mut paths = Vec::new();
    while let Some((hash, info)) = left.next().await {
        let info = info.with_context(|| {
            format!("{root} needs the store path {hash}-…, which the remotes do not know")
        })?;
        let new = info.references.iter().filter(|hash| seen.insert(**hash));
        left.extend(new.map(|hash| ask(*hash)));
        paths.push((info.path, info.node));
    }
    Ok(paths)
}
