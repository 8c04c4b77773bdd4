use std::sync::{Arc, mpsc};

use fuse_backend_rs::{
    api::server::Server,
    transport::{FuseBuf, FuseDevWriter, Reader},
};
use tokio::runtime::Handle;
use zerocopy::IntoBytes;

use super::{
    device::Device,
    init::{self, Agreement, IoMode},
    pending::Pending,
    rest::Rest,
    wire::{
        Dirent, EntryOut, FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, Getxattr, InHeader, InitIn, InitOut,
        InterruptIn, OpenIn, OpenOut, ReadIn, name, opcode, split,
    },
};
use crate::fs::{Filesystem, FsError, Held, Miss, Outcome};

/// Rounds of fetching for one request. Each brings something that the request keeps, so this is never reached unless
/// something is wrong.
const MAX_ROUNDS: usize = 64;

/// Answers the requests of one mount. Its threads never wait for the network: what misses goes on as a task.
pub(super) struct Dispatcher {
    pub(super) fs: Arc<Filesystem>,
    pub(super) device: Device,
    pub(super) mode: IoMode,
    pub(super) runtime: Handle,
    pub(super) pending: Pending,
    /// Told whether an agreement with the kernel was reached.
    pub(super) agreed: mpsc::Sender<bool>,
    pub(super) server: Server<Rest>,
}

/// A request that can miss, taken out of its message.
#[derive(Debug)]
enum Operation {
    Lookup { parent: u64, name: Vec<u8> },
    Open { node: u64, flags: i32 },
    Opendir { node: u64 },
    Read { node: u64, args: ReadIn },
    Readdir { node: u64, args: ReadIn, plus: bool },
    Getxattr { node: u64, name: Vec<u8>, size: u32 },
}

impl Dispatcher {
    /// Takes one message from the kernel; `scratch` is for the answers that fuse-backend-rs writes.
    pub(super) fn handle(self: &Arc<Self>, message: &mut [u8], scratch: &mut [u8]) {
        let Some((header, body)) = split::<InHeader>(message) else {
            tracing::warn!(bytes = message.len(), "a message that is too short");
            return;
        };
        match header.opcode {
            opcode::INIT => self.init(header.unique, body),
            opcode::INTERRUPT => self.interrupt(header.unique, body),
            _ => match operation(&header, body) {
                Some(Ok(operation)) => self.start(header.unique, operation),
                Some(Err(error)) => self.device.fail(header.unique, error.errno()),
                None => self.rest(message, scratch),
            },
        }
    }

    fn init(&self, unique: u64, body: &[u8]) {
        let Some((kernel, rest)) = split::<InitIn>(body) else {
            self.device.fail(unique, libc::EPROTO);
            return;
        };
        let flags2 = split::<u32>(rest).map_or(0, |(flags2, _)| flags2);
        match init::agree(&kernel, flags2, self.mode) {
            Agreement::Answer {
                minor,
                flags,
                max_readahead,
            } => {
                tracing::debug!(
                    kernel.minor,
                    flags = format!("{flags:#x}"),
                    "agreed with the kernel"
                );
                let answer = InitOut::new(minor, flags, max_readahead);
                let taken = self.device.answer(unique, &[answer.as_bytes()]);
                let _ = self.agreed.send(taken);
            }
            Agreement::OtherMajor => {
                let answer = InitOut::new(0, 0, 0);
                self.device.answer(unique, &[answer.as_bytes()]);
            }
            Agreement::TooOld => {
                tracing::error!(kernel.major, kernel.minor, "this kernel's FUSE is too old");
                self.device.fail(unique, libc::EPROTO);
                let _ = self.agreed.send(false);
            }
        }
    }

    fn interrupt(&self, unique: u64, body: &[u8]) {
        let Some((InterruptIn { unique: request }, _)) = split(body) else {
            return;
        };
        if self.pending.interrupt(request) {
            self.device.fail(request, FsError::Interrupted.errno());
        } else {
            // Another thread is about to answer it or to make it wait. EAGAIN has the kernel ask again, if it still
            // wants to; the pause keeps that from becoming a busy loop.
            std::thread::sleep(std::time::Duration::from_millis(1));
            self.device.fail(unique, libc::EAGAIN);
        }
    }

