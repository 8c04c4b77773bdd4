use std::{ops::Deref, sync::Arc};

use super::transport::{Answer, Body, RequestId, Transport};
use crate::{cache::Slice, fs::FsError};

/// The answer that a request waits for. It is given once; a reply that is dropped, because of a panic or because a task was ended, is
/// EIO, so no caller is left without an answer.
#[derive(Debug)]
pub(super) struct Reply<'t> {
    transport: Way<'t>,
    id: RequestId,
    is_open: bool,
}

/// The transport, borrowed where the request is answered by the thread that took it: all threads share the count of an [`Arc`].
#[derive(Debug, Clone)]
enum Way<'t> {
    Borrowed(&'t dyn Transport),
    Shared(Arc<dyn Transport>),
}

impl Deref for Way<'_> {
    type Target = dyn Transport;

    fn deref(&self) -> &Self::Target {
        match self {
            Self::Borrowed(transport) => *transport,
            Self::Shared(transport) => &**transport,
        }
    }
}

/// The slices could not be read, and nothing was sent; the reply is to be answered with an error. (Where the kernel met the fault it has
/// ended the request with EIO by itself, and takes no other answer.)
#[derive(Debug)]
pub(super) struct Unreadable<'t>(pub(super) Reply<'t>);

impl<'t> Reply<'t> {
    pub(super) const fn new(transport: &'t dyn Transport, id: RequestId) -> Self {
        Self {
            transport: Way::Borrowed(transport),
            id,
            is_open: true,
        }
    }

    /// To be given later, on the same transport.
    pub(super) fn kept(mut self, transport: &Arc<dyn Transport>) -> Reply<'static> {
        self.is_open = false;
        Reply {
            transport: Way::Shared(Arc::clone(transport)),
            id: self.id,
            is_open: true,
        }
    }

    pub(super) const fn unique(&self) -> u64 {
        self.id.unique
    }

    /// Whether the kernel took the answer: not when the request was given up meanwhile.
    pub(super) fn bytes(mut self, parts: &[&[u8]]) -> bool {
        self.send(0, Body::Bytes(parts))
    }

    /// Content of a file.
    pub(super) fn slices(mut self, slices: &[Slice]) -> Result<(), Unreadable<'t>> {
        let answer = Answer {
            to: self.id,
            errno: 0,
            body: Body::Slices(slices),
        };
        match self.transport.send(&answer) {
            Err(error) if !is_nobody(&error) => {
                tracing::warn!(%error, "content cannot be sent");
                Err(Unreadable(self))
            }
            _ => {
                self.is_open = false;
                Ok(())
            }
        }
    }

    pub(super) fn error(self, error: &FsError) {
        self.errno(error.errno());
    }

    /// `errno` is positive.
    pub(super) fn errno(mut self, errno: i32) {
        self.send(errno, Body::Bytes(&[]));
    }

    fn send(&mut self, errno: i32, body: Body<'_>) -> bool {
        let answer = Answer {
            to: self.id,
            errno,
            body,
        };
        let sent = self.transport.send(&answer);
        self.is_open = false;
        match sent {
            Ok(()) => true,
            Err(error) if is_nobody(&error) => false,
            Err(error) => {
                tracing::warn!(%error, "an answer cannot be sent");
                // Nobody else will answer: an error is short, and may pass where the answer did not.
                let failed = Answer {
                    errno: libc::EIO,
                    body: Body::Bytes(&[]),
                    ..answer
                };
                let _ = self.transport.send(&failed);
                false
            }
        }
    }
}

impl Drop for Reply<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.send(FsError::Panicked.errno(), Body::Bytes(&[]));
        }
    }
}

/// Whether nobody waits for the answer any more. ENOENT: the caller was killed; ENODEV: the filesystem was unmounted.
fn is_nobody(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
}
