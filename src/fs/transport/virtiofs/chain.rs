use std::{cell::RefCell, io, os::fd::AsRawFd};

use smallvec::SmallVec;
use virtio_queue::DescriptorChain;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryLoadGuard, Permissions, VolatileSlice,
};
use zerocopy::IntoBytes;

use super::Memory;
use crate::{
    cache::{ChunkData, DataFile, Slice},
    fs::dispatch::{Answer, Body, OutHeader},
};

/// Bytes of a request that are read: of what is answered, nothing is longer than a header, a structure and a name.
pub(super) const LONGEST_REQUEST: usize = 64 << 10;
/// Descriptors of a chain, the most that a driver needs for a megabyte of pages and some headers.
const MOST_DESCRIPTORS: usize = 1024;
/// Parts of one `preadv`, as the kernel takes them.
const MOST_PARTS: usize = 1024;
/// Parts that memory is taken for where there are more than a few: the pages of 128 KiB, which is what a guest reads ahead.
const MANY_PARTS: usize = 36;

thread_local! {
    /// Memory that a thread uses again for each `preadv`.
    static VECTORS: RefCell<Vec<libc::iovec>> = const { RefCell::new(Vec::new()) };
}

/// A part of guest memory: address and length.
type Part = (GuestAddress, usize);
type Parts = SmallVec<[Part; 4]>;

/// A request in guest memory: what the device may read, and where the answer belongs.
#[derive(Debug)]
pub(super) struct Chain {
    head: u16,
    request: Parts,
    answer: Parts,
}

/// Why nothing was written that the guest has been told of.
#[derive(Debug)]
pub(super) enum WriteError {
    /// The guest has no room for it, or no such memory.
    Guest(io::Error),
    /// The bytes of a file cannot be read.
    Disk(io::Error),
}

#[derive(Debug, thiserror::Error)]
#[error("the guest has room for {room} bytes of an answer of {needed}")]
struct NoRoom {
    needed: u64,
    room: u64,
}

