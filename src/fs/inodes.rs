use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{FsError, root::ROOT_ID, root::Root};
use crate::model::{Digest, Name, Node, Target};

/// What the kernel has been told of and has not forgotten.
#[derive(Debug)]
pub(super) struct Inodes {
    table: RwLock<Table>,
}

#[derive(Debug)]
struct Table {
    by_id: HashMap<u64, Arc<Inode>>,
    /// Invariant: each value is a key of `by_id`.
    by_key: HashMap<Arc<Key>, u64>,
    /// Never goes back: an id is not used twice, so no generation numbers are needed.
    next: u64,
}

/// What decides whether two lookups give one node id. The kernel keeps one dentry for each directory inode, so a
/// directory's id is unique by parent and name; equal files and symlinks share an id, and so their cached pages.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Directory {
        parent: u64,
        name: Name,
        digest: Digest,
        size: u64,
    },
    File {
        digest: Digest,
        size: u64,
        executable: bool,
    },
    Symlink(Target),
}

#[derive(Debug)]
pub(super) struct Inode {
    id: u64,
    /// The key that it has in the table; the root has none.
    key: Option<Arc<Key>>,
    node: Node,
    /// Root of a closure that has this directory; of no meaning for other nodes.
    closure: Digest,
    /// Parent and name of the last lookup: a hint for prefetch and messages, since a shared id has several.
    hint: Mutex<(u64, Name)>,
    /// Handles that are open, where the kernel tells.
    opens: AtomicU64,
    /// Lookups that the kernel has not forgotten. Changed under the write lock of the table only.
    lookups: AtomicU64,
}

impl Inode {
    pub(super) const fn id(&self) -> u64 {
        self.id
    }

    pub(super) const fn node(&self) -> &Node {
        &self.node
    }

    pub(super) const fn closure(&self) -> Digest {
        self.closure
    }

    /// One more handle is open.
    pub(super) fn opened(&self) {
        self.opens.fetch_add(1, Ordering::Relaxed);
    }

    /// One less; true when it was the last.
    pub(super) fn released(&self) -> bool {
        self.opens.fetch_sub(1, Ordering::Relaxed) == 1
    }

