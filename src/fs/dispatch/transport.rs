use std::{fmt, io};

use super::{
    opcode,
    wire::{InHeader, split},
};
use crate::cache::Slice;

/// A way on which requests come and answers go: `/dev/fuse`, a queue of a virtual machine, a socket in tests. It hands each [`Message`]
/// to [`super::Dispatcher::handle`].
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    fn capabilities(&self) -> Capabilities;

    /// Sends an answer, as a whole and once for each request.
    ///
    /// # Errors
    /// `ENOENT` and `ENODEV` when nobody waits for the answer any more. Any other error means that nothing was sent, `EFAULT` and
    /// `EIO` that bytes of a slice could not be read from disk.
    fn send(&self, answer: &Answer<'_>) -> io::Result<()>;

    /// Sends a notification: `code` is one of `enum fuse_notify_code`, `parts` are joined. Blocks while the kernel takes it.
    ///
    /// # Errors
    /// `ENOENT` when the kernel does not know what it is about. `ENOSYS` where there are none.
    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()>;
}

/// A request as a transport has it. Its parts may lie in different places, as they do in a ring or in a virtqueue.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// The transport's own, which comes back with the answer: [`RequestId::slot`].
    pub slot: u64,
    pub(super) header: InHeader,
    /// The structure of fixed length that the operation has, whole or cut short.
    pub(super) arguments: &'a [u8],
    /// What comes behind it: a name, the inodes of `BATCH_FORGET`.
    pub(super) payload: &'a [u8],
}

impl<'a> Message<'a> {
    /// A message that lies in one piece; `None` where it is shorter than a header.
    #[must_use]
    pub fn whole(slot: u64, message: &'a [u8]) -> Option<Self> {
        let (header, body) = split::<InHeader>(message)?;
        let len = opcode::arguments_len(header.opcode).min(body.len());
        let (arguments, payload) = body.split_at(len);
        Some(Self {
            slot,
            header,
            arguments,
            payload,
        })
    }
}

/// What a transport can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Bytes of the largest answer, without headers.
    pub max_transfer: u32,
    /// Whether INTERRUPT comes when a caller gets a signal.
    pub interrupts: bool,
    /// Whether [`Transport::notify`] works, so that what the kernel keeps can be taken back.
    pub notifications: bool,
    /// Whether a backing file can be handed to the kernel (passthrough).
    pub backing_files: bool,
}

/// The answer of one request.
#[derive(Debug, Clone, Copy)]
pub struct Answer<'a> {
    pub to: RequestId,
    /// Positive; 0 for success.
    pub errno: i32,
    pub body: Body<'a>,
}

/// Which request, for the kernel and for the transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestId {
    /// As in the request's header.
    pub unique: u64,
    /// The transport's own: where the answer belongs, such as an entry of a ring.
    pub slot: u64,
}

/// What follows the header of an answer.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// Parts that are sent one behind the other.
    Bytes(&'a [&'a [u8]]),
    /// Content of a file: the transport has `writev` point at it, or reads it into its own buffer by `pread`.
    Slices(&'a [Slice]),
}

impl Body<'_> {
    /// In bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Bytes(parts) => parts.iter().map(|part| part.len() as u64).sum(),
            Self::Slices(slices) => slices.iter().map(|slice| slice.len).sum(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
