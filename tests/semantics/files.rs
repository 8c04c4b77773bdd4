//! Files: mapping, direct reads, locks, handles, seeking in directories.

use std::{
    ffi::CString,
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, MetadataExt, OpenOptionsExt},
        },
    },
    path::Path,
};

use bytes::Bytes;
use castore::{
    model::{Directory, Entry, Name, Node, SizeRule, Target},
    remote::{self, Policy},
};

use crate::{
    mounted,
    support::{Scratch, tree},
};

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

/// A mapping lives on when its file is closed, shared and private ones alike; a shared one cannot be made writable.
#[test]
#[ignore = "needs /dev/fuse"]
fn mappings() {
    let (_scratch, mount) = mounted(&[]);
    let expected = tree::noise(3, 5_000_001);
    for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
        let file = File::open(mount.at("large")).unwrap();
        let map = |protection| {
            // SAFETY: a new mapping, at an address of the kernel's choice.
            unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    expected.len(),
                    protection,
                    flags,
                    file.as_raw_fd(),
                    0,
                )
            }
        };
        let writable = map(libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!(writable == libc::MAP_FAILED, flags == libc::MAP_SHARED);
        if writable != libc::MAP_FAILED {
            // SAFETY: it was mapped with this length, and nobody else has it.
            assert_eq!(unsafe { libc::munmap(writable, expected.len()) }, 0);
        }
        let mapped = map(libc::PROT_READ);
        assert_ne!(mapped, libc::MAP_FAILED);
        drop(file);
        // SAFETY: the mapping has this length and nobody writes to the file.
        let bytes = unsafe { std::slice::from_raw_parts(mapped.cast::<u8>(), expected.len()) };
        assert!(bytes == expected);
        // SAFETY: `bytes` is not used any more.
        assert_eq!(unsafe { libc::munmap(mapped, expected.len()) }, 0);
    }
    mount.stop();
}

/// `O_DIRECT` takes any offset, length and address.
#[test]
#[ignore = "needs /dev/fuse"]
fn direct_reads_of_any_alignment() {
    let (_scratch, mount) = mounted(&[]);
    let file = File::options()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(mount.at("large"))
        .unwrap();
    let expected = tree::noise(3, 5_000_001);
    for (offset, len) in [(0, 1), (1, 4097), (4_999_000, 5000), (131_071, 262_147)] {
        let mut buffer = vec![0; len + 1];
        let read = file.read_at(&mut buffer[1..], offset as u64).unwrap();
        let end = (offset + len).min(expected.len());
        assert_eq!(buffer[1..=read], expected[offset..end]);
    }
    mount.stop();
}

/// Locks of both kinds work between the processes of this machine.
#[test]
#[ignore = "needs /dev/fuse"]
fn locks_are_of_this_machine() {
    let (_scratch, mount) = mounted(&[]);
    let open = || File::open(mount.at("hello")).unwrap();
    let (first, second) = (open(), open());
    let flock = |file: &File, operation| {
        // SAFETY: a system call with a valid descriptor.
        unsafe { libc::flock(file.as_raw_fd(), operation | libc::LOCK_NB) }
    };
    assert_eq!(flock(&first, libc::LOCK_EX), 0);
    assert_eq!(flock(&second, libc::LOCK_EX), -1);
    assert_eq!(flock(&first, libc::LOCK_UN), 0);
    assert_eq!(flock(&second, libc::LOCK_EX), 0);
    // Locks of open file descriptions, for reading: writing would need an open for writing.
    let range = |file: &File, kind: i32| {
        // SAFETY: a structure of plain numbers, for which zeros are valid.
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = i16::try_from(kind).unwrap();
        // SAFETY: a valid descriptor and a structure of the right type.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) }
    };
    assert_eq!(range(&first, libc::F_RDLCK), 0);
    assert_eq!(range(&second, libc::F_RDLCK), 0);
    assert_eq!(range(&first, libc::F_WRLCK), -1);
    assert_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EBADF));
    mount.stop();
}

/// Node ids are those of one mount, so there are no handles that would outlive it, and no NFS export.
#[test]
#[ignore = "needs /dev/fuse"]
fn there_are_no_file_handles() {
    let (_scratch, mount) = mounted(&[]);
    let mut handle = [0_u32; 40];
    handle[0] = 128;
    let mut id = 0;
    let path = c(&mount.at("hello"));
    // SAFETY: a valid path, and a handle whose first field says how much room is behind it.
    let got = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            handle.as_mut_ptr(),
            &raw mut id,
            0,
        )
    };
    let error = io::Error::last_os_error().raw_os_error();
    assert_eq!((got, error), (-1, Some(libc::EOPNOTSUPP)));
    mount.stop();
}

