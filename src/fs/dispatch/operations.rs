use std::sync::{Arc, atomic::Ordering};

use zerocopy::IntoBytes;

use super::{
    Agreement, Dispatcher, FsError, Held, Miss, Reply, Request, Scratch, TakeReply,
    negotiation::{self, DIRECT_IO_ALLOW_MMAP, IoMode, Negotiated},
    opcode::Opcode,
    reply::Unreadable,
    wire::{
        BatchForgetIn, EntryOut, FOPEN_CACHE_DIR, FOPEN_DIRECT_IO, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH,
        ForgetIn, ForgetOne, GetattrOut, Getxattr, InitIn, InitOut, OpenIn, OpenOut, ReadIn,
        ReleaseIn, StatfsOut, split,
    },
};
use crate::fs::Outcome;

/// Unit of `statfs`, in bytes.
const STATFS_BLOCK: u32 = 4096;
/// The longest name, in bytes.
const NAME_MAX: u32 = 255;
/// Bytes of the largest file that is fetched and verified as a whole when it is opened, where nothing can be taken back from the
/// page cache. Larger ones are read past it the first time, a request for each read, which is dear for short reads.
const PROVEN_AT_OPEN: u64 = 4 << 20;
/// The same where what is read past the page cache cannot be mapped for sharing.
const PROVEN_TO_BE_MAPPED: u64 = 64 << 20;

/// What becomes of a run: it was answered, or what it missed.
type Run = Result<(), Failed>;

/// Why a run has not been answered.
enum Failed {
    Error(FsError),
    Miss(Miss),
}

impl From<FsError> for Failed {
    fn from(error: FsError) -> Self {
        Self::Error(error)
    }
}

/// The answer of an operation, or why there is none yet.
fn ready<T>(outcome: Outcome<T>) -> Result<T, Failed> {
    match outcome {
        Outcome::Ready(result) => Ok(result?),
        Outcome::Miss(miss) => Err(Failed::Miss(miss)),
    }
}

impl Dispatcher {
    /// Runs an operation and answers it, unless it misses: then nothing has been done, and it is run again with what was missed.
    pub(super) fn run(
        &self,
        opcode: Opcode,
        request: &Request<'_>,
        held: &Held,
        scratch: &mut Scratch,
        take: TakeReply<'_, '_>,
    ) -> Option<Miss> {
        let run = match opcode {
            Opcode::Lookup => self.lookup(request, held, take),
            Opcode::Getattr => self.getattr(request, take),
            Opcode::Readlink => self.readlink(request, take),
            Opcode::Open => self.open(request, held, take),
            Opcode::Read => self.read(request, held, take),
            Opcode::Statfs => {
                self.statfs(take);
                Ok(())
            }
            Opcode::Release => {
                self.release(request, take);
                Ok(())
            }
            Opcode::Getxattr => self.getxattr(request, held, take),
            Opcode::Listxattr => self.listxattr(request, take),
            Opcode::Opendir => self.opendir(request, held, take),
            Opcode::Readdir => self.readdir(request, held, false, scratch, take),
            Opcode::Readdirplus => self.readdir(request, held, true, scratch, take),
            Opcode::Releasedir => self.releasedir(request, take),
            // Taken before they come here.
            Opcode::Forget
            | Opcode::BatchForget
            | Opcode::Interrupt
            | Opcode::Init
            | Opcode::Destroy => Ok(()),
        };
        match run {
            Ok(()) => None,
            Err(Failed::Miss(miss)) => Some(miss),
            Err(Failed::Error(error)) => {
                if let Some(reply) = take() {
                    reply.error(&error);
                }
                None
            }
        }
    }

