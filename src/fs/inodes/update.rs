use super::{Inode, InodeTable, InodeView};
use crate::model::Digest;

/// A directory has another content by now than the one that an entry was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct Stale;

/// A directory that the kernel knows is given another content.
#[derive(Debug)]
pub(in super::super) struct Change {
    /// Its node id.
    pub(in super::super) directory: u64,
    pub(in super::super) digest: Digest,
    pub(in super::super) size: u64,
    /// The names in it that stand for something else than before.
    pub(in super::super) names: Vec<ChangedName>,
    /// It is not known what was in it before: whatever is known under it may stand for something else.
    pub(in super::super) all: bool,
}

/// A name that stands for something else.
#[derive(Debug)]
pub(in super::super) struct ChangedName {
    pub(in super::super) name: Vec<u8>,
    pub(in super::super) how: HowChanged,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum HowChanged {
    /// A directory before and after, known to the kernel by this node id: there is a [`Change`] of it too.
    Followed(u64),
    /// A directory before and after, not known to the kernel when that was looked up.
    Unknown,
    /// It came, went, or is something else.
    Replaced,
}

impl InodeTable {
    /// The inode of an entry, if it is known.
    pub(in super::super) fn child(&self, parent: u64, name: &[u8]) -> Option<InodeView> {
        let table = self.read();
        table.named(parent, name).map(Inode::view)
    }

    /// Gives directories another content, all at once. What the kernel has open stays: the inode of a name that was replaced lives
    /// until it is forgotten. Returns the names that the kernel must look up again, each with its directory.
    pub(in super::super) fn change(&self, changes: Vec<Change>) -> Vec<(u64, Vec<u8>)> {
        let mut table = self.write();
        let mut stale = Vec::new();
        for change in changes {
            table.set_directory(change.directory, change.digest, change.size);
            if change.all {
                for name in table.names_in(change.directory) {
                    table.detach(change.directory, &name);
                    stale.push((change.directory, name));
                }
            }
            for ChangedName { name, how } in change.names {
                let known = table.named(change.directory, &name).map(|inode| inode.id);
                let is_stale = match how {
                    // It may have been forgotten and looked up again since: then that is of the old content.
                    HowChanged::Followed(id) => known.is_some_and(|known| known != id),
                    // It may have been looked up since.
                    HowChanged::Unknown => known.is_some(),
                    HowChanged::Replaced => true,
                };
                if is_stale {
                    table.detach(change.directory, &name);
                    stale.push((change.directory, name));
                }
            }
        }
        table.next_generation();
        stale
    }
}
