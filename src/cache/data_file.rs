use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io,
    marker::PhantomData,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::FileExt,
    },
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
};

use memmap2::{MmapOptions, MmapRaw};

use super::{index::FileRow, stamp::Stamp};
use crate::model::Digest;

/// A data file that is open and mapped. Its name may be gone; what was written stays readable for as long as somebody
/// holds this.
#[derive(Debug)]
pub struct DataFile {
    number: u64,
    file: File,
    /// Never read by this process: a page that the disk does not give is SIGBUS, and another process may write to the file. The
    /// kernel is pointed at it, which answers EFAULT for such a page.
    map: MmapRaw,
    /// Last use, seconds since 1970; 0 where it was opened only, which is none.
    used_at: AtomicU64,
    /// Above 0 while this process writes to the file, when a changed stamp means nothing.
    writing: AtomicU32,
    /// The lock is held for a look at the file's metadata or for a map operation, never while its content is read.
    verified: Mutex<Verified>,
}

/// A part of a mapping, for system calls to read. Invariant: `len` bytes from `start` are mapped for as long as the file is held.
#[derive(Debug, Clone, Copy)]
pub struct Mapped<'a> {
    start: *const u8,
    len: usize,
    _file: PhantomData<&'a DataFile>,
}

impl Mapped<'_> {
    /// As an argument of `writev(2)`.
    #[must_use]
    pub const fn iovec(&self) -> libc::iovec {
        libc::iovec {
            iov_base: self.start.cast_mut().cast(),
            iov_len: self.len,
        }
    }
}

/// Which chunks are known to be right.
#[derive(Debug)]
struct Verified {
    /// What is known holds for this state of the file.
    stamp: Stamp,
    /// All chunks that the index names are right, and those that this process wrote.
    all: bool,
    /// Offset and size of single chunks that are right.
    chunks: HashMap<u64, u64>,
    /// Offsets of chunks that were found damaged. Nothing is written there again.
    damaged: HashSet<u64>,
}

/// What may be done with a chunk in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// Its bytes are known to be right.
    Verified,
    /// Its bytes must be verified first.
    Unknown,
    /// The file was evicted; nothing new may be served from it.
    Gone,
}

impl DataFile {
    /// Maps the file of a row. One that is not as long as its row says is `InvalidData`.
    pub(super) fn new(file: File, row: &FileRow) -> io::Result<Self> {
        let (stamp, _) = Stamp::of(&file)?;
        if file.metadata()?.len() != row.length {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let map = MmapOptions::new().map_raw_read_only(&file)?;
        let trusted = row.stamp.as_deref() == Some(&stamp.to_bytes());
        Ok(Self {
            number: row.number,
            file,
            map,
            used_at: AtomicU64::new(0),
            writing: AtomicU32::new(0),
            verified: Mutex::new(Verified {
                stamp,
                all: trusted,
                chunks: HashMap::new(),
                damaged: HashSet::new(),
            }),
        })
    }

    /// For reading; what was written never changes.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Where `len` bytes from `offset` are mapped, `None` when the file does not have them.
    #[must_use]
    pub fn mapped(&self, offset: u64, len: u64) -> Option<Mapped<'_>> {
        let end = offset.checked_add(len)?;
        if end > self.map.len() as u64 {
            return None;
        }
        let offset = usize::try_from(offset).ok()?;
        Some(Mapped {
            start: self.map.as_ptr().wrapping_add(offset),
            len: usize::try_from(len).ok()?,
            _file: PhantomData,
        })
    }

