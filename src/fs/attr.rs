use super::{
    Filesystem, FsError, inode_number,
    inodes::{InodeNode, InodeView},
    root::ROOT_ID,
};
use crate::model::NodeRef;

/// Suits the cache: a read of this size is answered from one or two chunks.
const BLOCK_SIZE: u32 = 128 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Directory,
    File,
    Symlink,
}

/// What `stat` sees. Times are constant: access and change 0, modification 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// `st_ino`.
    pub number: u64,
    /// Bytes of a file, length of a symlink's target, entries below a directory.
    pub size: u64,
    pub kind: Kind,
    /// Permission bits.
    pub permissions: u32,
    pub uid: u32,
    pub gid: u32,
}

impl Attr {
    /// Modification time of everything, seconds since 1970.
    pub const MTIME: u64 = 1;
    pub const LINKS: u32 = 1;
    pub const BLOCK_SIZE: u32 = BLOCK_SIZE;

    /// In units of 512 bytes.
    #[must_use]
    pub const fn blocks(&self) -> u64 {
        self.size.div_ceil(512)
    }

    /// Type and permissions.
    #[must_use]
    pub const fn mode(&self) -> u32 {
        self.kind.mode() | self.permissions
    }
}

impl Kind {
    pub(super) const fn of(node: NodeRef<'_>) -> Self {
        match node {
            NodeRef::Directory { .. } => Self::Directory,
            NodeRef::File { .. } => Self::File,
            NodeRef::Symlink { .. } => Self::Symlink,
        }
    }

    /// The type bits of a mode.
    #[must_use]
    pub const fn mode(self) -> u32 {
        match self {
            Self::Directory => libc::S_IFDIR,
            Self::File => libc::S_IFREG,
            Self::Symlink => libc::S_IFLNK,
        }
    }
}

impl Filesystem {
    /// The attributes of an inode; what it refers to is not fetched.
    ///
    /// # Errors
    /// When the kernel has never looked the inode up, or has forgotten it.
    pub fn getattr(&self, id: u64) -> Result<Attr, FsError> {
        if id == ROOT_ID {
            let entries = self.root().entries();
            return Ok(self.attr(inode_number::ROOT, Kind::Directory, entries, 0o555));
        }
        Ok(self.attr_of(&self.inodes.get(id)?))
    }

    pub(super) const fn attr_of(&self, inode: &InodeView) -> Attr {
        let (kind, size, permissions) = match inode.node {
            InodeNode::Directory { size, .. } => (Kind::Directory, size, 0o555),
            InodeNode::File {
                size,
                executable: true,
                ..
            } => (Kind::File, size, 0o555),
            InodeNode::File { size, .. } => (Kind::File, size, 0o444),
            InodeNode::Symlink { len } => (Kind::Symlink, len, 0o444),
        };
        self.attr(inode.number, kind, size, permissions)
    }

    const fn attr(&self, number: u64, kind: Kind, size: u64, permissions: u32) -> Attr {
        let (uid, gid) = self.options.owner;
        Attr {
            number,
            size,
            kind,
            permissions,
            uid,
            gid,
        }
    }
}
