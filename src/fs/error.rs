use crate::{cache::CacheError, model::Digest};

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    #[error("no such entry")]
    NotFound,
    #[error("a name of more than 255 bytes")]
    NameTooLong,
    #[error("not a directory")]
    NotDirectory,
    #[error("a directory")]
    IsDirectory,
    #[error("not a symlink")]
    NotSymlink,
    #[error("the filesystem cannot be written")]
    ReadOnly,
    #[error("the root of this mount cannot be listed (--list-root false)")]
    ListingOff,
    #[error("so many listings of the root are open that there is no room for another")]
    TooManyOpen,
    #[error("no such attribute")]
    NoAttribute,
    #[error("the buffer is too small for the value")]
    Range,
    #[error("extended attributes are off; mount with --xattr to have them")]
    XattrOff,
    #[error("the kernel asks for an inode that it was never told of, or has forgotten")]
    UnknownInode,
    #[error("a request that cannot be understood")]
    Malformed,
    #[error("interrupted")]
    Interrupted,
    #[error("no answer in the time that the kernel grants a request (fs.fuse.max_request_timeout)")]
    TimedOut,
    #[error("the operation failed in a way that it must not; the log has more")]
    Panicked,
    #[error("the directory says it has {claimed} entries and has at least {actual}")]
    DirectorySize { claimed: u64, actual: u64 },
    #[error("the chunks of the blob {0} are not those of its digest")]
    WrongBlob(Digest),
    #[error("a file of the cache cannot be read")]
    Unreadable,
    #[error("an operation that missed the same objects again and again")]
    NoProgress,
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl FsError {
    /// What the caller of the system call sees.
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::NotFound => libc::ENOENT,
            Self::NameTooLong => libc::ENAMETOOLONG,
            Self::NotDirectory => libc::ENOTDIR,
            Self::IsDirectory => libc::EISDIR,
            Self::NotSymlink | Self::Malformed => libc::EINVAL,
            Self::ReadOnly => libc::EROFS,
            Self::ListingOff => libc::EPERM,
            Self::TooManyOpen => libc::ENFILE,
            Self::NoAttribute => libc::ENODATA,
            Self::Range => libc::ERANGE,
            Self::XattrOff => libc::ENOSYS,
            Self::UnknownInode => libc::ESTALE,
            Self::Interrupted => libc::EINTR,
            Self::DirectorySize { .. }
            | Self::WrongBlob(_)
            | Self::Unreadable
            | Self::NoProgress
            | Self::TimedOut
            | Self::Panicked
            | Self::Cache(_) => libc::EIO,
        }
    }
}
