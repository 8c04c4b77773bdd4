use super::{Filesystem, FsError, inodes::Inode, root::ROOT_ID};
use crate::model::{Digest, Node};

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
    pub inode: u64,
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
    pub(super) const fn of(node: &Node) -> Self {
        match node {
            Node::Directory { .. } => Self::Directory,
            Node::File { .. } => Self::File,
            Node::Symlink { .. } => Self::Symlink,
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

/// `st_ino`: decided by the content alone, so that equal files, symlinks and directories have equal ones.
pub(super) fn inode_number(node: &Node) -> u64 {
    let number = match node {
        Node::Directory { digest, .. } => digest.prefix(),
        Node::File {
            digest, executable, ..
        } => digest.prefix() ^ u64::from(*executable),
        Node::Symlink { target } => Digest::of(target.as_bytes()).prefix(),
    };
    // 0 means "no inode" to some programs, 1 is the root.
    number.max(2)
}

impl Filesystem {
    /// The attributes of an inode; what it refers to is not fetched.
    ///
    /// # Errors
    /// When the kernel was never told of the inode.
    pub fn getattr(&self, id: u64) -> Result<Attr, FsError> {
        if id == ROOT_ID {
            return Ok(self.attr(ROOT_ID, Kind::Directory, self.root().entries(), 0o555));
        }
        Ok(self.node_attr(self.inodes.get(id)?.node()))
    }

    pub(super) fn inode_attr(&self, inode: &Inode) -> Attr {
        self.node_attr(inode.node())
    }

    fn node_attr(&self, node: &Node) -> Attr {
        let (size, permissions) = match node {
            Node::Directory { size, .. } => (*size, 0o555),
            Node::File {
                size, executable, ..
            } => (*size, if *executable { 0o555 } else { 0o444 }),
            Node::Symlink { target } => (target.as_bytes().len() as u64, 0o444),
        };
        self.attr(inode_number(node), Kind::of(node), size, permissions)
    }

    fn attr(&self, inode: u64, kind: Kind, size: u64, permissions: u32) -> Attr {
        let (uid, gid) = self.options.owner;
        Attr {
            inode,
            size,
            kind,
            permissions,
            uid,
            gid,
        }
    }
}