    pub(super) fn init(&self, request: &Request<'_>, reply: Reply<'_>) {
        let Some((kernel, rest)) = split::<InitIn>(request.arguments) else {
            return reply.errno(libc::EPROTO);
        };
        let flags2 = split::<u32>(rest).map_or(0, |(flags2, _)| flags2);
        let agreement = match negotiation::agree(&kernel, flags2, self.options.io_mode) {
            Negotiated::Answer {
                minor,
                flags,
                max_readahead,
            } => {
                let flags_text = format!("{flags:#x}");
                tracing::debug!(kernel.minor, flags = flags_text, "agreed with the kernel");
                let maps_direct_io = flags & DIRECT_IO_ALLOW_MMAP != 0;
                self.maps_direct_io.store(maps_direct_io, Ordering::Relaxed);
                let answer = InitOut::new(minor, flags, max_readahead);
                match reply.bytes(&[answer.as_bytes()]) {
                    true => Agreement::Reached,
                    false => Agreement::Failed,
                }
            }
            Negotiated::OtherMajor => {
                reply.bytes(&[InitOut::new(0, 0, 0).as_bytes()]);
                return;
            }
            Negotiated::TooOld => {
                tracing::error!(kernel.major, kernel.minor, "this kernel's FUSE is too old");
                reply.errno(libc::EPROTO);
                Agreement::Failed
            }
        };
        self.agreement.send_replace(agreement);
    }

    pub(super) fn forget(&self, request: &Request<'_>) {
        if let Ok(ForgetIn { lookups }) = request.arguments() {
            self.take_back([(request.header.node, lookups)]);
        }
    }

    /// Takes back lookups.
    pub(super) fn take_back(&self, forgotten: impl IntoIterator<Item = (u64, u64)>) {
        if self.fs.forget(forgotten) {
            let fs = Arc::clone(&self.fs);
            self.runtime.spawn_blocking(move || fs.give_back_memory());
        }
    }

    pub(super) fn forget_many(&self, request: &Request<'_>) {
        let Ok(BatchForgetIn { count, .. }) = request.arguments() else {
            return;
        };
        let mut rest = request.payload;
        let forgotten = std::iter::from_fn(|| {
            let (ForgetOne { node, lookups }, after) = split(rest)?;
            rest = after;
            Some((node, lookups))
        });
        self.take_back(forgotten.take(count as usize));
    }

    fn lookup(&self, request: &Request<'_>, held: &Held, take: TakeReply<'_, '_>) -> Run {
        let parent = request.header.node;
        let name = request.name()?;
        let entry = ready(self.fs.lookup(parent, name, held))?;
        let out = entry
            .as_ref()
            .map_or_else(|| EntryOut::absent(self.fs.ttl(parent)), EntryOut::from);
        let taken = take().is_some_and(|reply| reply.bytes(&[out.as_bytes()]));
        if let Some(entry) = entry {
            let caller = request.header.pid;
            self.credit.looked_up(caller, parent, entry.attr.kind);
            if !taken {
                self.take_back([(entry.id, 1)]);
            }
        }
        Ok(())
    }

    fn getattr(&self, request: &Request<'_>, take: TakeReply<'_, '_>) -> Run {
        let attr = self.fs.getattr(request.header.node)?;
        answer(take, &[GetattrOut::from(&attr).as_bytes()]);
        Ok(())
    }

    fn readlink(&self, request: &Request<'_>, take: TakeReply<'_, '_>) -> Run {
        let target = self.fs.readlink(request.header.node)?;
        answer(take, &[&target]);
        Ok(())
    }

    fn open(&self, request: &Request<'_>, held: &Held, take: TakeReply<'_, '_>) -> Run {
        let node = request.header.node;
        let OpenIn { flags, .. } = request.arguments()?;
        self.fs.open(node, flags)?;
        match self.options.io_mode {
            // The first ENOSYS has the kernel open files by itself from then on.
            IoMode::Small => {
                if let Some(reply) = take() {
                    reply.errno(libc::ENOSYS);
                }
            }
            mode @ (IoMode::Large | IoMode::Direct) => {
                // What turns out to be wrong later can be taken back by a notification, or must not be kept.
                let limit = match self.maps_direct_io.load(Ordering::Relaxed) {
                    true => PROVEN_AT_OPEN,
                    false => PROVEN_TO_BE_MAPPED,
                };
                let kept = mode == IoMode::Large
                    && (self.transport.capabilities().notifications
                        || ready(self.fs.is_proven(node, limit, held))?);
                let flags = match kept {
                    true => FOPEN_NOFLUSH | FOPEN_KEEP_CACHE,
                    false => FOPEN_NOFLUSH | FOPEN_DIRECT_IO,
                };
                // Before the answer: the kernel may close it at once.
                self.fs.opened(node);
                if !opened(take, 0, flags) {
                    self.fs.released(node);
                }
            }
        }
        Ok(())
    }

