use std::{
    fs::File,
    io::{self, IoSlice},
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use rustix::io::Errno;
use smallvec::SmallVec;
use zerocopy::IntoBytes;

use crate::{
    cache::{ChunkData, Mapped, Slice},
    fs::dispatch::{
        Answer, Body, Capabilities, Dispatcher, HEADERS, MAX_TRANSFER, Message, OutHeader, Scratch,
        Transport,
    },
};

/// Parts of one `writev`, the header among them; the kernel takes 1024 at the most.
const MAX_PARTS: usize = 1000;

/// A descriptor on which each `read` gives one message and each `write` takes one: `/dev/fuse`, which the kernel answers, or a
/// socket of type SEQPACKET, for tests. Any number of threads use it at once.
#[derive(Debug)]
pub struct Channel {
    file: File,
    capabilities: Capabilities,
}

/// What became of an attempt to read a message.
enum Received {
    /// Bytes of the message.
    Message(usize),
    /// Nothing this time.
    Again,
    /// No message will come any more.
    Closed,
}

/// A part of a message.
#[derive(Clone, Copy)]
enum Part<'a> {
    Bytes(&'a [u8]),
    Mapped(Mapped<'a>),
}

impl Channel {
    /// The descriptor must block.
    #[must_use]
    pub fn new(descriptor: OwnedFd) -> Self {
        Self {
            file: descriptor.into(),
            capabilities: Capabilities {
                max_transfer: MAX_TRANSFER,
                interrupts: true,
                notifications: true,
                // Nothing hands one over yet.
                backing_files: false,
            },
        }
    }

    /// Hands messages to the dispatcher until there are no more. Any number of threads may do so.
    pub fn serve(&self, dispatcher: &Arc<Dispatcher>) {
        let mut message = vec![0; MAX_TRANSFER as usize + HEADERS];
        let mut scratch = Scratch::default();
        loop {
            match self.receive(&mut message) {
                Received::Message(len) => {
                    let Some(message) = Message::whole(0, &message[..len]) else {
                        tracing::warn!(bytes = len, "a message that is too short");
                        continue;
                    };
                    dispatcher.handle(&message, &mut scratch);
                }
                Received::Again => {}
                Received::Closed => return,
            }
        }
    }

    /// Waits for a message.
    fn receive(&self, buffer: &mut [u8]) -> Received {
        match rustix::io::read(&self.file, buffer) {
            Ok(len @ 1..) => Received::Message(len),
            // ENOENT: the request was interrupted before it was read.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => Received::Again,
            // No bytes: the other side of a socket was closed; ENODEV: the filesystem was unmounted.
            Ok(0) | Err(Errno::NODEV | Errno::CONNRESET) => Received::Closed,
            Err(error) => {
                tracing::error!(%error, "no more requests can be read");
                Received::Closed
            }
        }
    }

    fn send_slices(&self, header: &OutHeader, slices: &[Slice]) -> io::Result<()> {
        let mut joined = Vec::new();
        let mut parts = SmallVec::<[Part<'_>; 10]>::new();
        parts.push(Part::Bytes(header.as_bytes()));
        if slices.len() < MAX_PARTS {
            for slice in slices {
                parts.push(part(slice)?);
            }
        } else {
            for slice in slices {
                slice.append_to(&mut joined)?;
            }
            parts.push(Part::Bytes(&joined));
        }
        self.write_parts(&parts)
    }

    /// Writes one message. Mapped parts are read by the kernel alone: a page that the disk does not give is EFAULT here.
    fn write_parts(&self, parts: &[Part<'_>]) -> io::Result<()> {
        let vectors = parts.iter().map(|part| match part {
            Part::Bytes(bytes) => libc::iovec {
                iov_base: bytes.as_ptr().cast_mut().cast(),
                iov_len: bytes.len(),
            },
            Part::Mapped(mapped) => mapped.iovec(),
        });
        let vectors: SmallVec<[libc::iovec; 10]> = vectors.collect();
        let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
        // SAFETY: each vector is of a part that is borrowed for the whole call: memory of its length, or a part of a mapping, which
        // `Mapped` keeps mapped. `writev` only reads.
        let written = unsafe { libc::writev(self.file.as_raw_fd(), vectors.as_ptr(), count) };
        if written < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn write_bytes(&self, header: &OutHeader, parts: &[&[u8]]) -> io::Result<()> {
        let mut vectors = SmallVec::<[IoSlice<'_>; 5]>::new();
        vectors.push(IoSlice::new(header.as_bytes()));
        vectors.extend(parts.iter().map(|part| IoSlice::new(part)));
        rustix::io::writev(&self.file, &vectors)?;
        Ok(())
    }
}

impl Transport for Channel {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn send(&self, answer: &Answer<'_>) -> io::Result<()> {
        let header = OutHeader::new(answer.to.unique, -answer.errno, answer.body.len())?;
        match answer.body {
            Body::Bytes(parts) => self.write_bytes(&header, parts),
            Body::Slices(slices) => self.send_slices(&header, slices),
        }
    }

    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        // A notification has no request, and its code stands where an answer has its error.
        let header = OutHeader::new(0, code, Body::Bytes(parts).len())?;
        self.write_bytes(&header, parts)
    }
}

fn part(slice: &Slice) -> io::Result<Part<'_>> {
    let part = match &slice.data {
        ChunkData::Memory(bytes) => usize::try_from(slice.start).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(slice.len).ok()?)?;
            bytes.get(start..end).map(Part::Bytes)
        }),
        ChunkData::Disk(file, offset) => {
            let start = offset.checked_add(slice.start);
            start.and_then(|start| file.mapped(start, slice.len).map(Part::Mapped))
        }
    };
    part.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