    /// Copies bytes out, by `pread`.
    pub fn read_exact_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, offset)
    }

    /// Notes a use; `now` in seconds since 1970.
    pub(super) fn touch(&self, now: u64) {
        self.used_at.store(now, Ordering::Relaxed);
    }

    pub(super) fn used_at(&self) -> u64 {
        self.used_at.load(Ordering::Relaxed)
    }

    /// Whether a chunk may be served. One `fstat`, so that a change of the file by anybody else is seen before the next
    /// byte is served from it.
    pub(super) fn trust(&self, offset: u64, size: u64) -> Trust {
        let writing = self.writing.load(Ordering::Acquire) > 0;
        let now = Stamp::of(&self.file);
        let mut verified = self.verified();
        match now {
            Ok((_, false)) => return Trust::Gone,
            Ok((stamp, true)) if stamp != verified.stamp && !writing => {
                // The writer may have finished between the two looks, and it brings the stamp up to date itself.
                if self.writing.load(Ordering::Acquire) == 0 {
                    verified.forget(stamp);
                }
            }
            Ok(_) => {}
            Err(_) => return Trust::Unknown,
        }
        if verified.has(offset, size) {
            Trust::Verified
        } else {
            Trust::Unknown
        }
    }

    /// Whether a chunk was known to be right when the file was last looked at.
    pub(super) fn is_verified(&self, offset: u64, size: u64) -> bool {
        self.verified().has(offset, size)
    }

    /// Reads a chunk and compares it with its digest.
    pub(super) fn verify(&self, digest: Digest, offset: u64, size: u64) -> io::Result<bool> {
        let before = Stamp::of(&self.file)?.0;
        let mut hasher = blake3::Hasher::new();
        let step = 1 << 20;
        let mut buffer = vec![0; usize::try_from(size.min(step)).map_err(io::Error::other)?];
        let mut done = 0;
        while done < size {
            let len = (size - done).min(step);
            let part = &mut buffer[..usize::try_from(len).map_err(io::Error::other)?];
            self.file.read_exact_at(part, offset + done)?;
            hasher.update(part);
            done += len;
        }
        let right = Digest::from(hasher.finalize()) == digest;
        if !right {
            self.verified().damaged.insert(offset);
        }
        if right {
            let mut verified = self.verified();
            if verified.stamp == before {
                verified.add(offset, size);
            }
        }
        Ok(right)
    }

    /// Declares all chunks of a file right in which nothing is but what this process will write.
    pub(super) fn trust_all(&self) {
        self.verified().all = true;
    }

    /// Whether so many chunks have been verified one by one that a look at all of them is worth it.
    pub(super) fn may_be_whole(&self) -> bool {
        let verified = self.verified();
        !verified.all && !verified.chunks.is_empty()
    }

    /// Declares all chunks right if each of `chunks` (offset and size: all that the index names) has been verified one
    /// by one under the present stamp.
    pub(super) fn trust_whole(&self, chunks: &[(u64, u64)]) -> bool {
        let mut verified = self.verified();
        let known = |(offset, size): &(u64, u64)| verified.chunks.get(offset) == Some(size);
        verified.all = verified.all || chunks.iter().all(known);
        verified.all
    }

    /// To be called before this process writes to the file; [`DataFile::end_writing`] must follow.
    pub(super) fn begin_writing(&self) -> io::Result<()> {
        let (now, _) = Stamp::of(&self.file)?;
        let mut verified = self.verified();
        if now != verified.stamp {
            verified.forget(now);
        }
        self.writing.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// `written`: offsets and sizes of the chunks that were written.
    pub(super) fn end_writing(&self, written: impl IntoIterator<Item = (u64, u64)>) {
        let now = Stamp::of(&self.file);
        let mut verified = self.verified();
        if let Ok((stamp, _)) = now {
            verified.stamp = stamp;
        }
        for (offset, size) in written {
            verified.add(offset, size);
        }
        self.writing.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether it was evicted.
    pub(super) fn is_gone(&self) -> bool {
        Stamp::of(&self.file).is_ok_and(|(_, is_there)| !is_there)
    }

    /// Has every chunk verified again before it is served.
    pub(super) fn distrust(&self) {
        let mut verified = self.verified();
        let stamp = verified.stamp;
        verified.forget(stamp);
    }

    /// The stamp to store with the file's row: `None` while not all of it is known to be right.
    pub(super) fn stamp(&self) -> Option<Vec<u8>> {
        let verified = self.verified();
        let all = verified.all && verified.damaged.is_empty();
        all.then(|| verified.stamp.to_bytes())
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, Verified> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verified {
    fn has(&self, offset: u64, size: u64) -> bool {
        !self.damaged.contains(&offset) && (self.all || self.chunks.get(&offset) == Some(&size))
    }

    fn forget(&mut self, stamp: Stamp) {
        self.stamp = stamp;
        self.all = false;
        self.chunks.clear();
    }

    fn add(&mut self, offset: u64, size: u64) {
        self.chunks.insert(offset, size);
    }
}