fn guest(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> WriteError {
    WriteError::Guest(io::Error::other(error))
}

impl Chain {
    /// `None` when there are more descriptors than any driver needs.
    pub(super) fn new(
        descriptors: DescriptorChain<GuestMemoryLoadGuard<Memory>>,
    ) -> (u16, Option<Self>) {
        let head = descriptors.head_index();
        let mut chain = Self {
            head,
            request: Parts::new(),
            answer: Parts::new(),
        };
        for (number, descriptor) in descriptors.enumerate() {
            if number == MOST_DESCRIPTORS {
                return (head, None);
            }
            let part = (descriptor.addr(), descriptor.len() as usize);
            let parts = match descriptor.is_write_only() {
                true => &mut chain.answer,
                false => &mut chain.request,
            };
            if parts.len() == parts.capacity() {
                parts.reserve(MANY_PARTS);
            }
            parts.push(part);
        }
        (head, Some(chain))
    }

    pub(super) const fn head(&self) -> u16 {
        self.head
    }

    /// Copies the request, or as much of it as is looked at.
    pub(super) fn read(&self, memory: &Memory, request: &mut Vec<u8>) -> io::Result<()> {
        request.clear();
        for &(address, len) in &self.request {
            let start = request.len();
            let end = LONGEST_REQUEST.min(start.saturating_add(len));
            request.resize(end, 0);
            memory
                .read_slice(&mut request[start..], address)
                .map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Writes an answer into guest memory, and returns its length in bytes. The guest has not been told of anything by that.
    pub(super) fn write(&self, memory: &Memory, answer: &Answer<'_>) -> Result<u32, WriteError> {
        let header = OutHeader::new(answer.to.unique, -answer.errno, answer.body.len());
        let header = header.map_err(WriteError::Guest)?;
        let needed = size_of::<OutHeader>() as u64 + answer.body.len();
        let room = self.answer.iter().map(|(_, len)| *len as u64).sum();
        if needed > room {
            return Err(guest(NoRoom { needed, room }));
        }
        let mut room = Room {
            memory,
            parts: &self.answer,
            used: 0,
        };
        room.put(header.as_bytes())?;
        match answer.body {
            Body::Bytes(parts) => parts.iter().try_for_each(|part| room.put(part))?,
            Body::Slices(slices) => slices.iter().try_for_each(|slice| room.put_slice(slice))?,
        }
        u32::try_from(needed).map_err(guest)
    }
}

/// Guest memory that is left to write to.
struct Room<'a> {
    memory: &'a Memory,
    parts: &'a [Part],
    /// Bytes of the first part that were written.
    used: usize,
}

impl Room<'_> {
    /// Up to `len` bytes of the next part, which are taken.
    fn take(&mut self, len: usize) -> Result<Part, WriteError> {
        loop {
            let &(address, size) = self.parts.first().ok_or_else(|| guest("no room is left"))?;
            if self.used == size {
                self.parts = &self.parts[1..];
                self.used = 0;
                continue;
            }
            let taken = len.min(size - self.used);
            let offset = self.used as u64;
            let start = address.0.checked_add(offset);
            self.used += taken;
            let start = start.ok_or_else(|| guest("an address is too large"))?;
            return Ok((GuestAddress(start), taken));
        }
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), WriteError> {
        while !bytes.is_empty() {
            let (address, len) = self.take(bytes.len())?;
            let (now, later) = bytes.split_at(len);
            self.memory.write_slice(now, address).map_err(guest)?;
            bytes = later;
        }
        Ok(())
    }

    fn put_slice(&mut self, slice: &Slice) -> Result<(), WriteError> {
        let outside = || WriteError::Disk(io::Error::from_raw_os_error(libc::EIO));
        match &slice.data {
            ChunkData::Memory(bytes) => {
                let range = usize::try_from(slice.start)
                    .ok()
                    .zip(usize::try_from(slice.len).ok());
                let part = range.and_then(|(start, len)| bytes.get(start..start.checked_add(len)?));
                self.put(part.ok_or_else(outside)?)
            }
            ChunkData::Disk(file, offset) => {
                let start = offset.checked_add(slice.start).ok_or_else(outside)?;
                self.put_file(file, start, slice.len)
            }
        }
    }

    /// Reads from a file into guest memory, with no copy between.
    fn put_file(
        &mut self,
        file: &DataFile,
        mut offset: u64,
        mut len: u64,
    ) -> Result<(), WriteError> {
        VECTORS.with_borrow_mut(|vectors| {
            while len > 0 {
                vectors.clear();
                let mut wanted = 0;
                while wanted < len && vectors.len() < MOST_PARTS {
                    let most = usize::try_from(len - wanted).unwrap_or(usize::MAX);
                    let (address, taken) = self.take(most)?;
                    let slices = self.memory.get_slices(address, taken, Permissions::Write);
                    for slice in slices.map_err(guest)? {
                        vectors.push(vector(&slice.map_err(guest)?));
                    }
                    wanted += taken as u64;
                }
                // SAFETY: each vector is of a slice of guest memory, which is borrowed for longer than this call.
                unsafe { read_into(file, offset, wanted, vectors)? };
                offset += wanted;
                len -= wanted;
            }
            Ok(())
        })
    }
}

/// Where a part of guest memory is in this process. Without Xen a guard maps nothing, so it is not kept.
fn vector(slice: &VolatileSlice<'_, ()>) -> libc::iovec {
    libc::iovec {
        iov_base: slice.ptr_guard_mut().as_ptr().cast(),
        iov_len: slice.len(),
    }
}

/// Fills guest memory with `len` bytes of a file.
///
/// # Safety
///
/// Each vector is of guest memory that stays mapped during the call.
unsafe fn read_into(
    file: &DataFile,
    mut offset: u64,
    mut len: u64,
    mut vectors: &mut [libc::iovec],
) -> Result<(), WriteError> {
    while len > 0 {
        let count = libc::c_int::try_from(vectors.len().min(MOST_PARTS)).map_err(guest)?;
        let at = libc::off_t::try_from(offset)
            .map_err(|error| WriteError::Disk(io::Error::other(error)))?;
        // SAFETY: the caller keeps the memory mapped, and nobody has a Rust reference to memory of a guest.
        let read =
            unsafe { libc::preadv(file.descriptor().as_raw_fd(), vectors.as_ptr(), count, at) };
        let read = match read {
            ..0 => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error if error.raw_os_error() == Some(libc::EFAULT) => {
                    return Err(WriteError::Guest(error));
                }
                error => return Err(WriteError::Disk(error)),
            },
            // The file is shorter than it was: somebody else has cut it off.
            0 => return Err(WriteError::Disk(io::Error::from_raw_os_error(libc::EIO))),
            read => read.unsigned_abs(),
        };
        offset += read as u64;
        len = len.saturating_sub(read as u64);
        let mut left = read;
        while let Some(first) = vectors.first_mut()
            && left >= first.iov_len
        {
            left -= first.iov_len;
            vectors = &mut vectors[1..];
        }
        if let Some(first) = vectors.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(left);
            first.iov_len -= left;
        }
    }
    Ok(())
}
