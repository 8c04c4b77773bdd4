use std::{ffi::CStr, io, sync::Arc, time::Duration};

use fuse_backend_rs::{
    abi::fuse_abi::{Attr as AbiAttr, CreateIn, SetattrValid, stat64, statvfs64},
    api::filesystem::{Context, Entry, FileSystem, ListxattrReply, OpenOptions, ZeroCopyReader},
};

use super::wire::ATTR_TTL;
use crate::fs::{Attr, Filesystem, FsError};

/// The operations that never miss, for [`fuse_backend_rs::api::server::Server`].
pub(super) struct Rest {
    pub(super) fs: Arc<Filesystem>,
}

impl From<FsError> for io::Error {
    fn from(error: FsError) -> Self {
        Self::from_raw_os_error(error.errno())
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(FsError::ReadOnly.into())
}

fn stat(attr: &Attr) -> stat64 {
    AbiAttr {
        ino: attr.inode,
        size: attr.size,
        blocks: attr.blocks(),
        mtime: Attr::MTIME,
        mode: attr.mode(),
        nlink: Attr::LINKS,
        uid: attr.uid,
        gid: attr.gid,
        blksize: Attr::BLOCK_SIZE,
        ..AbiAttr::default()
    }
    .into()
}

impl FileSystem for Rest {
    type Inode = u64;
    type Handle = u64;

    fn forget(&self, _: &Context, inode: u64, count: u64) {
        self.fs.forget(inode, count);
    }

    fn batch_forget(&self, _: &Context, requests: Vec<(u64, u64)>) {
        for (inode, count) in requests {
            self.fs.forget(inode, count);
        }
    }

    fn getattr(&self, _: &Context, inode: u64, _: Option<u64>) -> io::Result<(stat64, Duration)> {
        Ok((stat(&self.fs.getattr(inode)?), ATTR_TTL))
    }

    fn readlink(&self, _: &Context, inode: u64) -> io::Result<Vec<u8>> {
        Ok(self.fs.readlink(inode)?)
    }

    fn listxattr(&self, _: &Context, inode: u64, size: u32) -> io::Result<ListxattrReply> {
        let names = self.fs.listxattr(inode)?;
        let len = u32::try_from(names.len()).map_err(io::Error::other)?;
        match size {
            0 => Ok(ListxattrReply::Count(len)),
            size if size < len => Err(FsError::Range.into()),
            _ => Ok(ListxattrReply::Names(names)),
        }
    }

    fn statfs(&self, _: &Context, _: u64) -> io::Result<statvfs64> {
        const BLOCK: u64 = 4096;
        let totals = self.fs.totals();
        // SAFETY: a structure of plain numbers, for which zeros are valid.
        let mut stat: statvfs64 = unsafe { std::mem::zeroed() };
        stat.f_bsize = BLOCK;
        stat.f_frsize = BLOCK;
        stat.f_blocks = totals.content.div_ceil(BLOCK);
        stat.f_files = totals.entries;
        stat.f_namemax = 255;
        Ok(stat)
    }

    fn releasedir(&self, _: &Context, _: u64, _: u32, handle: u64) -> io::Result<()> {
        self.fs.release_listing(handle);
        Ok(())
    }

    fn release(
        &self,
        _: &Context,
        inode: u64,
        _: u32,
        _: u64,
        _: bool,
        _: bool,
        _: Option<u64>,
    ) -> io::Result<()> {
        self.fs.released(inode);
        Ok(())
    }

    fn setattr(
        &self,
        _: &Context,
        _: u64,
        _: stat64,
        _: Option<u64>,
        _: SetattrValid,
    ) -> io::Result<(stat64, Duration)> {
        read_only()
    }

    fn symlink(&self, _: &Context, _: &CStr, _: u64, _: &CStr) -> io::Result<Entry> {
        read_only()
    }

    fn mknod(&self, _: &Context, _: u64, _: &CStr, _: u32, _: u32, _: u32) -> io::Result<Entry> {
        read_only()
    }

    fn mkdir(&self, _: &Context, _: u64, _: &CStr, _: u32, _: u32) -> io::Result<Entry> {
        read_only()
    }

    fn unlink(&self, _: &Context, _: u64, _: &CStr) -> io::Result<()> {
        read_only()
    }

    fn rmdir(&self, _: &Context, _: u64, _: &CStr) -> io::Result<()> {
        read_only()
    }

    fn rename(&self, _: &Context, _: u64, _: &CStr, _: u64, _: &CStr, _: u32) -> io::Result<()> {
        read_only()
    }

    fn link(&self, _: &Context, _: u64, _: u64, _: &CStr) -> io::Result<Entry> {
        read_only()
    }

    fn create(
        &self,
        _: &Context,
        _: u64,
        _: &CStr,
        _: CreateIn,
    ) -> io::Result<(Entry, Option<u64>, OpenOptions, Option<u32>)> {
        read_only()
    }

    fn write(
        &self,
        _: &Context,
        _: u64,
        _: u64,
        _: &mut dyn ZeroCopyReader,
        _: u32,
        _: u64,
        _: Option<u64>,
        _: bool,
        _: u32,
        _: u32,
    ) -> io::Result<usize> {
        read_only()
    }

    fn fallocate(&self, _: &Context, _: u64, _: u64, _: u32, _: u64, _: u64) -> io::Result<()> {
        read_only()
    }

    fn setxattr(&self, _: &Context, _: u64, _: &CStr, _: &[u8], _: u32) -> io::Result<()> {
        read_only()
    }

    fn removexattr(&self, _: &Context, _: u64, _: &CStr) -> io::Result<()> {
        read_only()
    }
}
