use std::sync::Arc;

use crate::{
    cache::Cache,
    model::{Digest, Name, Node, NodeRef, StorePath},
};

/// What a mount shows.
#[derive(Debug, Clone)]
pub enum Tree {
    Directory(Digest),
    /// A single file, with its size in bytes.
    File(Digest, u64),
    Names,
    StorePaths,
}

impl Tree {
    /// As profiles name it.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Directory(digest) | Self::File(digest, _) => digest.to_string(),
            Self::Names => "all".to_owned(),
            Self::StorePaths => "nix".to_owned(),
        }
    }
}

/// The directory that was looked at last: the next path is often in it, too.
#[derive(Default)]
pub(super) struct Walked {
    path: Vec<u8>,
    /// Digest and closure.
    directory: Option<(Digest, Digest)>,
}

impl Walked {
    /// The file at a path: its digest and size.
    pub(super) async fn find(
        &mut self,
        cache: &Arc<Cache>,
        tree: &Tree,
        path: &[u8],
    ) -> Option<(Digest, u64)> {
        let (above, name) = split(path);
        if above.is_empty() && !matches!(tree, Tree::Directory(_)) {
            return match node_at(cache, tree, path).await? {
                (Node::File { digest, size, .. }, _) if size > 0 => Some((digest, size)),
                _ => None,
            };
        }
        let (directory, closure) = match self.directory {
            Some(known) if self.path == above => known,
            _ => {
                let found = directory_at(cache, tree, above).await?;
                above.clone_into(&mut self.path);
                *self.directory.insert(found)
            }
        };
        let directory = cache.directory(directory, closure).await.ok()?;
        match directory.get(name)? {
            NodeRef::File { digest, size, .. } if size > 0 => Some((digest, size)),
            NodeRef::File { .. } | NodeRef::Directory { .. } | NodeRef::Symlink { .. } => None,
        }
    }
}

/// The node at a path, and the root of a closure that has it. No path is the tree's root, or none where that is made of names.
pub async fn node_at(cache: &Arc<Cache>, tree: &Tree, path: &[u8]) -> Option<(Node, Digest)> {
    let (above, name) = split(path);
    if let Tree::File(digest, size) = *tree {
        let node = Node::File {
            digest,
            size,
            executable: false,
        };
        return above.is_empty().then_some((node, Digest::empty()));
    }
    if path.is_empty() {
        let (digest, closure) = directory_at(cache, tree, path).await?;
        return Some((Node::Directory { digest, size: 0 }, closure));
    }
    if above.is_empty() && !matches!(tree, Tree::Directory(_)) {
        let node = named(cache, tree, Name::new(name.to_vec()).ok()?).await?;
        let closure = match node {
            Node::Directory { digest, .. } => digest,
            Node::File { .. } | Node::Symlink { .. } => Digest::empty(),
        };
        return Some((node, closure));
    }
    let (digest, closure) = directory_at(cache, tree, above).await?;
    let found = cache.directory(digest, closure).await.ok()?;
    Some((found.get(name)?.to_node(), closure))
}

/// What a name stands for where the root is made of names.
async fn named(cache: &Arc<Cache>, tree: &Tree, name: Name) -> Option<Node> {
    match tree {
        Tree::StorePaths => {
            let path = StorePath::from_basename(name).ok()?;
            cache.store_path(&path).await.ok()
        }
        Tree::Names => cache.root(&name).await.ok(),
        Tree::Directory(_) | Tree::File(..) => None,
    }
}

async fn directory_at(cache: &Arc<Cache>, tree: &Tree, path: &[u8]) -> Option<(Digest, Digest)> {
    let mut names = path
        .split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty());
    let mut at = match tree {
        Tree::Directory(digest) => *digest,
        Tree::File(..) => return None,
        Tree::Names | Tree::StorePaths => {
            let name = Name::new(names.next()?.to_vec()).ok()?;
            let Node::Directory { digest, .. } = named(cache, tree, name).await? else {
                return None;
            };
            digest
        }
    };
    let closure = at;
    for name in names {
        let directory = cache.directory(at, closure).await.ok()?;
        let Some(NodeRef::Directory { digest, .. }) = directory.get(name) else {
            return None;
        };
        at = digest;
    }
    Some((at, closure))
}

/// A path of a directory, and a name in it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&path[..0], path),
    }
}
