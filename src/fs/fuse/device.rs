use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
};

use zerocopy::IntoBytes;

use super::wire::{InvalEntry, InvalInode, NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_INODE, OutHeader};
use crate::cache::{ChunkData, Slice};

/// Parts of one `writev`, the header among them; the kernel takes 1024 at the most.
const MAX_PARTS: usize = 1000;

/// The kernel's end of the mount: `/dev/fuse`, opened and mounted. Requests are read and answered by any thread.
#[derive(Debug)]
pub(super) struct Device {
    file: File,
}

/// What became of an attempt to read a request.
pub(super) enum Received {
    /// Bytes of the request.
    Request(usize),
    /// Nothing this time.
    Again,
    /// The filesystem was unmounted.
    Unmounted,
}

impl Device {
    pub(super) const fn new(file: File) -> Self {
        Self { file }
    }

    pub(super) fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Waits for a request.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> Received {
        match rustix::io::read(&self.file, buffer) {
            Ok(len) => Received::Request(len),
            // ENOENT: the request was interrupted before it was read.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN | rustix::io::Errno::NOENT) => {
                Received::Again
            }
            Err(rustix::io::Errno::NODEV) => Received::Unmounted,
            Err(error) => {
                tracing::error!(%error, "no more requests can be read from /dev/fuse");
                Received::Unmounted
            }
        }
    }

    /// Answers with an errno, positive.
    pub(super) fn fail(&self, unique: u64, errno: i32) {
        note(self.write(unique, -errno, &[]));
    }

    /// Whether the kernel took the answer: not when the request was interrupted meanwhile.
    pub(super) fn answer(&self, unique: u64, parts: &[&[u8]]) -> bool {
        let parts: Vec<_> = parts.iter().map(|part| part_of(part)).collect();
        note(self.write(unique, 0, &parts))
    }

    /// Answers READ without joining the slices.
    ///
    /// # Errors
    /// `EFAULT` when a mapped page could not be read from disk; the request is not answered then.
    pub(super) fn answer_slices(&self, unique: u64, slices: &[Slice]) -> io::Result<()> {
        let mut joined = Vec::new();
        let mut parts = Vec::with_capacity(slices.len());
        if slices.len() > MAX_PARTS {
            for slice in slices {
                slice.append_to(&mut joined)?;
            }
            parts.push(part_of(&joined));
        } else {
            for slice in slices {
                parts.push(slice_part(slice)?);
            }
        }
        match self.write(unique, 0, &parts) {
            Err(error) if error.raw_os_error() == Some(libc::EFAULT) => Err(error),
            written => {
                note(written);
                Ok(())
            }
        }
    }

    /// Has the kernel drop its pages of a file. Waits for reads under way.
    pub(super) fn invalidate(&self, node: u64) {
        let message = InvalInode {
            node,
            offset: 0,
            len: 0,
        };
        // A notification has no request, and its code stands where an answer has its error. ENOENT: it is not cached.
        note(self.write(0, NOTIFY_INVAL_INODE, &[part_of(message.as_bytes())]));
    }

    /// Has the kernel forget what it knows of a name in a directory. Waits for lookups there.
    pub(super) fn invalidate_entry(&self, parent: u64, name: &[u8]) {
        let message = InvalEntry {
            parent,
            name_len: u32::try_from(name.len()).unwrap_or_default(),
            flags: 0,
        };
        let parts = [part_of(message.as_bytes()), part_of(name), part_of(&[0])];
        note(self.write(0, NOTIFY_INVAL_ENTRY, &parts));
    }

    fn write(&self, unique: u64, error: i32, parts: &[libc::iovec]) -> io::Result<()> {
        let len: usize = parts.iter().map(|part| part.iov_len).sum();
        let header = OutHeader {
            len: u32::try_from(size_of::<OutHeader>() + len).map_err(io::Error::other)?,
            error,
            unique,
        };
        let mut all = Vec::with_capacity(parts.len() + 1);
        all.push(part_of(header.as_bytes()));
        all.extend_from_slice(parts);
        let count = libc::c_int::try_from(all.len()).map_err(io::Error::other)?;
        // SAFETY: each part points to memory of its length that outlives the call: the header is here, slices and byte
        // strings are borrowed by the caller. Where a part is mapped from a file, a page that cannot be read makes the
        // call fail with EFAULT; the memory is never touched from here.
        let written = unsafe { libc::writev(self.fd(), all.as_ptr(), count) };
        if written < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Whether an answer was taken.
fn note(written: io::Result<()>) -> bool {
    match written {
        Ok(()) => true,
        // ENOENT: the request was interrupted; ENODEV: the filesystem was unmounted.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => false,
        Err(error) => {
            tracing::warn!(%error, "the kernel did not take an answer");
            false
        }
    }
}

fn part_of(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

fn slice_part(slice: &Slice) -> io::Result<libc::iovec> {
    let out_of_range = || io::Error::from(io::ErrorKind::InvalidInput);
    let len = usize::try_from(slice.len).map_err(|_| out_of_range())?;
    match &slice.data {
        ChunkData::Memory(bytes) => {
            let start = usize::try_from(slice.start).map_err(|_| out_of_range())?;
            let end = start.checked_add(len).ok_or_else(out_of_range)?;
            bytes.get(start..end).map(part_of).ok_or_else(out_of_range)
        }
        ChunkData::Disk(file, offset) => {
            let start = offset.checked_add(slice.start).ok_or_else(out_of_range)?;
            let mapped = file.mapped(start, slice.len).ok_or_else(out_of_range)?;
            Ok(libc::iovec {
                iov_base: mapped.cast_mut().cast(),
                iov_len: len,
            })
        }
    }
}
