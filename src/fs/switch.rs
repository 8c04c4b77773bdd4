use std::{collections::BTreeSet, sync::PoisonError};

use super::{
    Filesystem, Root,
    inodes::{Change, ChangedName, HowChanged, InodeNode},
    root::ROOT_ID,
};
use crate::{
    cache::CacheError,
    model::{Digest, Directory, EntryRef, Name, NodeRef},
};

/// Why a mount does not go over to another tree.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SwitchError {
    #[error("this mount shows whatever the remotes have (--all or --nix), and no tree")]
    Changes,
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// What the kernel keeps of the old tree and must drop.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outdated {
    /// Node ids of directories whose listing and size have changed.
    pub directories: Vec<u64>,
    /// Names that stand for something else, each with the node id of its directory.
    pub names: Vec<(u64, Vec<u8>)>,
}

/// A directory that the kernel knows, before and after.
struct Step {
    id: u64,
    old: Digest,
    new: (Digest, u64),
}

impl Filesystem {
    /// Shows another tree from now on. What is open stays what it was. Directories are the same inodes as before, by path, and entries
    /// that did not change are not touched, so what is mounted on them stays. Returns what the kernel must drop.
    ///
    /// # Errors
    /// When the mount shows no tree, or a directory of the new one that the kernel knows by path cannot be had; the old one is
    /// shown on then.
    pub async fn switch(&self, root: Root) -> Result<Outdated, SwitchError> {
        if self.changes || root.changes() {
            return Err(SwitchError::Changes);
        }
        let before = self.root();
        let (
            Root::Directory { digest: old, .. },
            &Root::Directory {
                digest: new, size, ..
            },
        ) = (&*before, &root)
        else {
            return self.replace(&before, root).await;
        };
        let mut changes = Vec::new();
        let mut steps = vec![Step {
            id: ROOT_ID,
            old: *old,
            new: (new, size),
        }];
        while let Some(step) = steps.pop() {
            if step.old != step.new.0 {
                changes.push(self.compare(&step, (*old, new), &mut steps).await?);
            }
        }
        let directories = changes.iter().map(|change| change.directory).collect();
        let names = self.inodes.change(changes);
        self.show(root);
        Ok(Outdated { directories, names })
    }

    /// Finds out how a directory has changed; directories in it that the kernel knows are added to `steps`. `closures` are the
    /// roots of both trees.
    async fn compare(
        &self,
        step: &Step,
        closures: (Digest, Digest),
        steps: &mut Vec<Step>,
    ) -> Result<Change, CacheError> {
        let (digest, size) = step.new;
        let new = self.cache.directory(digest, closures.1).await?;
        let Ok(old) = self.cache.directory(step.old, closures.0).await else {
            // The old release may be gone. Whatever the kernel may know of it is looked up again, and what it may know to be absent.
            let replaced = |entry: EntryRef<'_>| ChangedName {
                name: entry.name.to_vec(),
                how: HowChanged::Replaced,
            };
            return Ok(Change {
                directory: step.id,
                digest,
                size,
                names: new.entries().map(replaced).collect(),
                all: true,
            });
        };
        let mut names = Vec::new();
        for name in changed_names(&old, &new) {
            let how = match (old.get(name), new.get(name)) {
                (Some(NodeRef::Directory { .. }), Some(NodeRef::Directory { digest, size })) => {
                    match self
                        .inodes
                        .child(step.id, name)
                        .map(|child| (child.id, child.node))
                    {
                        Some((id, InodeNode::Directory { digest: old, .. })) => {
                            steps.push(Step {
                                id,
                                old,
                                new: (digest, size),
                            });
                            HowChanged::Followed(id)
                        }
                        Some(_) => HowChanged::Replaced,
                        None => HowChanged::Unknown,
                    }
                }
                _ => HowChanged::Replaced,
            };
            names.push(ChangedName {
                name: name.to_vec(),
                how,
            });
        }
        Ok(Change {
            directory: step.id,
            digest,
            size,
            names,
            all: false,
        })
    }

    /// Where one of the roots is no directory, nothing of one tree is in the other.
    async fn replace(&self, before: &Root, root: Root) -> Result<Outdated, SwitchError> {
        let mut names = self.names(before).await?;
        names.extend(self.names(&root).await?);
        let names = names.into_iter();
        self.inodes.set_root(root.directory());
        self.show(root);
        Ok(Outdated {
            directories: vec![ROOT_ID],
            names: names.map(|name| (ROOT_ID, name)).collect(),
        })
    }

    fn show(&self, root: Root) {
        self.counted.clear();
        *self.root.write().unwrap_or_else(PoisonError::into_inner) = root.into();
    }

    async fn names(&self, root: &Root) -> Result<BTreeSet<Vec<u8>>, CacheError> {
        Ok(match root {
            Root::Directory { digest, .. } => {
                let directory = self.cache.directory(*digest, *digest).await?;
                directory
                    .entries()
                    .map(|entry| entry.name.to_vec())
                    .collect()
            }
            Root::Single { name, .. } => BTreeSet::from([Name::as_bytes(name).to_vec()]),
            Root::Names | Root::StorePaths => BTreeSet::new(),
        })
    }
}

/// The names that are in one directory only or stand for something else.
fn changed_names<'a>(old: &'a Directory, new: &'a Directory) -> Vec<&'a [u8]> {
    let (mut a, mut b) = (old.entries().peekable(), new.entries().peekable());
    let mut changed = Vec::new();
    loop {
        let order = match (a.peek(), b.peek()) {
            (None, None) => return changed,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) => a.name.cmp(b.name),
        };
        let (from_a, from_b) = (
            order.is_le().then(|| a.next()).flatten(),
            order.is_ge().then(|| b.next()).flatten(),
        );
        if from_a != from_b {
            changed.extend(from_a.or(from_b).map(|entry| entry.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Entry, Node};

    fn directory(entries: &[(&'static str, &str)]) -> Directory {
        let entries = entries.iter().map(|(name, content)| Entry {
            name: Name::new(*name).unwrap(),
            node: Node::File {
                digest: Digest::of(content.as_bytes()),
                size: 1,
                executable: false,
            },
        });
        Directory::new(entries.collect()).unwrap()
    }

    #[test]
    fn what_came_went_and_changed() {
        let old = directory(&[("a", "1"), ("b", "1"), ("d", "1"), ("f", "1")]);
        let new = directory(&[("b", "1"), ("c", "1"), ("d", "2"), ("e", "1")]);
        let changed = changed_names(&old, &new);
        assert_eq!(changed, [b"a", b"c", b"d", b"e", b"f"]);
        assert!(changed_names(&old, &old).is_empty());
        assert_eq!(changed_names(&Directory::default(), &new).len(), 4);
    }
}