    fn start(self: &Arc<Self>, unique: u64, operation: Operation) {
        if let Some(miss) = self.attempt(unique, &operation, &Held::default(), || true) {
            let interrupted = self.pending.insert(unique);
            let dispatcher = Arc::clone(self);
            self.runtime.spawn(async move {
                tokio::select! {
                    () = dispatcher.finish(unique, &operation, miss) => {}
                    // It was answered by whoever interrupted it. Fetches that it started go on for others.
                    Ok(()) = interrupted => {}
                }
            });
        }
    }

    /// Fetches what an operation missed and runs it again until it is answered.
    async fn finish(&self, unique: u64, operation: &Operation, first: Miss) {
        let mut held = Held::default();
        let mut miss = first;
        let mut error = FsError::NoProgress;
        for _ in 0..MAX_ROUNDS {
            match self.fs.resolve(miss, &mut held).await {
                Ok(()) => {}
                Err(failure) => {
                    error = failure;
                    break;
                }
            }
            match self.attempt(unique, operation, &held, || self.pending.take(unique)) {
                Some(next) => miss = next,
                None => return,
            }
        }
        if self.pending.take(unique) {
            self.device.fail(unique, error.errno());
        }
    }

    /// Runs an operation and answers it, unless it misses. `may_answer` is asked once, before anything is done that
    /// belongs to the answer.
    fn attempt(
        &self,
        unique: u64,
        operation: &Operation,
        held: &Held,
        may_answer: impl Fn() -> bool,
    ) -> Option<Miss> {
        let done = match operation {
            Operation::Lookup { parent, name } => match self.fs.lookup(*parent, name, held) {
                Outcome::Miss(miss) => return Some(miss),
                Outcome::Ready(found) => found.map(|entry| {
                    let absent = || EntryOut::absent(self.fs.ttl(*parent));
                    let out = entry.as_ref().map_or_else(absent, EntryOut::from);
                    let taken = may_answer() && self.device.answer(unique, &[out.as_bytes()]);
                    if let Some(entry) = entry.filter(|_| !taken) {
                        self.fs.forget(entry.id, 1);
                    }
                }),
            },
            Operation::Open { node, flags } => self.fs.open(*node, *flags).map(|()| {
                match self.mode {
                    // The first ENOSYS has the kernel open files by itself from then on.
                    IoMode::Small if may_answer() => self.device.fail(unique, libc::ENOSYS),
                    IoMode::Small => {}
                    IoMode::Large => {
                        // Before the answer: the kernel may close it at once.
                        self.fs.opened(*node);
                        if !self.opened(unique, 0, FOPEN_KEEP_CACHE, &may_answer) {
                            self.fs.released(*node);
                        }
                    }
                }
            }),
            Operation::Opendir { node } => match self.fs.open_listing(*node, held) {
                Outcome::Miss(miss) => return Some(miss),
                Outcome::Ready(Ok(handle)) => {
                    if self.fs.changes() {
                        let flags = match handle {
                            0 => FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR,
                            _ => 0,
                        };
                        if !self.opened(unique, handle, flags, &may_answer) {
                            self.fs.release_listing(handle);
                        }
                    } else if may_answer() {
                        // As with OPEN: the kernel lists directories by itself from then on.
                        self.device.fail(unique, libc::ENOSYS);
                    }
                    Ok(())
                }
                Outcome::Ready(Err(error)) => Err(error),
            },
            Operation::Read { node, args } => {
                match self.fs.read(*node, args.offset, args.size.into(), held) {
                    Outcome::Miss(miss) => return Some(miss),
                    Outcome::Ready(Err(error)) => Err(error),
                    Outcome::Ready(Ok(slices)) => {
                        if !may_answer() {
                            return None;
                        }
                        if let Err(error) = self.device.answer_slices(unique, &slices) {
                            tracing::warn!(%error, "a file of the cache cannot be read");
                            let error = self.fs.unreadable(*node, &slices);
                            self.device.fail(unique, error.errno());
                        }
                        return None;
                    }
                }
            }
            Operation::Readdir { node, args, plus } => {
                match self.fs.listing(*node, args.handle, held) {
                    Outcome::Miss(miss) => return Some(miss),
                    Outcome::Ready(Err(error)) => Err(error),
                    Outcome::Ready(Ok(listing)) => {
                        if may_answer() {
                            self.list(unique, &listing, args, *plus);
                        }
                        return None;
                    }
                }
            }
            Operation::Getxattr { node, name, size } => match self.fs.getxattr(*node, name, held) {
                Outcome::Miss(miss) => return Some(miss),
                Outcome::Ready(value) => value.and_then(|value| {
                    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
                    let length = Getxattr {
                        size: len,
                        padding: 0,
                    };
                    let part = match *size {
                        0 => length.as_bytes(),
                        size if size < len => return Err(FsError::Range),
                        _ => &value,
                    };
                    if may_answer() {
                        self.device.answer(unique, &[part]);
                    }
                    Ok(())
                }),
            },
        };
        if let Err(error) = done
            && may_answer()
        {
            self.device.fail(unique, error.errno());
        }
        None
    }