    pub(super) fn hint(&self) -> (u64, Name) {
        self.hint
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Inodes {
    pub(super) fn new(root: &Root) -> Self {
        let inodes = Self {
            table: RwLock::new(Table {
                by_id: HashMap::new(),
                by_key: HashMap::new(),
                next: ROOT_ID + 1,
            }),
        };
        inodes.set_root(root);
        inodes
    }

    /// Has the mount's root be another one. All other inodes stay what they are.
    pub(super) fn set_root(&self, root: &Root) {
        let mut table = self.write();
        table.by_id.remove(&ROOT_ID);
        if let (Root::Directory { digest, size }, Ok(name)) = (root, Name::new("root")) {
            let inode = Inode {
                id: ROOT_ID,
                key: None,
                node: Node::Directory {
                    digest: *digest,
                    size: *size,
                },
                closure: *digest,
                hint: Mutex::new((ROOT_ID, name)),
                opens: AtomicU64::new(0),
                lookups: AtomicU64::new(1),
            };
            table.by_id.insert(ROOT_ID, Arc::new(inode));
        }
    }

    pub(super) fn len(&self) -> usize {
        self.read().by_id.len()
    }

    pub(super) fn get(&self, id: u64) -> Result<Arc<Inode>, FsError> {
        self.read()
            .by_id
            .get(&id)
            .cloned()
            .ok_or(FsError::UnknownInode)
    }

    /// The inode of an entry, with one lookup more. `closure` is the root of a closure that has the node.
    pub(super) fn remember(
        &self,
        parent: u64,
        name: &Name,
        node: &Node,
        closure: Digest,
    ) -> Arc<Inode> {
        let key = match node {
            Node::Directory { digest, size } => Key::Directory {
                parent,
                name: name.clone(),
                digest: *digest,
                size: *size,
            },
            Node::File {
                digest,
                size,
                executable,
            } => Key::File {
                digest: *digest,
                size: *size,
                executable: *executable,
            },
            Node::Symlink { target } => Key::Symlink(target.clone()),
        };
        let mut table = self.write();
        if let Some(inode) = table.by_key.get(&key).and_then(|id| table.by_id.get(id)) {
            inode.lookups.fetch_add(1, Ordering::Relaxed);
            *inode.hint.lock().unwrap_or_else(PoisonError::into_inner) = (parent, name.clone());
            return Arc::clone(inode);
        }
        let id = table.next;
        table.next += 1;
        let key = Arc::new(key);
        let inode = Arc::new(Inode {
            id,
            key: Some(Arc::clone(&key)),
            node: node.clone(),
            closure,
            hint: Mutex::new((parent, name.clone())),
            opens: AtomicU64::new(0),
            lookups: AtomicU64::new(1),
        });
        table.by_id.insert(id, Arc::clone(&inode));
        table.by_key.insert(key, id);
        inode
    }

    /// Takes back `count` lookups; an inode without any is dropped.
    pub(super) fn forget(&self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        let mut table = self.write();
        let Some(inode) = table.by_id.get(&id) else {
            return;
        };
        let lookups = inode.lookups.load(Ordering::Relaxed).saturating_sub(count);
        inode.lookups.store(lookups, Ordering::Relaxed);
        if lookups == 0
            && let Some(inode) = table.by_id.remove(&id)
            && let Some(key) = &inode.key
        {
            table.by_key.remove(key);
        }
    }

    /// The ids of the files with this content, or of all files.
    pub(super) fn of_blob(&self, blob: Option<Digest>) -> Vec<u64> {
        let table = self.read();
        let files = table
            .by_id
            .values()
            .filter(|inode| matches!(inode.node(), Node::File { digest, .. } if blob.is_none_or(|blob| *digest == blob)));
        files.map(|inode| inode.id()).collect()
    }

    /// The path from the mount's root, as far as the hints say.
    pub(super) fn path(&self, id: u64) -> String {
        let mut names = Vec::new();
        let mut at = id;
        // A directory's chain of parents is short; the bound guards against hints that form a ring.
        while at != ROOT_ID && names.len() < 4096 {
            let Ok(inode) = self.get(at) else {
                names.push("…".to_owned());
                break;
            };
            let (parent, name) = inode.hint();
            names.push(name.to_string());
            at = parent;
        }
        names.reverse();
        format!("/{}", names.join("/"))
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name(name: &str) -> Name {
        Name::new(name.to_owned()).unwrap()
    }

    fn file(content: &[u8], executable: bool) -> Node {
        Node::File {
            digest: Digest::of(content),
            size: content.len() as u64,
            executable,
        }
    }

    fn directory(content: &[u8]) -> Node {
        Node::Directory {
            digest: Digest::of(content),
            size: 0,
        }
    }

    fn remember(inodes: &Inodes, parent: u64, at: &str, node: &Node) -> u64 {
        inodes
            .remember(parent, &name(at), node, Digest::empty())
            .id()
    }

    #[test]
    fn ids_are_shared_by_equal_files_and_never_by_directories() {
        let inodes = Inodes::new(&Root::Names);
        let a = remember(&inodes, 1, "a", &file(b"x", false));
        assert_eq!(a, remember(&inodes, 1, "b", &file(b"x", false)));
        assert_ne!(a, remember(&inodes, 1, "a", &file(b"x", true)));
        let d = remember(&inodes, 1, "d", &directory(b""));
        assert_eq!(d, remember(&inodes, 1, "d", &directory(b"")));
        assert_ne!(d, remember(&inodes, 1, "e", &directory(b"")));
        assert_ne!(d, remember(&inodes, d, "d", &directory(b"")));
        // A name that stands for something else by now.
        assert_ne!(d, remember(&inodes, 1, "d", &directory(b"new")));
        assert_eq!(
            inodes.path(remember(&inodes, d, "f", &file(b"y", false))),
            "/d/f"
        );
        assert!(inodes.get(999).is_err());
    }

    proptest! {
        /// Compared with a model: an inode is there while it has lookups, and ids are never used again.
        #[test]
        fn lookups_and_forgets_balance(
            steps in proptest::collection::vec((0..6_u8, 1..4_u64, any::<bool>()), 1..100),
        ) {
            let inodes = Inodes::new(&Root::Names);
            let mut model: HashMap<u8, (u64, u64)> = HashMap::new();
            let mut dropped = std::collections::HashSet::new();
            for (which, count, forget) in steps {
                let node = if which < 3 { file(&[which], false) } else { directory(&[which]) };
                if forget {
                    if let Some((id, lookups)) = model.remove(&which) {
                        inodes.forget(id, count.min(lookups));
                        if lookups > count {
                            model.insert(which, (id, lookups - count));
                        } else {
                            dropped.insert(id);
                            prop_assert!(inodes.get(id).is_err());
                        }
                    }
                } else {
                    let id = remember(&inodes, 1, &which.to_string(), &node);
                    prop_assert!(!dropped.contains(&id));
                    let entry = model.entry(which).or_insert((id, 0));
                    prop_assert_eq!(entry.0, id);
                    entry.1 += 1;
                }
                prop_assert_eq!(inodes.len(), model.len());
                prop_assert_eq!(inodes.read().by_key.len(), model.len());
            }
        }
    }
}
