//! Evicted files. Each goes aside and is unlinked once nobody has it open any more, in any process: until then it takes up room, which
//! the quota counts.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, Dir, Mode, OFlags},
    io::Errno,
};

/// The directory that they are in, beside that of the data files.
const NAME: &str = "../condemned";
/// `fcntl(2)`: the signal that says that somebody wants a leased file. Linux has this number everywhere, and `libc` no name for it.
const F_SETSIG: libc::c_int = 10;
/// Of a condemned file: its owner cannot read it, which whoever has it open sees.
const MODE: Mode = Mode::WUSR;

/// A process closes what was evicted within so many seconds, unless it is stopped.
const SOON: u64 = 10;

/// Bytes that evicted files take up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Those that will be free in a moment.
    pub(super) passing: u64,
    /// Those that somebody has had open for long.
    pub(super) staying: u64,
}

/// The evicted files of a cache.
#[derive(Debug)]
pub(super) struct Condemned {
    dir: OwnedFd,
}

impl Condemned {
    /// Of the cache whose data files are in `data`. `None` where the directory is not there and cannot be made.
    pub(super) fn open(data: BorrowedFd<'_>) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = || rustix::fs::openat(data, NAME, flags, Mode::empty());
        let dir = open().or_else(|_| {
            rustix::fs::mkdirat(data, NAME, Mode::RWXU)?;
            open()
        });
        Some(Self { dir: dir.ok()? })
    }

    /// Whether a file with this mode is condemned.
    pub(super) const fn is_mode(mode: u32) -> bool {
        mode & libc::S_IRUSR == 0
    }

    /// Puts a file of `data` aside.
    pub(super) fn take(&self, data: BorrowedFd<'_>, name: &str) -> io::Result<()> {
        rustix::fs::renameat(data, name, &self.dir, name)?;
        Ok(rustix::fs::chmodat(
            &self.dir,
            name,
            MODE,
            AtFlags::empty(),
        )?)
    }

    /// Unlinks those that nobody has open, and says what the others take up. A file on whose filesystem, or to whose owner, the
    /// kernel gives no leases goes at once.
    pub(super) fn reap(&self) -> io::Result<Held> {
        let mut held = Held::default();
        for entry in Dir::read_from(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || self.reap_one(name) == Ok(()) {
                continue;
            }
            // Somebody has it open, or looks at it himself just now.
            let Ok(stat) = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let bytes = u64::try_from(stat.st_blocks).unwrap_or_default() * 512;
            let since = u64::try_from(stat.st_ctime).unwrap_or_default();
            match super::now().abs_diff(since) < SOON {
                true => held.passing += bytes,
                false => held.staying += bytes,
            }
        }
        Ok(held)
    }

    fn reap_one(&self, name: &std::ffi::CStr) -> Result<(), Errno> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) if is_held(file.as_fd()) => {
                // Whoever put it here may have died before it could say so to those who have it open.
                if !Self::is_mode(rustix::fs::fstat(&file)?.st_mode) {
                    rustix::fs::fchmod(&file, MODE)?;
                }
                Err(Errno::AGAIN)
            }
            Ok(_) | Err(Errno::ACCESS) => rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Whether anybody else has a descriptor or a mapping of the file: the kernel gives a write lease to no one then. The lease ends with the
/// descriptor.
fn is_held(file: BorrowedFd<'_>) -> bool {
    // Whoever opens the file meanwhile has the kernel send a signal, which is to end nobody: by default, this one is ignored.
    // SAFETY: plain calls on a descriptor that lives until they return.
    let leased = unsafe {
        libc::fcntl(file.as_raw_fd(), F_SETSIG, libc::SIGURG);
        libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK)
    };
    leased < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EAGAIN)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        os::unix::fs::MetadataExt,
    };

    use super::*;

    #[test]
    fn a_file_goes_when_nobody_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let path = data.join("one");
        let data = File::open(&data).unwrap();
        let condemned = Condemned::open(data.as_fd()).unwrap();
        fs::write(&path, [1; 10_000]).unwrap();
        let reader = File::open(&path).unwrap();
        let map = memmap2::MmapOptions::new()
            .map_raw_read_only(&reader)
            .unwrap();
        condemned.take(data.as_fd(), "one").unwrap();
        assert!(Condemned::is_mode(reader.metadata().unwrap().mode()));
        assert_eq!(condemned.reap().unwrap().passing, 12_288);
        drop(reader);
        assert_eq!(condemned.reap().unwrap().passing, 12_288, "it is mapped");
        drop(map);
        assert_eq!(condemned.reap().unwrap(), Held::default());
        let aside = dir.path().join("condemned");
        assert_eq!(fs::read_dir(aside).unwrap().count(), 0);
    }
}
