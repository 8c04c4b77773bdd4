use std::{ffi::OsString, io::Write};

use anyhow::bail;
use futures::{StreamExt, TryStreamExt};

use super::{
    args::{CacheArgs, RemoteArgs},
    open, runtime,
};
use crate::{
    cache::Slice,
    model::{Digest, Node},
};

/// Chunks that are fetched while the one before is written.
const AHEAD: usize = 4;

/// Write a file of a tree to standard output, without mounting it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  castore cat toolchain/share/doc/README")]
pub(super) struct Args {
    /// A digest or a name, and the path of a file in it
    #[arg(value_name = "ROOT/PATH")]
    root: OsString,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    runtime::block_on(async {
        let cache = open::cache(&args.cache, &args.remotes)?;
        let (digest, size) = match open::node(&cache, &args.root).await?.0 {
            Node::File { digest, size, .. } => (digest, size),
            Node::Directory { .. } => bail!("{} is a directory", args.root.display()),
            Node::Symlink { target } => {
                bail!("{} is a symlink to {target:?}", args.root.display());
            }
        };
        let blob = cache.blob(digest, size).await?;
        let slices = blob.manifest().slices(0, size);
        let mut chunks = futures::stream::iter(slices)
            .map(|slice| {
                let (cache, blob) = (&cache, &blob);
                async move {
                    let data = cache.chunk(blob, slice.index).await?;
                    anyhow::Ok(Slice {
                        data,
                        start: slice.start,
                        len: slice.len,
                    })
                }
            })
            .buffered(AHEAD);
        let mut out = std::io::stdout().lock();
        let mut buffer = Vec::new();
        let mut hasher = blake3::Hasher::new();
        while let Some(slice) = chunks.try_next().await? {
            buffer.clear();
            slice.append_to(&mut buffer)?;
            hasher.update(&buffer);
            out.write_all(&buffer)?;
        }
        out.flush()?;
        // Each chunk was verified; that they make up the file is known only now.
        let actual = Digest::from(hasher.finalize());
        if actual != digest {
            bail!("what was written is not {digest} but {actual}: the store is damaged");
        }
        cache.close();
        Ok(())
    })
}
