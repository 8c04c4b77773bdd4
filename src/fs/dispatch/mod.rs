//! FUSE requests, over any transport: decodes a message, runs the operation on the filesystem, answers. What misses waits off the
//! transport's threads.
//!
//! - [`Dispatcher`]: takes messages, lets those wait that miss
//! - [`Transport`], [`Message`], [`Capabilities`]: what it needs of the way to the kernel
//! - `opcode`: what becomes of each operation of the protocol; `operations`: those that are answered, one function each
//! - `listing_reply`: READDIR and READDIRPLUS; `lookup_credit`: whose listings come with inodes
//! - `reply`: the one answer of a request; `waiting`: tasks of requests that miss; `pending`: their table, and interrupting them
//! - `requests`: how many there were
//! - `callers`: which signal ends a caller's wait
//! - `negotiation`: INIT; `notification`: having the kernel drop what it keeps
//! - `wire`: the layout of the messages

mod callers;
mod listing_reply;
mod lookup_credit;
mod negotiation;
mod notification;
mod opcode;
mod operations;
mod pending;
mod reply;
mod requests;
mod transport;
mod waiting;
mod wire;

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::Handle,
    sync::{Semaphore, watch},
    task::AbortHandle,
};

use self::{
    lookup_credit::LookupCredit,
    opcode::{Handling, Opcode},
    pending::Pending,
    reply::Reply,
    requests::Requests,
    wire::{InHeader, InterruptIn},
};
pub use self::{
    negotiation::IoMode,
    transport::{Answer, Body, Capabilities, Message, RequestId, Transport},
};
pub(in crate::fs) use self::{
    negotiation::MAX_TRANSFER, notification::invalidate_wrong_blobs, wire::OutHeader,
};
use super::{Filesystem, FsError, Held, Miss};

/// Bytes that a message may have beside the largest transfer.
pub(in crate::fs) const HEADERS: usize = 4096;

/// How requests are answered.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    pub io_mode: IoMode,
    /// No request waits longer than this: past its own limit the kernel ends the connection.
    pub longest_wait: Option<Duration>,
}

/// Whether the kernel and this program agreed on how to talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    /// INIT has not come yet.
    Open,
    Reached,
    Failed,
}

/// Answers the requests of one mount. The transport's threads, which call [`Dispatcher::handle`], never wait for the network.
pub struct Dispatcher {
    fs: Arc<Filesystem>,
    transport: Arc<dyn Transport>,
    options: Options,
    runtime: Handle,
    pending: Arc<Pending>,
    /// Places for fetches for which nobody waits any more.
    abandoned: Semaphore,
    credit: LookupCredit,
    requests: Requests,
    agreement: watch::Sender<Agreement>,
    /// Whether the kernel maps what is opened with `DIRECT_IO`, for sharing too.
    maps_direct_io: AtomicBool,
    /// Looks at interrupted callers.
    watcher: AbortHandle,
}

/// What an operation is run with: see [`Message`].
#[derive(Clone, Copy)]
struct Request<'a> {
    header: InHeader,
    arguments: &'a [u8],
    payload: &'a [u8],
}

/// Memory that a thread uses again for each answer.
#[derive(Debug)]
pub struct Scratch {
    /// Threads are told apart by it.
    number: usize,
    listing: Vec<u8>,
    /// The lookups of the listing that is made, as pairs of a node id and a count.
    looked_up: Vec<(u64, u64)>,
}

impl Default for Scratch {
    fn default() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            listing: Vec::new(),
            looked_up: Vec::new(),
        }
    }
}

/// What a request holds that has missed nothing yet.
static NOTHING: LazyLock<Held> = LazyLock::new(Held::default);

/// Gives the reply of the request that is run, if it still waits; asked once, before anything is done that belongs to the answer.
type TakeReply<'a, 't> = &'a mut dyn FnMut() -> Option<Reply<'t>>;

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher")
            .field("transport", &self.transport)
            .field("options", &self.options)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}