    fn opened(&self, unique: u64, handle: u64, flags: u32, may_answer: impl Fn() -> bool) -> bool {
        let out = OpenOut {
            handle,
            flags,
            backing: 0,
        };
        may_answer() && self.device.answer(unique, &[out.as_bytes()])
    }

    fn list(&self, unique: u64, listing: &crate::fs::Listing, args: &ReadIn, plus: bool) {
        let capacity = args.size.min(init::MAX_TRANSFER) as usize;
        let mut out = Vec::with_capacity(capacity);
        let mut remembered = Vec::new();
        let mut offset = args.offset;
        while let Some(listed) = listing.at(offset) {
            let entry_len = if plus { size_of::<EntryOut>() } else { 0 };
            let len = (size_of::<Dirent>() + listed.name.len()).next_multiple_of(8);
            // What does not fit is not looked up, so the kernel never has to forget it.
            if out.len() + entry_len + len > capacity {
                break;
            }
            if plus {
                let entry = self.fs.remember(listing, &listed);
                remembered.extend(entry.map(|entry| entry.id));
                let entry = entry
                    .as_ref()
                    .map_or_else(EntryOut::default, EntryOut::from);
                out.extend_from_slice(entry.as_bytes());
            }
            let dirent = Dirent {
                inode: listed.inode,
                offset: listed.next,
                name_len: u32::try_from(listed.name.len()).unwrap_or_default(),
                kind: listed.kind.mode() >> 12,
            };
            let end = out.len() + len;
            out.extend_from_slice(dirent.as_bytes());
            out.extend_from_slice(listed.name);
            out.resize(end, 0);
            offset = listed.next;
        }
        if !self.device.answer(unique, &[&out]) {
            for id in remembered {
                self.fs.forget(id, 1);
            }
        }
    }

    /// Everything that never misses goes through fuse-backend-rs.
    fn rest(&self, message: &mut [u8], scratch: &mut [u8]) {
        let reader = Reader::<()>::from_fuse_buffer(FuseBuf::new(message));
        let writer = FuseDevWriter::<()>::new(self.device.fd(), scratch);
        let (Ok(reader), Ok(writer)) = (reader, writer) else {
            return;
        };
        if let Err(error) = self
            .server
            .handle_message(reader, writer.into(), None, None)
        {
            tracing::debug!(%error, "a request could not be answered");
        }
    }
}

/// The operation of a message; `None` when it is not one that can miss.
fn operation(header: &InHeader, body: &[u8]) -> Option<Result<Operation, FsError>> {
    let node = header.node;
    let operation = match header.opcode {
        opcode::LOOKUP => name(body).map(|name| Operation::Lookup {
            parent: node,
            name: name.to_vec(),
        }),
        opcode::OPEN => split::<OpenIn>(body).map(|(open, _)| Operation::Open {
            node,
            flags: open.flags,
        }),
        opcode::OPENDIR => Some(Operation::Opendir { node }),
        opcode::READ => split(body).map(|(args, _)| Operation::Read { node, args }),
        opcode::READDIR | opcode::READDIRPLUS => split(body).map(|(args, _)| Operation::Readdir {
            node,
            args,
            plus: header.opcode == opcode::READDIRPLUS,
        }),
        opcode::GETXATTR => split::<Getxattr>(body).and_then(|(args, rest)| {
            name(rest).map(|name| Operation::Getxattr {
                node,
                name: name.to_vec(),
                size: args.size,
            })
        }),
        _ => return None,
    };
    Some(operation.ok_or(FsError::Malformed))
}
