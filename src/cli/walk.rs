use std::{collections::HashMap, collections::HashSet, sync::Arc};

use crate::{
    cache::{Cache, CacheError},
    model::{Digest, Node},
};

/// What a tree is made of.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Each distinct file content once, by digest and size, with the path of one file that has it.
    pub(super) files: HashMap<(Digest, u64), String>,
    /// Directories that could not be had, with a path and the reason.
    pub(super) missing: Vec<(Digest, String, CacheError)>,
}

impl Tree {
    /// Bytes of all files.
    pub(super) fn bytes(&self) -> u64 {
        let sizes = self.files.keys().map(|(_, size)| *size);
        sizes.fold(0, u64::saturating_add)
    }

    /// Adds what is at and below a node. `closure` is the root of a closure that has it, `path` what messages call it.
    pub(super) async fn add(
        &mut self,
        cache: &Arc<Cache>,
        node: &Node,
        closure: Digest,
        path: &str,
    ) {
        let mut seen = HashSet::new();
        let mut left = vec![(node.clone(), path.to_owned())];
        while let Some((node, path)) = left.pop() {
            match node {
                Node::Symlink { .. } => {}
                Node::File { digest, size, .. } => {
                    self.files.entry((digest, size)).or_insert(path);
                }
                Node::Directory { digest, .. } if !seen.insert(digest) => {}
                Node::Directory { digest, .. } => match cache.directory(digest, closure).await {
                    Ok(directory) => {
                        left.extend(directory.entries().map(|entry| {
                            let name = String::from_utf8_lossy(entry.name);
                            (entry.node.to_node(), format!("{path}/{name}"))
                        }));
                    }
                    Err(error) => self.missing.push((digest, path, error)),
                },
            }
        }
    }
}