impl Dispatcher {
    /// Must be called within a tokio runtime, in which requests that miss will wait.
    #[must_use]
    pub fn new(
        fs: Arc<Filesystem>,
        transport: Arc<dyn Transport>,
        mut options: Options,
    ) -> Arc<Self> {
        if fs.hashes_always() {
            options.io_mode = IoMode::Direct;
        }
        let pending = Arc::new(Pending::default());
        let watcher = tokio::spawn(waiting::watch_callers(Arc::clone(&pending))).abort_handle();
        Arc::new(Self {
            fs,
            transport,
            options,
            runtime: Handle::current(),
            pending,
            abandoned: Semaphore::new(waiting::MOST_ABANDONED),
            credit: LookupCredit::default(),
            requests: Requests::default(),
            agreement: watch::channel(Agreement::Open).0,
            maps_direct_io: AtomicBool::new(false),
            watcher,
        })
    }

    /// Whether the kernel and this program agree on how to talk, as it becomes known.
    #[must_use]
    pub fn agreement(&self) -> watch::Receiver<Agreement> {
        self.agreement.subscribe()
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.pending.len()
    }

    /// How many requests there were of each operation that is answered, by its name in the protocol.
    pub fn requests(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counts = opcode::NAMES.into_iter();
        counts.map(|(number, name)| (name, self.requests.of(number)))
    }

    /// Forgets all that the other side knows, which must have begun anew or be gone. What waits is answered with EIO.
    pub fn reset(&self) {
        drop(self.pending.take_all());
        self.fs.forget_all();
    }

    /// Takes a message. A panic is caught here: the request gets EIO, and the thread lives on.
    pub fn handle(self: &Arc<Self>, message: &Message<'_>, scratch: &mut Scratch) {
        let &Message {
            slot,
            header,
            arguments,
            payload,
        } = message;
        let request = Request {
            header,
            arguments,
            payload,
        };
        let handled = catch_unwind(AssertUnwindSafe(|| self.accept(slot, &request, scratch)));
        if handled.is_err() {
            request.log_panic();
            // What a listing that was not sent has given away.
            self.take_back(scratch.looked_up.drain(..));
        }
    }

    fn accept(self: &Arc<Self>, slot: u64, request: &Request<'_>, scratch: &mut Scratch) {
        self.requests.count(request.header.opcode, scratch.number);
        let opcode = match opcode::handling(request.header.opcode) {
            Handling::Run(opcode) => opcode,
            Handling::Refused(errno) => return self.reply(slot, request).errno(errno),
            Handling::Ignored => return,
        };
        match opcode {
            // These have no answer.
            Opcode::Forget => self.forget(request),
            Opcode::BatchForget => self.forget_many(request),
            Opcode::Interrupt if !self.transport.capabilities().interrupts => {}
            Opcode::Interrupt => {
                if let Ok(InterruptIn { unique }) = request.arguments() {
                    self.pending.interrupt(unique);
                }
            }
            Opcode::Init => {
                // A guest that begins anew does not say that it has ended.
                if *self.agreement.borrow() == Agreement::Reached {
                    self.reset();
                }
                self.init(request, self.reply(slot, request));
            }
            Opcode::Destroy => {
                // Nothing waits any more where the kernel asks; whatever else asks gets an answer for each.
                drop(self.pending.take_all());
                self.reply(slot, request).bytes(&[]);
            }
            _ => {
                let mut reply = Some(self.reply(slot, request));
                let miss = self.run(opcode, request, &NOTHING, scratch, &mut || reply.take());
                if let (Some(miss), Some(reply)) = (miss, reply) {
                    self.wait(opcode, request, reply.kept(&self.transport), miss);
                }
            }
        }
    }

    fn reply(&self, slot: u64, request: &Request<'_>) -> Reply<'_> {
        let id = RequestId {
            unique: request.header.unique,
            slot,
        };
        Reply::new(&*self.transport, id)
    }
}

impl Drop for Dispatcher {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

impl Request<'_> {
    /// The structure that the operation has.
    fn arguments<T: zerocopy::FromBytes>(&self) -> Result<T, FsError> {
        let (arguments, _) = T::read_from_prefix(self.arguments).map_err(|_| FsError::Malformed)?;
        Ok(arguments)
    }

    /// The name in the payload.
    fn name(&self) -> Result<&[u8], FsError> {
        wire::name(self.payload).ok_or(FsError::Malformed)
    }

    fn log_panic(&self) {
        let InHeader {
            opcode,
            unique,
            node,
            ..
        } = self.header;
        let len = self.arguments.len() + self.payload.len();
        tracing::error!(opcode, unique, node, len, "a request was ended by a panic");
    }
}
