//! The view of a program: a mounted tree and system calls.

use std::{
    ffi::CString,
    fs,
    io::{self, ErrorKind},
    os::unix::{
        ffi::OsStrExt,
        fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    ptr,
};

use crate::view::{Entry, File, Result, Stat, StatFs, View};

pub struct Mounted {
    dir: PathBuf,
}

impl Mounted {
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
        }
    }

    fn at(&self, path: &Path) -> PathBuf {
        // Joined to nothing, the root would get a slash at its end.
        match path.as_os_str().is_empty() {
            true => self.dir.clone(),
            false => self.dir.join(path),
        }
    }
}

pub fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap()
}

/// The errno of a call that says -1.
fn last() -> i32 {
    errno(&io::Error::last_os_error())
}

fn checked(result: i32) -> Result<()> {
    match result {
        -1 => Err(last()),
        _ => Ok(()),
    }
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

impl View for Mounted {
    fn stat(&self, path: &Path) -> Result<Stat> {
        let found = fs::symlink_metadata(self.at(path)).map_err(|error| errno(&error))?;
        Ok(Stat {
            inode: found.ino(),
            mode: found.mode(),
            links: found.nlink(),
            owner: (found.uid(), found.gid()),
            size: found.size(),
            blocks: found.blocks(),
            block_size: found.blksize(),
            times: [found.atime(), found.mtime(), found.ctime()],
            nanoseconds: [found.atime_nsec(), found.mtime_nsec(), found.ctime_nsec()],
        })
    }

    fn list(&self, path: &Path, at_once: usize) -> Result<Vec<Entry>> {
        let path = c(&self.at(path));
        let (mut entries, mut position) = (Vec::new(), None);
        loop {
            let before = entries.len();
            // SAFETY: the string is valid, and the stream is used until it is closed, by this thread.
            let ended = unsafe {
                let stream = libc::opendir(path.as_ptr());
                if stream.is_null() {
                    return Err(last());
                }
                if let Some(position) = position {
                    libc::seekdir(stream, position);
                }
                let ended = read_some(stream, at_once, &mut entries);
                position = Some(libc::telldir(stream));
                libc::closedir(stream);
                ended?
            };
            if ended {
                return Ok(entries);
            }
            assert!(entries.len() > before || at_once < 3, "it does not advance");
        }
    }

    fn read_link(&self, path: &Path) -> Result<Vec<u8>> {
        let target = fs::read_link(self.at(path)).map_err(|error| errno(&error))?;
        Ok(target.into_os_string().into_encoded_bytes())
    }

    fn open<'v>(&'v self, path: &Path, flags: i32) -> Result<Box<dyn File + 'v>> {
        let mut options = fs::File::options();
        let access = flags & libc::O_ACCMODE;
        options.read(access != libc::O_WRONLY);
        options.write(access != libc::O_RDONLY);
        options.custom_flags(flags & !libc::O_ACCMODE);
        match options.open(self.at(path)) {
            Ok(file) => Ok(Box::new(file)),
            Err(error) => Err(errno(&error)),
        }
    }

    fn xattr(&self, path: &Path, name: &str, size: usize) -> Result<Vec<u8>> {
        let (path, name) = (c(&self.at(path)), CString::new(name).unwrap());
        let mut value = vec![0_u8; size];
        let buffer = value.as_mut_ptr().cast();
        // SAFETY: valid strings, and a buffer of the length that is given.
        let len = unsafe { libc::lgetxattr(path.as_ptr(), name.as_ptr(), buffer, size) };
        let len = usize::try_from(len).map_err(|_| last())?;
        value.resize(len, 0);
        Ok(value)
    }

    fn xattr_names(&self, path: &Path) -> Result<Vec<u8>> {
        let path = c(&self.at(path));
        let mut names = vec![0_u8; 4096];
        let buffer = names.as_mut_ptr().cast();
        // SAFETY: a valid string, and a buffer of the length that is given.
        let len = unsafe { libc::llistxattr(path.as_ptr(), buffer, names.len()) };
        names.truncate(usize::try_from(len).map_err(|_| last())?);
        Ok(names)
    }

    fn statfs(&self) -> Result<StatFs> {
        let found = rustix::fs::statvfs(&self.dir).map_err(rustix::io::Errno::raw_os_error)?;
        Ok(StatFs {
            files: found.f_files,
            size: found.f_blocks * found.f_frsize,
            available: found.f_bavail * found.f_frsize,
            longest_name: found.f_namemax,
        })
    }

    fn changes(&self) -> Vec<(&'static str, Result<()>)> {
        let (hello, new) = (self.dir.join("hello"), self.dir.join("new"));
        let (c_hello, c_new) = (c(&hello), c(&new));
        let opened = |flags: i32, path: &Path| {
            let mut options = fs::File::options();
            options.write(true).custom_flags(flags);
            options.open(path).map(|_| ())
        };
        let io = [
            ("open to write", opened(0, &hello)),
            ("open to append", opened(libc::O_APPEND, &hello)),
            ("open and truncate", opened(libc::O_TRUNC, &hello)),
            ("create", opened(libc::O_CREAT, &new)),
            (
                "create, or fail",
                opened(libc::O_CREAT | libc::O_EXCL, &new),
            ),
            ("a file without a name", opened(libc::O_TMPFILE, &self.dir)),
            ("mkdir", fs::create_dir(&new)),
            ("unlink", fs::remove_file(&hello)),
            ("rmdir", fs::remove_dir(self.dir.join("empty"))),
            ("rename", fs::rename(&hello, &new)),
            ("link", fs::hard_link(&hello, &new)),
            ("symlink", symlink("x", &new)),
            (
                "chmod",
                fs::set_permissions(&hello, fs::Permissions::from_mode(0o777)),
            ),
            ("chown", std::os::unix::fs::chown(&hello, Some(1), Some(1))),
        ];
        let mut results: Vec<_> = io
            .into_iter()
            .map(|(name, result)| (name, result.map_err(|error| errno(&error))))
            .collect();
        let value = ptr::from_ref(b"x").cast();
        // SAFETY: system calls with valid strings and a value of one byte.
        unsafe {
            let (hello, new) = (c_hello.as_ptr(), c_new.as_ptr());
            let name = c"user.new".as_ptr();
            results.push(("truncate", checked(libc::truncate(hello, 3))));
            results.push((
                "utimensat",
                checked(libc::utimensat(libc::AT_FDCWD, hello, ptr::null(), 0)),
            ));
            results.push(("mkfifo", checked(libc::mkfifo(new, 0o600))));
            results.push((
                "renameat2",
                checked(libc::renameat2(
                    libc::AT_FDCWD,
                    hello,
                    libc::AT_FDCWD,
                    new,
                    libc::RENAME_NOREPLACE,
                )),
            ));
            results.push((
                "setxattr",
                checked(libc::setxattr(hello, name, value, 1, 0)),
            ));
            results.push(("removexattr", checked(libc::removexattr(hello, name))));
        }
        results
    }

    fn drop_caches(&self) {
        fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
    }

    fn mountpoint(&self) -> Option<&Path> {
        Some(&self.dir)
    }
}

/// Whether the listing has ended.
///
/// # Safety
///
/// The stream is open, and nobody else uses it.
unsafe fn read_some(
    stream: *mut libc::DIR,
    at_once: usize,
    entries: &mut Vec<Entry>,
) -> Result<bool> {
    for _ in 0..at_once {
        // SAFETY: the stream is open, and what readdir gives is valid until the next call.
        let entry = unsafe {
            *libc::__errno_location() = 0;
            let entry = libc::readdir64(stream);
            if entry.is_null() {
                return match *libc::__errno_location() {
                    0 => Ok(true),
                    errno => Err(errno),
                };
            }
            let name = std::ffi::CStr::from_ptr((*entry).d_name.as_ptr());
            Entry {
                name: name.to_bytes().to_vec(),
                inode: (*entry).d_ino,
                kind: (*entry).d_type,
            }
        };
        if entry.name != b"." && entry.name != b".." {
            entries.push(entry);
        }
    }
    Ok(false)
}

impl File for fs::File {
    fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0xee; len];
        let mut read = 0;
        while read < len {
            match FileExt::read_at(self, &mut bytes[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(errno(&error)),
            }
        }
        bytes.truncate(read);
        Ok(bytes)
    }
}
