//! The tree as something shows it: operations with the results that a program gets.

use std::path::Path;

/// An operation's result; the error is an errno.
pub type Result<T> = std::result::Result<T, i32>;

/// What `lstat` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    pub inode: u64,
    /// With the kind.
    pub mode: u32,
    pub links: u64,
    pub owner: (u32, u32),
    pub size: u64,
    /// In 512 bytes.
    pub blocks: u64,
    pub block_size: u64,
    /// Seconds of access, modification and change.
    pub times: [i64; 3],
    pub nanoseconds: [i64; 3],
}

impl Stat {
    pub fn is_dir(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

/// An entry of a listing; `.` and `..` are none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    pub name: Vec<u8>,
    pub inode: u64,
    /// `DT_REG` and the like.
    pub kind: u8,
}

/// What `statfs` says.
#[derive(Debug, Clone, Copy)]
pub struct StatFs {
    pub files: u64,
    /// Bytes.
    pub size: u64,
    pub available: u64,
    pub longest_name: u64,
}

/// Paths are relative to the root, which is empty. The last symlink of a path is not followed, and no test has one before.
pub trait View: Sync {
    fn stat(&self, path: &Path) -> Result<Stat>;

    /// In the order that it comes in. It stops after each `at_once` entries and goes on from the position that it had, in the
    /// directory opened anew.
    fn list(&self, path: &Path, at_once: usize) -> Result<Vec<Entry>>;

    fn read_link(&self, path: &Path) -> Result<Vec<u8>>;

    /// `flags` are those of open(2).
    fn open<'v>(&'v self, path: &Path, flags: i32) -> Result<Box<dyn File + 'v>>;

    /// With a buffer of that length; the length alone where it is 0, as that many zeros.
    fn xattr(&self, path: &Path, name: &str, size: usize) -> Result<Vec<u8>>;

    /// Each ends with a zero.
    fn xattr_names(&self, path: &Path) -> Result<Vec<u8>>;

    fn statfs(&self) -> Result<StatFs>;

    /// Tries each thing that would change the tree; what each is called, and its result.
    fn changes(&self) -> Vec<(&'static str, Result<()>)>;

    /// Has it forget what it can of inodes, names and pages.
    fn drop_caches(&self);

    /// Where it is mounted; `None`: no kernel is above it.
    fn mountpoint(&self) -> Option<&Path>;
}

/// An open file.
pub trait File: Send + Sync {
    /// At most `len` bytes; fewer at the end alone.
    fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>>;
}
