use std::{ffi::OsString, io::Write, os::unix::ffi::OsStrExt};

use super::{
    args::{CacheArgs, RemoteArgs},
    open, runtime,
};
use crate::model::{Entry, Node};

/// List a directory of a tree, without mounting it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore ls toolchain
  castore ls -l toolchain/bin")]
pub(super) struct Args {
    /// A digest or a name, and a path in it
    #[arg(value_name = "ROOT[/PATH]")]
    root: OsString,

    /// With type, size and digest
    #[arg(short, long, env = "CASTORE_LONG")]
    long: bool,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    runtime::block_on(async {
        let cache = open::cache(&args.cache, &args.remotes)?;
        let (node, closure) = open::node(&cache, &args.root).await?;
        let mut out = std::io::stdout().lock();
        if let Node::Directory { digest, .. } = node {
            let directory = cache.directory(digest, closure).await?;
            for entry in directory.entries() {
                line(&mut out, args.long, &entry.to_entry())?;
            }
        } else {
            let name = args.root.as_bytes().rsplit(|byte| *byte == b'/').next();
            let name = crate::model::Name::new(name.unwrap_or_default().to_vec())?;
            line(&mut out, args.long, &Entry { name, node })?;
        }
        out.flush()?;
        cache.close();
        Ok(())
    })
}

fn line(out: &mut impl Write, long: bool, entry: &Entry) -> anyhow::Result<()> {
    if long {
        match &entry.node {
            Node::Directory { digest, size } => write!(out, "d {size:>12} {digest} ")?,
            Node::File {
                digest,
                size,
                executable,
            } => {
                let kind = if *executable { 'x' } else { '-' };
                write!(out, "{kind} {size:>12} {digest} ")?;
            }
            Node::Symlink { target } => {
                write!(out, "l {:>12} {:47} ", target.as_bytes().len(), "")?;
            }
        }
    }
    out.write_all(entry.name.as_bytes())?;
    if let (true, Node::Symlink { target }) = (long, &entry.node) {
        out.write_all(b" -> ")?;
        out.write_all(target.as_bytes())?;
    }
    out.write_all(b"\n")?;
    Ok(())
}
