//! Messages of the FUSE protocol, laid out as in `include/uapi/linux/fuse.h` of Linux 6.18.

use std::{io, time::Duration};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::fs::{Attr, Entry};

/// How long the kernel may keep what never changes, in seconds: longer than any mount lives.
const NEVER_EXPIRES: u64 = 1_000_000_000;

/// Flags of [`OpenOut`].
pub(super) const FOPEN_DIRECT_IO: u32 = 1 << 0;
pub(super) const FOPEN_KEEP_CACHE: u32 = 1 << 1;
pub(super) const FOPEN_CACHE_DIR: u32 = 1 << 3;
/// Nothing is to be flushed when it is closed.
pub(super) const FOPEN_NOFLUSH: u32 = 1 << 5;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InHeader {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) node: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    pub(super) extensions: u16,
    pub(super) padding: u16,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(in crate::fs) struct OutHeader {
    len: u32,
    /// 0 or a negative errno; of a notification its code.
    error: i32,
    unique: u64,
}

impl OutHeader {
    /// The header before `body` bytes.
    ///
    /// # Errors
    /// When that is more than any message has.
    pub(in crate::fs) fn new(unique: u64, error: i32, body: u64) -> io::Result<Self> {
        let len = size_of::<Self>() as u64 + body;
        Ok(Self {
            len: u32::try_from(len).map_err(io::Error::other)?,
            error,
            unique,
        })
    }
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitIn {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InitOut {
    pub(super) major: u32,
    pub(super) minor: u32,
    pub(super) max_readahead: u32,
    pub(super) flags: u32,
    pub(super) max_background: u16,
    pub(super) congestion_threshold: u16,
    pub(super) max_write: u32,
    pub(super) time_granularity: u32,
    pub(super) max_pages: u16,
    pub(super) map_alignment: u16,
    pub(super) flags2: u32,
    pub(super) max_stack_depth: u32,
    pub(super) request_timeout: u16,
    pub(super) unused: [u16; 11],
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct OpenIn {
    pub(super) flags: i32,
    pub(super) open_flags: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct OpenOut {
    pub(super) handle: u64,
    pub(super) flags: u32,
    pub(super) backing: i32,
}

/// Of READ, READDIR and READDIRPLUS.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ReadIn {
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) read_flags: u32,
    pub(super) lock_owner: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

/// Code of the notification that what the kernel keeps of a file's content must go, in [`OutHeader::error`].
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;
pub(super) const NOTIFY_INVAL_ENTRY: i32 = 3;

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InvalInode {
    pub(super) node: u64,
    pub(super) offset: i64,
    /// 0 or less: to the end.
    pub(super) len: i64,
}

/// Of GETXATTR, both ways.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Getxattr {
    pub(super) size: u32,
    pub(super) padding: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct InterruptIn {
    pub(super) unique: u64,
}

#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct AttrOut {
    pub(super) inode: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) atime: u64,
    pub(super) mtime: u64,
    pub(super) ctime: u64,
    pub(super) atime_nanos: u32,
    pub(super) mtime_nanos: u32,
    pub(super) ctime_nanos: u32,
    pub(super) mode: u32,
    pub(super) links: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) device: u32,
    pub(super) block_size: u32,
    pub(super) flags: u32,
}

#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct EntryOut {
    /// 0: there is no such entry, and that may be cached.
    pub(super) node: u64,
    pub(super) generation: u64,
    pub(super) entry_valid: u64,
    pub(super) attr_valid: u64,
    pub(super) entry_valid_nanos: u32,
    pub(super) attr_valid_nanos: u32,
    pub(super) attr: AttrOut,
}

/// Followed by the name and a NUL byte.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct InvalEntry {
    pub(super) parent: u64,
    /// Without the NUL byte.
    pub(super) name_len: u32,
    pub(super) flags: u32,
}

/// Followed by the name, padded with zeros to a multiple of 8 bytes. READDIRPLUS has an [`EntryOut`] before it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct Dirent {
    pub(super) inode: u64,
    pub(super) offset: u64,
    pub(super) name_len: u32,
    pub(super) kind: u32,
}

impl From<&Attr> for AttrOut {
    fn from(attr: &Attr) -> Self {
        Self {
            inode: attr.number,
            size: attr.size,
            blocks: attr.blocks(),
            mtime: Attr::MTIME,
            mode: attr.mode(),
            links: Attr::LINKS,
            uid: attr.uid,
            gid: attr.gid,
            block_size: Attr::BLOCK_SIZE,
            ..Self::default()
        }
    }
}

impl From<&Entry> for EntryOut {
    fn from(entry: &Entry) -> Self {
        Self {
            node: entry.id,
            attr_valid: NEVER_EXPIRES,
            attr: (&entry.attr).into(),
            ..Self::absent(entry.ttl)
        }
    }
}

impl EntryOut {
    /// The answer that there is no such entry.
    pub(super) fn absent(ttl: Option<Duration>) -> Self {
        let ttl = ttl.unwrap_or(Duration::from_secs(NEVER_EXPIRES));
        Self {
            entry_valid: ttl.as_secs(),
            entry_valid_nanos: ttl.subsec_nanos(),
            ..Self::default()
        }
    }
}

/// Answer of GETATTR.
#[derive(Debug, Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct GetattrOut {
    pub(super) attr_valid: u64,
    pub(super) attr_valid_nanos: u32,
    pub(super) padding: u32,
    pub(super) attr: AttrOut,
}

impl From<&Attr> for GetattrOut {
    fn from(attr: &Attr) -> Self {
        Self {
            attr_valid: NEVER_EXPIRES,
            attr_valid_nanos: 0,
            padding: 0,
            attr: attr.into(),
        }
    }
}

/// Answer of STATFS.
#[derive(Debug, Clone, Copy, Default, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct StatfsOut {
    pub(super) blocks: u64,
    pub(super) blocks_free: u64,
    pub(super) blocks_available: u64,
    pub(super) files: u64,
    pub(super) files_free: u64,
    pub(super) block_size: u32,
    pub(super) name_len: u32,
    pub(super) fragment_size: u32,
    pub(super) padding: u32,
    pub(super) spare: [u32; 6],
}

/// Of FORGET.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ForgetIn {
    pub(super) lookups: u64,
}

/// Of `BATCH_FORGET`; followed by as many [`ForgetOne`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct BatchForgetIn {
    pub(super) count: u32,
    pub(super) padding: u32,
}

#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ForgetOne {
    pub(super) node: u64,
    pub(super) lookups: u64,
}

/// Of RELEASE and RELEASEDIR.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct ReleaseIn {
    pub(super) handle: u64,
    pub(super) flags: u32,
    pub(super) release_flags: u32,
    pub(super) lock_owner: u64,
}

/// Splits a message from the kernel into its first structure and the rest.
pub(super) fn split<T: FromBytes>(message: &[u8]) -> Option<(T, &[u8])> {
    T::read_from_prefix(message).ok()
}

/// The name at the start of `bytes`, without the NUL byte that ends it.
pub(super) fn name(bytes: &[u8]) -> Option<&[u8]> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some(&bytes[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the header: what the kernel copies is exactly this long.
    #[test]
    fn sizes_are_those_of_the_header() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(size_of::<AttrOut>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<Dirent>(), 24);
        assert_eq!(size_of::<OpenOut>(), 16);
        assert_eq!(size_of::<GetattrOut>(), 104);
        assert_eq!(size_of::<StatfsOut>(), 80);
        assert_eq!(size_of::<ReleaseIn>(), 24);
        assert_eq!(size_of::<ForgetOne>(), 16);
    }
}
