use super::wire::{InitIn, InitOut};

/// The protocol that this code was written against. Kernels before 7.31 lack what a mount here relies on.
const MAJOR: u32 = 7;
const MINOR: u32 = 45;
const OLDEST_MINOR: u32 = 31;

/// Bytes of the largest request or answer, without headers.
pub(in crate::fs) const MAX_TRANSFER: u32 = 1 << 20;
const MAX_PAGES: u16 = 256;
/// Readaheads under way at once. At the kernel's default of 12, twelve that are stuck stop all readahead.
const MAX_BACKGROUND: u16 = 1024;
const CONGESTION: u16 = 768;

const ASYNC_READ: u64 = 1 << 0;
const DO_READDIRPLUS: u64 = 1 << 13;
const NO_OPEN_SUPPORT: u64 = 1 << 17;
const PARALLEL_DIROPS: u64 = 1 << 18;
const MAX_PAGES_FLAG: u64 = 1 << 22;
const CACHE_SYMLINKS: u64 = 1 << 23;
const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
const INIT_EXT: u64 = 1 << 30;
const HAS_EXPIRE_ONLY: u64 = 1 << 35;
/// What is opened with `DIRECT_IO` can be mapped for sharing all the same.
pub(super) const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
const NO_EXPORT_SUPPORT: u64 = 1 << 38;

/// What we want, where the kernel offers it. Never `WRITEBACK_CACHE`; not `READDIRPLUS_AUTO`, since it makes programs that list first
/// and look afterwards (`du`, `find -size`) look nearly everything up one by one: see `lookup_credit`; not `HAS_RESEND` as long as
/// nobody takes a connection over.
const WANTED: u64 = ASYNC_READ
    | DO_READDIRPLUS
    | PARALLEL_DIROPS
    | MAX_PAGES_FLAG
    | CACHE_SYMLINKS
    | NO_OPENDIR_SUPPORT
    | EXPLICIT_INVAL_DATA
    | INIT_EXT
    | HAS_EXPIRE_ONLY
    | DIRECT_IO_ALLOW_MMAP
    | NO_EXPORT_SUPPORT;

/// How files are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoMode {
    /// The kernel opens files by itself: best for many small files.
    #[default]
    Small,
    /// Each open is answered: what passing large files through to the kernel builds on.
    Large,
    /// Each open is answered, and the kernel keeps nothing of what is read.
    Direct,
}

/// What is answered to INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Negotiated {
    Answer {
        minor: u32,
        flags: u64,
        max_readahead: u32,
    },
    /// The kernel has a newer major version: it is told ours and asks again.
    OtherMajor,
    TooOld,
}

/// `flags2` is the second half of the kernel's flags, 0 where it sent none.
pub(super) const fn agree(kernel: &InitIn, flags2: u32, mode: IoMode) -> Negotiated {
    if kernel.major > MAJOR {
        return Negotiated::OtherMajor;
    }
    if kernel.major < MAJOR || kernel.minor < OLDEST_MINOR {
        return Negotiated::TooOld;
    }
    let mut offered = kernel.flags as u64;
    if offered & INIT_EXT != 0 {
        offered |= (flags2 as u64) << 32;
    }
    let wanted = match mode {
        IoMode::Small => WANTED | NO_OPEN_SUPPORT,
        IoMode::Large | IoMode::Direct => WANTED,
    };
    Negotiated::Answer {
        minor: if kernel.minor < MINOR {
            kernel.minor
        } else {
            MINOR
        },
        flags: offered & wanted,
        max_readahead: kernel.max_readahead,
    }
}

impl InitOut {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the flags are sent in two halves"
    )]
    pub(super) const fn new(minor: u32, flags: u64, max_readahead: u32) -> Self {
        Self {
            major: MAJOR,
            minor,
            max_readahead,
            flags: flags as u32,
            max_background: MAX_BACKGROUND,
            congestion_threshold: CONGESTION,
            max_write: MAX_TRANSFER,
            time_granularity: 1,
            max_pages: MAX_PAGES,
            map_alignment: 0,
            flags2: (flags >> 32) as u32,
            max_stack_depth: 0,
            request_timeout: 0,
            unused: [0; 11],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: InitIn = InitIn {
        major: 7,
        minor: 44,
        max_readahead: 131_072,
        flags: u32::MAX,
    };

    #[test]
    fn only_what_is_offered_and_never_writeback() {
        let Negotiated::Answer { minor, flags, .. } = agree(&KERNEL, u32::MAX, IoMode::Small)
        else {
            panic!("refused");
        };
        assert_eq!((minor, flags), (44, WANTED | NO_OPEN_SUPPORT));
        assert_eq!(flags & (1 << 16), 0);
        let poor = InitIn { flags: 1, ..KERNEL };
        let answer = agree(&poor, u32::MAX, IoMode::Large);
        assert!(matches!(
            answer,
            Negotiated::Answer {
                flags: ASYNC_READ,
                ..
            }
        ));
    }

    #[test]
    fn other_versions() {
        let newer = InitIn { major: 8, ..KERNEL };
        assert_eq!(agree(&newer, 0, IoMode::Small), Negotiated::OtherMajor);
        let older = InitIn {
            minor: 30,
            ..KERNEL
        };
        assert_eq!(agree(&older, 0, IoMode::Small), Negotiated::TooOld);
    }
}
