use anyhow::bail;

use super::{
    args::{CacheArgs, RemoteArgs},
    open, runtime,
};
use crate::cache::Quota;

/// Set the most that the cache may take
///
/// It holds for all who share the cache, from now on. What does not fit any more goes, least recently used first.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  castore resize 20GiB
  castore resize 10%")]
pub(super) struct Args {
    /// In B, KiB, MiB, GiB, TiB or % of the disk
    #[arg(value_name = "SIZE")]
    size: Quota,

    #[command(flatten)]
    remotes: RemoteArgs,

    #[command(flatten)]
    cache: CacheArgs,
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    runtime::log_to_stderr();
    runtime::block_on(async {
        let cache = CacheArgs {
            cache_size: Some(args.size),
            ..args.cache.clone()
        };
        // Whoever closes it makes room.
        open::resized_cache(&cache, &args.remotes)?.close();
        let cache = open::cache(&args.cache, &args.remotes)?;
        let (usage, _) = cache.usage()?;
        if let Quota::Bytes(wanted) = args.size
            && usage.quota_bytes != wanted
        {
            bail!(
                "the cache {:?} may still take {}: its index cannot be written now; see what the log says above",
                cache.dir(),
                indicatif::BinaryBytes(usage.quota_bytes)
            );
        }
        println!(
            "{:?} may take {} and takes {}",
            cache.dir(),
            indicatif::BinaryBytes(usage.quota_bytes),
            indicatif::BinaryBytes(usage.data_bytes + usage.other_bytes)
        );
        cache.close();
        Ok(())
    })
}
