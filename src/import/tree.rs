use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

use crate::model::{Digest, Directory, DirectoryError, Entry, Name, Node, SizeRule};

/// A tree on its way in. `F` is a file that is still to be cut, or its node.
#[derive(Debug, Clone)]
pub(super) enum Item<F> {
    Directory(BTreeMap<Name, Item<F>>),
    File(F),
    Symlink(Node),
}

/// A finished tree.
pub(super) struct Tree {
    pub(super) root: Node,
    /// All distinct directories, encoded, the root first and none before one that refers to it.
    pub(super) closure: Vec<Bytes>,
}

/// Turns items into directories, bottom-up.
pub(super) fn build<F>(
    root: Item<F>,
    rule: SizeRule,
    file: &impl Fn(F) -> Node,
) -> Result<Tree, DirectoryError> {
    let mut builder = Builder {
        rule,
        file,
        seen: HashSet::new(),
        post_order: Vec::new(),
    };
    let root = builder.node(root)?;
    let mut closure = builder.post_order;
    // Each directory was added after all below it; reversed, it stands before them.
    closure.reverse();
    Ok(Tree { root, closure })
}

struct Builder<'a, N> {
    rule: SizeRule,
    file: &'a N,
    seen: HashSet<Digest>,
    post_order: Vec<Bytes>,
}

impl<N> Builder<'_, N> {
    fn node<F>(&mut self, item: Item<F>) -> Result<Node, DirectoryError>
    where
        N: Fn(F) -> Node,
    {
        let items = match item {
            Item::Directory(items) => items,
            Item::File(file) => return Ok((self.file)(file)),
            Item::Symlink(node) => return Ok(node),
        };
        let mut entries = Vec::with_capacity(items.len());
        for (name, item) in items {
            let node = self.node(item)?;
            entries.push(Entry { name, node });
        }
        let directory = Directory::new(entries)?;
        let digest = directory.digest();
        if self.seen.insert(digest) {
            self.post_order
                .push(Bytes::copy_from_slice(directory.encoded()));
        }
        Ok(Node::Directory {
            digest,
            size: directory.size(self.rule),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &'static str) -> Name {
        Name::new(name).unwrap()
    }

    #[test]
    fn closures_are_in_order_and_without_repeats() {
        let leaf = || Item::<()>::Directory(BTreeMap::new());
        let middle = |item| Item::Directory(BTreeMap::from([(name("in"), item)]));
        // The empty directory is below `a` at two depths and beside it.
        let root = Item::Directory(BTreeMap::from([
            (name("a"), middle(middle(leaf()))),
            (name("b"), middle(leaf())),
            (name("c"), leaf()),
        ]));
        let tree = build(root, SizeRule::Protocol, &|()| unreachable!()).unwrap();
        assert_eq!(tree.closure.len(), 4);
        let mut known = HashSet::new();
        for (at, bytes) in tree.closure.iter().enumerate() {
            let digest = Digest::of(bytes);
            assert!(at == 0 || known.contains(&digest));
            let directory = Directory::decode(&bytes[..]).unwrap();
            known.extend(directory.directories().map(|(digest, _)| digest));
        }
        assert!(matches!(tree.root, Node::Directory { digest, size: 6 }
            if digest == Digest::of(&tree.closure[0])));
    }
}
