use std::{ffi::OsStr, os::unix::ffi::OsStrExt, sync::Arc};

use anyhow::{Context, bail};

use super::{
    args::{CacheArgs, RemoteArgs},
    paths,
};
use crate::{
    cache::{Cache, CacheError, Config},
    model::{Digest, Directory, Name, Node, RootRef, SizeRule},
    remote::{self, Chain, Patience, Policy, RemoteError},
};

/// The remotes that were given, in order.
pub(super) fn chain(args: &RemoteArgs) -> anyhow::Result<Chain> {
    let policy = args.policy();
    let groups = args
        .addresses()?
        .iter()
        .map(|address| remote::open(address, &policy))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(match args.offline {
        true => Chain::offline(groups),
        false => Chain::of_groups(groups, policy),
    })
}

pub(super) fn cache(cache: &CacheArgs, remotes: &RemoteArgs) -> anyhow::Result<Arc<Cache>> {
    Ok(Cache::open(&cache.config(false), chain(remotes)?)?)
}

/// The same, and from now on it has the size that was asked for.
pub(super) fn resized_cache(cache: &CacheArgs, remotes: &RemoteArgs) -> anyhow::Result<Arc<Cache>> {
    Ok(Cache::open(&cache.config(true), chain(remotes)?)?)
}

/// The same, for what is to keep all that it fetches.
pub(super) fn keeping_cache(cache: &CacheArgs, remotes: &RemoteArgs) -> anyhow::Result<Arc<Cache>> {
    let config = Config {
        keeps: true,
        ..cache.config(true)
    };
    Ok(Cache::open(&config, chain(remotes)?)?)
}

/// The node that a root stands for. A digest is a directory, and it must be there.
pub(super) async fn root(cache: &Arc<Cache>, root: &RootRef) -> anyhow::Result<Node> {
    match root {
        RootRef::Digest(digest) => {
            let directory = cache.directory(*digest, *digest).await.with_context(|| {
                format!("there is no directory {digest}; name the store that has it with --remote")
            })?;
            Ok(Node::Directory {
                digest: *digest,
                size: directory.size(SizeRule::Protocol),
            })
        }
        RootRef::StorePath(path) => match cache.store_path(path).await {
            Ok(node) => Ok(node),
            // It may be a name that looks like one.
            Err(CacheError::Remote(error)) => match cache.root(path.basename()).await {
                Ok(node) => Ok(node),
                Err(_) => Err(error).with_context(|| format!("the store path {path} is not known")),
            },
            Err(error) => Err(error.into()),
        },
        RootRef::Name(name) => match cache.root(name).await {
            Ok(node) => {
                if let Node::Directory { digest, .. } = node {
                    cache.directory(digest, digest).await.with_context(|| {
                        format!("the name {name:?} stands for {digest}, which is not there")
                    })?;
                }
                Ok(node)
            }
            Err(CacheError::Remote(error @ RemoteError::NotFound { .. })) => {
                Err(unknown_name(name, &error).await)
            }
            Err(error) => {
                Err(error).with_context(|| format!("the name {name:?} cannot be looked up"))
            }
        },
    }
}

/// Under sudo, the name is often in the store of the user who called it.
async fn unknown_name(name: &Name, error: &RemoteError) -> anyhow::Error {
    let unknown = anyhow::anyhow!(
        "the name {name:?} is not known at {}; `castore roots` lists the names",
        error.remote()
    );
    let Some(address) = paths::store_behind_sudo().and_then(|path| paths::address(&path).ok())
    else {
        return unknown;
    };
    let policy = Policy::default();
    let Ok(store) = remote::open(&address, &policy) else {
        return unknown;
    };
    let store = Chain::new(store, policy);
    match store.root(name, Patience::Once).await {
        Ok(_) => anyhow::anyhow!(
            "the name {name:?} is not known to root, but in your own store; pass --remote {address}"
        ),
        Err(_) => unknown,
    }
}

/// The root of a closure for a node that is a root itself.
pub(super) fn closure_of(node: &Node) -> Digest {
    match node {
        Node::Directory { digest, .. } => *digest,
        Node::File { .. } | Node::Symlink { .. } => Digest::empty(),
    }
}

/// A root and a path in it. A name in the path may be of any bytes, a root is UTF-8.
fn root_and_path(text: &OsStr) -> anyhow::Result<(RootRef, Vec<Name>)> {
    let bytes = text.as_bytes();
    let valid = match std::str::from_utf8(bytes) {
        Ok(text) => return Ok(RootRef::parse_with_path(text)?),
        Err(error) => &bytes[..error.valid_up_to()],
    };
    // The name with the first byte that is not UTF-8 begins behind the last `/` before it.
    let slash = valid.iter().rposition(|byte| *byte == b'/');
    let (root, rest) = bytes.split_at(slash.context("the root is not valid UTF-8")?);
    let (root, mut path) = RootRef::parse_with_path(std::str::from_utf8(root)?)?;
    for name in rest.split(|byte| *byte == b'/') {
        if !name.is_empty() {
            path.push(Name::new(name.to_vec()).context("in the path after the root")?);
        }
    }
    Ok((root, path))
}

/// The node at a path below a root, and the root of a closure that has it.
pub(super) async fn node(cache: &Arc<Cache>, text: &OsStr) -> anyhow::Result<(Node, Digest)> {
    let (root_ref, path) = root_and_path(text)?;
    let mut node = root(cache, &root_ref).await?;
    let closure = closure_of(&node);
    let mut walked = root_ref.to_string();
    for name in path {
        let Node::Directory { digest, .. } = node else {
            bail!("{walked} is not a directory");
        };
        let directory: Arc<Directory> = cache.directory(digest, closure).await?;
        let Some(found) = directory.get(name.as_bytes()) else {
            bail!("{walked} has no entry {name:?}");
        };
        node = found.to_node();
        walked = format!("{walked}/{name}");
    }
    Ok((node, closure))
}