/// `telldir` positions stay what they are: a reader that goes back finds the same entries.
#[test]
#[ignore = "needs /dev/fuse"]
fn positions_in_a_listing_stay() {
    let (_scratch, mount) = mounted(&[]);
    let path = c(&mount.path);
    // SAFETY: a valid path.
    let dir = unsafe { libc::opendir(path.as_ptr()) };
    assert!(!dir.is_null());
    let next = || {
        // SAFETY: `dir` is open, and what readdir points at lives until the next call.
        unsafe {
            let at = libc::telldir(dir);
            let entry = libc::readdir(dir);
            (!entry.is_null()).then(|| (at, (*entry).d_ino))
        }
    };
    let all: Vec<_> = std::iter::from_fn(next).collect();
    assert!(all.len() > 15);
    for (at, number) in all.iter().rev() {
        // SAFETY: `at` is from telldir of the same stream.
        unsafe { libc::seekdir(dir, *at) };
        assert_eq!(next().unwrap(), (*at, *number));
    }
    // SAFETY: it is open.
    assert_eq!(unsafe { libc::closedir(dir) }, 0);
    mount.stop();
}

/// A symlink below 30 directories of one name, whose path is longer than a path may be.
fn deep_tree(store: &str, name: &str) -> String {
    let named = |name: &str, node| Entry {
        name: Name::new(name.to_owned()).unwrap(),
        node,
    };
    let target = Target::new("deep").unwrap();
    let mut directory = Directory::new(vec![named("end", Node::Symlink { target })]).unwrap();
    let mut closure = vec![Bytes::copy_from_slice(directory.encoded())];
    for _ in 0..30 {
        let node = Node::Directory {
            digest: directory.digest(),
            size: directory.size(SizeRule::Protocol),
        };
        directory = Directory::new(vec![named(name, node)]).unwrap();
        closure.insert(0, Bytes::copy_from_slice(directory.encoded()));
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let publish = remote::open_for_writing(store, &Policy::default()).unwrap();
        let root = directory.digest();
        publish.put_closure(root, closure).await.unwrap();
        publish.sync().await.unwrap();
        root.to_string()
    })
}

/// Names have 255 bytes, paths 4095, as on other filesystems; a tree can be deeper than a path is long.
#[test]
#[ignore = "needs /dev/fuse"]
fn names_and_paths_have_the_usual_limits() {
    let name = "d".repeat(200);
    let scratch = Scratch::new();
    let root = deep_tree(&scratch.remote(), &name);
    let mount = scratch.mount([root]);
    let too_long = mount.at(&format!("{}end", format!("{name}/").repeat(30)));
    let error = fs::metadata(too_long).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
    let mut directory = File::open(&mount.path).unwrap();
    for _ in 0..30 {
        let below = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
        directory = File::open(below).unwrap();
    }
    let end = format!("/proc/self/fd/{}/end", directory.as_raw_fd());
    assert_eq!(fs::read_link(end).unwrap(), Path::new("deep"));
    drop(directory);
    mount.stop();
}

/// Times are constant and links are one.
#[test]
#[ignore = "needs /dev/fuse"]
fn times_and_links_are_constant() {
    let (_scratch, mount) = mounted(&[]);
    for name in ["", "hello", "deep", "link"] {
        let stat = fs::symlink_metadata(mount.at(name)).unwrap();
        assert_eq!(
            (stat.atime(), stat.mtime(), stat.ctime()),
            (0, 1, 0),
            "{name}"
        );
        assert_eq!(stat.nlink(), 1, "{name}");
        assert_eq!(stat.blocks(), stat.size().div_ceil(512), "{name}");
        assert!(stat.blksize() >= 128 << 10);
    }
    fs::read(mount.at("hello")).unwrap();
    let stat = fs::metadata(mount.at("hello")).unwrap();
    assert_eq!(stat.atime(), 0, "a read does not change it");
    mount.stop();
}

/// Whatever waits when the process dies gets an error at once, and so does everything after that.
#[test]
#[ignore = "needs /dev/fuse"]
fn death_of_the_process_is_an_error_at_once() {
    let (_scratch, mut mount) = mounted(&[]);
    let file = File::open(mount.at("large")).unwrap();
    crate::support::signal(&mount.child, libc::SIGKILL);
    crate::support::wait(&mut mount.child, std::time::Duration::from_secs(20)).unwrap();
    let error = file.read_at(&mut [0; 10], 0).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
    let error = fs::metadata(mount.at("not-looked-up")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
}
