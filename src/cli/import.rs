use std::{io::Read, path::PathBuf, sync::Arc};

use anyhow::{Context, bail};
use indicatif::ProgressBar;

use super::{
    args::{CacheArgs, RemoteArgs, StoreArgs},
    open,
    progress::{self, read},
    runtime,
};
use crate::{
    import::{self, Imported, Options, Progress},
    model::{Name, Node, SizeRule},
    remote,
};

/// Put a tree into a store
///
/// Prints the digest of the tree, by which it can be mounted. What the store has already is not written again.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore import --name toolchain /opt/toolchain
  castore import --tar release.tar.zst
  podman export my-container | castore import --name my-container --tar -")]
pub(super) struct Args {
    /// Directory, file or symlink to import; with --tar, a tar file or - for standard input
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// The path is a tar stream, plain or compressed by gzip or zstd
    #[arg(long, env = "CASTORE_TAR")]
    tar: bool,

    /// Name under which the tree can be mounted; needed when it is a single file or symlink
    #[arg(long, env = "CASTORE_NAME")]
    name: Option<String>,

    /// Print the digest in hexadecimal
    #[arg(long, env = "CASTORE_HEX")]
    hex: bool,

    /// Leave out sockets, devices and fifos
    #[arg(long, env = "CASTORE_SKIP_SPECIAL")]
    skip_special: bool,

    /// Count directory sizes as another program does, so that digests are the same as its
    #[arg(long, env = "CASTORE_COMPAT", value_name = "PROGRAM", value_parser = ["snix"])]
    compat: Option<String>,

    #[command(flatten)]
    store: StoreArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    let name = args
        .name
        .as_ref()
        .map(|name| Name::new(name.clone().into_bytes()))
        .transpose()?;
    if !args.tar && name.is_none() {
        // Told before hours of work, not after.
        let metadata = std::fs::symlink_metadata(&args.path)
            .with_context(|| format!("cannot read {:?}", args.path))?;
        if !metadata.is_dir() {
            bail!(
                "{:?} is not a directory, and a digest alone always means one; give it a name with --name",
                args.path
            );
        }
    }
    runtime::block_on(import(args, name))
}

async fn import(args: Args, name: Option<Name>) -> anyhow::Result<()> {
    let address = args.store.address()?;
    let publish = remote::open_for_writing(&address, &args.store.wait.policy())?;
    let options = Options {
        skip_special: args.skip_special,
        size_rule: match args.compat.as_deref() {
            Some(_) => SizeRule::Snix,
            None => SizeRule::Protocol,
        },
    };
    let progress = Arc::new(Progress::default());
    let bar = show(&progress);
    let imported = if args.tar {
        let source: Box<dyn Read + Send> = if args.path.as_os_str() == "-" {
            Box::new(std::io::stdin())
        } else {
            let file = std::fs::File::open(&args.path);
            Box::new(file.with_context(|| format!("cannot read {:?}", args.path))?)
        };
        import::import_tar(Arc::clone(&publish), source, options, progress).await
    } else {
        import::import_path(Arc::clone(&publish), &args.path, options, progress).await
    };
    bar.abandon();
    let Imported {
        root,
        unkept,
        skipped,
    } = imported?;
    if let Some(name) = &name
        && publish.root(name).await.ok().as_ref() != Some(&root)
    {
        publish.put_root(name, &root).await?;
        publish.sync().await?;
    }
    if let Some(dir) = &args.cache.cache_dir {
        warm(&args, &address, &root, name.as_ref())
            .await
            .with_context(|| format!("the tree is in the store, but not in the cache {dir:?}"))?;
    }
    let unkept = unkept.to_string();
    if !unkept.is_empty() {
        eprintln!("castore: {unkept}");
    }
    if args.skip_special {
        eprintln!("castore: left out {skipped} sockets, devices and fifos");
    }
    let digest = match &root {
        Node::Directory { digest, .. } | Node::File { digest, .. } => digest,
        Node::Symlink { .. } => return Ok(()), // Only its name names it.
    };
    match args.hex {
        true => println!("{}", digest.to_hex()),
        false => println!("{digest}"),
    }
    Ok(())
}

/// Brings the tree's directories and its name into the cache that was given, so that a mount finds them there.
async fn warm(args: &Args, address: &str, root: &Node, name: Option<&Name>) -> anyhow::Result<()> {
    let remotes = RemoteArgs::of(address.to_owned(), args.store.wait.clone());
    let cache = open::cache(&args.cache, &remotes)?;
    if let Node::Directory { digest, .. } = root {
        let mut left = vec![*digest];
        while let Some(below) = left.pop() {
            let directory = cache.directory(below, *digest).await?;
            left.extend(directory.directories().map(|(digest, _)| digest));
        }
    }
    if let Some(name) = name {
        cache.root(name).await?;
    }
    cache.sync().await?;
    cache.close();
    Ok(())
}

fn show(progress: &Arc<Progress>) -> ProgressBar {
    let progress = Arc::clone(progress);
    progress::bar(move |bar| {
        bar.set_length(read(&progress.bytes_total));
        bar.set_position(read(&progress.bytes));
        bar.set_message(format!(
            "{} of {} files, {} of {} chunks new,",
            read(&progress.files),
            read(&progress.files_total),
            read(&progress.chunks_written),
            read(&progress.chunks),
        ));
    })
}
