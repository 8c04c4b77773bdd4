//! What becomes of each operation of the protocol, by its number in `include/uapi/linux/fuse.h` (7.45, Linux 6.18).

use super::wire::{BatchForgetIn, ForgetIn, Getxattr, InterruptIn, OpenIn, ReadIn, ReleaseIn};

/// An operation that is answered, or taken without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    Lookup,
    Forget,
    Getattr,
    Readlink,
    Open,
    Read,
    Statfs,
    Release,
    Getxattr,
    Listxattr,
    Init,
    Opendir,
    Readdir,
    Releasedir,
    Interrupt,
    Destroy,
    BatchForget,
    Readdirplus,
}

/// Numbers of operations are below this, but for one that is never asked.
pub(super) const NUMBERS: usize = 64;

/// Names of the operations that are counted.
pub(super) const NAMES: [(u32, &str); 18] = [
    (1, "LOOKUP"),
    (2, "FORGET"),
    (3, "GETATTR"),
    (5, "READLINK"),
    (14, "OPEN"),
    (15, "READ"),
    (17, "STATFS"),
    (18, "RELEASE"),
    (22, "GETXATTR"),
    (23, "LISTXATTR"),
    (26, "INIT"),
    (27, "OPENDIR"),
    (28, "READDIR"),
    (29, "RELEASEDIR"),
    (36, "INTERRUPT"),
    (38, "DESTROY"),
    (42, "BATCH_FORGET"),
    (44, "READDIRPLUS"),
];

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Handling {
    Run(Opcode),
    /// Answered with an errno.
    Refused(i32),
    /// There is nothing to be done and nothing to be answered.
    Ignored,
}

/// Whether the kernel waits for an answer.
pub(super) const fn has_answer(opcode: u32) -> bool {
    match handling(opcode) {
        Handling::Run(Opcode::Forget | Opcode::BatchForget | Opcode::Interrupt)
        | Handling::Ignored => false,
        Handling::Run(_) | Handling::Refused(_) => true,
    }
}

/// Bytes of the structure that an operation has before its payload; 0 where nothing of it is read.
pub(super) const fn arguments_len(opcode: u32) -> usize {
    match handling(opcode) {
        Handling::Run(opcode) => match opcode {
            Opcode::Lookup
            | Opcode::Readlink
            | Opcode::Statfs
            | Opcode::Destroy
            | Opcode::Getattr => 0,
            Opcode::Forget => size_of::<ForgetIn>(),
            Opcode::Open | Opcode::Opendir => size_of::<OpenIn>(),
            Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => size_of::<ReadIn>(),
            Opcode::Release | Opcode::Releasedir => size_of::<ReleaseIn>(),
            Opcode::Getxattr | Opcode::Listxattr => size_of::<Getxattr>(),
            Opcode::Interrupt => size_of::<InterruptIn>(),
            Opcode::BatchForget => size_of::<BatchForgetIn>(),
            // It has grown with each version.
            Opcode::Init => usize::MAX,
        },
        Handling::Refused(_) | Handling::Ignored => 0,
    }
}

/// An operation that is not known is answered with ENOSYS, as newer kernels expect.
pub(super) const fn handling(opcode: u32) -> Handling {
    use Handling::{Ignored, Refused, Run};
    match opcode {
        1 => Run(Opcode::Lookup),
        2 => Run(Opcode::Forget),
        3 => Run(Opcode::Getattr),
        5 => Run(Opcode::Readlink),
        14 => Run(Opcode::Open),
        15 => Run(Opcode::Read),
        17 => Run(Opcode::Statfs),
        18 => Run(Opcode::Release),
        22 => Run(Opcode::Getxattr),
        23 => Run(Opcode::Listxattr),
        26 => Run(Opcode::Init),
        27 => Run(Opcode::Opendir),
        28 => Run(Opcode::Readdir),
        29 => Run(Opcode::Releasedir),
        36 => Run(Opcode::Interrupt),
        38 => Run(Opcode::Destroy),
        42 => Run(Opcode::BatchForget),
        44 => Run(Opcode::Readdirplus),
        // SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, WRITE, SETXATTR, REMOVEXATTR, CREATE, RENAME2 and TMPFILE change
        // something; so do FALLOCATE and COPY_FILE_RANGE in both its forms, of which the destination is here.
        4 | 6 | 8 | 9 | 10 | 11 | 12 | 13 | 16 | 21 | 24 | 35 | 43 | 45 | 47 | 51 | 53 => {
            Refused(libc::EROFS)
        }
        // ENOSYS has the kernel do by itself what it would ask for, from then on:
        // FSYNC, FSYNCDIR, FLUSH: nothing is ever written, so a close or a sync has nothing to wait for.
        // GETLK, SETLK, SETLKW: locks are local to this machine (they are not negotiated).
        // ACCESS: everybody who gets in may read everything; execute bits and EROFS are the kernel's to check.
        // POLL: a regular file is always ready. LSEEK: files have no holes, as far as anybody can see. STATX: there is no
        // birth time, so GETATTR says all.
        // SYNCFS: see FSYNC; the kernel asks virtiofs only. BMAP: there is no block device. SETUPMAPPING, REMOVEMAPPING: no DAX
        // window. CUSE_INIT: no character device.
        20 | 30 | 25 | 31 | 32 | 33 | 34 | 40 | 46 | 52 | 50 | 37 | 48 | 49 | 4096 => {
            Refused(libc::ENOSYS)
        }
        // IOCTL: a file has none; ENOTTY is what callers look for.
        39 => Refused(libc::ENOTTY),
        // NOTIFY_REPLY: answers a notification that is never sent.
        41 => Ignored,
        _ => Refused(libc::ENOSYS),
    }
}