    fn opendir(&self, request: &Request<'_>, held: &Held, take: TakeReply<'_, '_>) -> Run {
        let handle = ready(self.fs.open_listing(request.header.node, held))?;
        if self.fs.changes() {
            let flags = match handle {
                0 => FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR,
                _ => 0,
            };
            if !opened(take, handle, flags) {
                self.fs.release_listing(handle);
            }
        } else if let Some(reply) = take() {
            // As with OPEN: the kernel lists directories by itself from then on.
            reply.errno(libc::ENOSYS);
        }
        Ok(())
    }

    fn read(&self, request: &Request<'_>, held: &Held, take: TakeReply<'_, '_>) -> Run {
        let node = request.header.node;
        let args: ReadIn = request.arguments()?;
        let len = args.size.min(self.transport.capabilities().max_transfer);
        let slices = ready(self.fs.read(node, args.offset, len.into(), held))?;
        if let Some(reply) = take()
            && let Err(Unreadable(reply)) = reply.slices(&slices)
        {
            tracing::warn!(node, "a file of the cache cannot be read");
            reply.error(&self.fs.unreadable(node, &slices));
        }
        Ok(())
    }

    fn readdir(
        &self,
        request: &Request<'_>,
        held: &Held,
        plus: bool,
        scratch: &mut Scratch,
        take: TakeReply<'_, '_>,
    ) -> Run {
        let args: ReadIn = request.arguments()?;
        let ReadIn { handle, offset, .. } = args;
        let listing = ready(self.fs.listing(request.header.node, handle, offset, held))?;
        self.list(request, &listing, &args, plus, scratch, take);
        Ok(())
    }

    fn release(&self, request: &Request<'_>, take: TakeReply<'_, '_>) {
        self.fs.released(request.header.node);
        answer(take, &[]);
    }

    fn releasedir(&self, request: &Request<'_>, take: TakeReply<'_, '_>) -> Run {
        let ReleaseIn { handle, .. } = request.arguments()?;
        self.fs.release_listing(handle);
        answer(take, &[]);
        Ok(())
    }

    fn statfs(&self, take: TakeReply<'_, '_>) {
        let totals = self.fs.totals();
        let out = StatfsOut {
            blocks: totals.content.div_ceil(STATFS_BLOCK.into()),
            files: totals.entries,
            block_size: STATFS_BLOCK,
            fragment_size: STATFS_BLOCK,
            name_len: NAME_MAX,
            ..StatfsOut::default()
        };
        answer(take, &[out.as_bytes()]);
    }

    fn getxattr(&self, request: &Request<'_>, held: &Held, take: TakeReply<'_, '_>) -> Run {
        let Getxattr { size, .. } = request.arguments()?;
        let name = request.name()?;
        let value = ready(self.fs.getxattr(request.header.node, name, held))?;
        answer_sized(&value, size, take)
    }

    fn listxattr(&self, request: &Request<'_>, take: TakeReply<'_, '_>) -> Run {
        let Getxattr { size, .. } = request.arguments()?;
        let names = self.fs.listxattr(request.header.node)?;
        answer_sized(&names, size, take)
    }
}

fn answer(take: TakeReply<'_, '_>, parts: &[&[u8]]) -> bool {
    take().is_some_and(|reply| reply.bytes(parts))
}

fn opened(take: TakeReply<'_, '_>, handle: u64, flags: u32) -> bool {
    let out = OpenOut {
        handle,
        flags,
        backing: 0,
    };
    answer(take, &[out.as_bytes()])
}

/// Answers a value to a caller with a buffer of `size` bytes, or its length where that is 0.
fn answer_sized(value: &[u8], size: u32, take: TakeReply<'_, '_>) -> Run {
    let len = u32::try_from(value.len()).map_err(|_| FsError::Range)?;
    match size {
        0 => {
            let length = Getxattr {
                size: len,
                padding: 0,
            };
            answer(take, &[length.as_bytes()]);
        }
        size if size < len => return Err(FsError::Range.into()),
        _ => {
            answer(take, &[value]);
        }
    }
    Ok(())
}
