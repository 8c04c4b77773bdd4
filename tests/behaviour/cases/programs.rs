//! What needs a kernel above: mappings, locks, working directories.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, SeekFrom},
    os::{
        fd::AsRawFd,
        unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    },
    process::{Command, Stdio},
};

use super::{Fixture, cases};

cases! { "programs":
    mappings_of_what_nobody_has_read,
    mappings,
    mappings_of_many_files,
    seeking,
    holes_are_not_told,
    copies_by_the_kernel,
    synchronising_succeeds,
    locks_hold,
    no_ioctl_is_known,
    a_file_is_always_ready,
    a_working_directory,
    symlinks_are_followed,
    by_descriptor_alone,
    one_walk_beside_the_other,
}

fn open(on: &Fixture, path: &str) -> File {
    File::open(on.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A mapping that is the first to want a file's bytes.
fn mappings_of_what_nobody_has_read(on: &Fixture) {
    let file = open(on, "unread");
    // SAFETY: the files of the tree never change.
    let map = unsafe { memmap2::Mmap::map(&file).unwrap() };
    assert!(map[..] == on.content("unread"));
}

/// Pages are mapped by themselves and by readahead, and past the end of a file that ends in a page there are zeros.
fn mappings(on: &Fixture) {
    let expected = on.content("large");
    for private in [true, false] {
        on.view.drop_caches();
        let file = open(on, "large");
        // SAFETY: as above.
        let map = unsafe {
            let options = memmap2::MmapOptions::new();
            match private {
                true => options.map_copy_read_only(&file).unwrap(),
                false => options.map(&file).unwrap(),
            }
        };
        for at in (0..expected.len()).rev().step_by(1_000_003) {
            assert_eq!(map[at], expected[at], "{at}");
        }
        assert!(map[..] == expected[..]);
    }
}

fn mappings_of_many_files(on: &Fixture) {
    let mut maps = Vec::new();
    for number in 0..200 {
        let name = format!("many/{number:04}-{}", "x".repeat(number % 200));
        let file = open(on, &name);
        // SAFETY: as above.
        maps.push(unsafe { memmap2::Mmap::map(&file).unwrap() });
    }
    for (number, map) in maps.iter().enumerate() {
        assert_eq!(&map[..], number.to_string().as_bytes());
    }
}

fn seeking(on: &Fixture) {
    let mut file = open(on, "hello");
    assert_eq!(file.seek(SeekFrom::End(-5)).unwrap(), 6);
    let mut rest = String::new();
    file.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "World");
    assert!(file.seek(SeekFrom::Current(-12)).is_err());
}

fn holes_are_not_told(on: &Fixture) {
    let file = open(on, "zeros");
    let seek = |offset, whence| {
        // SAFETY: a system call on a file that is open.
        unsafe { libc::lseek(file.as_raw_fd(), offset, whence) }
    };
    assert_eq!(seek(0, libc::SEEK_DATA), 0);
    assert_eq!(seek(4097, libc::SEEK_DATA), 4097);
    assert_eq!(seek(0, libc::SEEK_HOLE), 3 << 20);
    assert_eq!(seek(3 << 20, libc::SEEK_DATA), -1);
}

fn copies_by_the_kernel(on: &Fixture) {
    let mut copy = tempfile::tempfile().unwrap();
    let mut file = open(on, "large");
    // By copy_file_range or sendfile.
    let copied = std::io::copy(&mut file, &mut copy).unwrap();
    assert_eq!(copied, 5_000_001);
    let mut found = vec![0; 5_000_001];
    copy.read_exact_at(&mut found, 0).unwrap();
    assert!(found == on.content("large"));
}

fn synchronising_succeeds(on: &Fixture) {
    let file = open(on, "hello");
    file.sync_all().unwrap();
    file.sync_data().unwrap();
    rustix::fs::syncfs(&file).unwrap();
    open(on, "deep").sync_all().unwrap();
}

fn locks_hold(on: &Fixture) {
    let (first, second) = (open(on, "hello"), open(on, "hello"));
    // Equal content is not the same file.
    let other = open(on, "hello-too");
    first.lock().unwrap();
    assert!(matches!(second.try_lock(), Err(TryLockError::WouldBlock)));
    other.try_lock().unwrap();
    first.unlock().unwrap();
    second.try_lock_shared().unwrap();
    first.try_lock_shared().unwrap();
}

fn no_ioctl_is_known(on: &Fixture) {
    let file = open(on, "hello");
    // SAFETY: TCGETS fails before it writes, and the buffer is longer than what it would write.
    let (result, errno) = unsafe {
        let mut buffer = [0_u8; 256];
        let result = libc::ioctl(file.as_raw_fd(), libc::TCGETS, buffer.as_mut_ptr());
        (result, *libc::__errno_location())
    };
    assert_eq!((result, errno), (-1, libc::ENOTTY));
}

fn a_file_is_always_ready(on: &Fixture) {
    let file = open(on, "hello");
    let mut polled = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one structure, which is valid.
    assert_eq!(unsafe { libc::poll(&raw mut polled, 1, 1000) }, 1);
    assert_eq!(polled.revents, libc::POLLIN);
}

/// Of two equal directories the one that a process stands in stays the one it is.
fn a_working_directory(on: &Fixture) {
    let script = "cd same-a/inner && stat ../../same-b/inner/file >/dev/null && pwd -P && cat file";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).current_dir(on.at(""));
    let output = shell.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.ends_with("same-a/inner\nequal"), "{output:?}");
}

fn symlinks_are_followed(on: &Fixture) {
    assert_eq!(fs::read(on.at("link")).unwrap(), b"Hello World");
    assert_eq!(fs::read(on.at("deep/link")).unwrap(), b"Hello World");
    let dangling = fs::read(on.at("dangling")).unwrap_err();
    assert_eq!(dangling.raw_os_error(), Some(libc::ENOENT));
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NOFOLLOW);
    let refused = options.open(on.at("link")).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::ELOOP));
}

fn by_descriptor_alone(on: &Fixture) {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_PATH);
    let file = options.open(on.at("hello")).unwrap();
    on.view.drop_caches();
    assert_eq!(file.metadata().unwrap().size(), 11);
    // An empty path with a descriptor is the file itself.
    let reopened = format!("/proc/self/fd/{}", file.as_raw_fd());
    assert_eq!(fs::read(reopened).unwrap(), b"Hello World");
}

fn one_walk_beside_the_other(on: &Fixture) {
    let root = on.at("");
    std::thread::scope(|scope| {
        let walkers: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| crate::support::tree::snapshot(&root)))
            .collect();
        let expected = crate::support::tree::snapshot(on.source);
        for walker in walkers {
            assert!(walker.join().unwrap() == expected);
        }
    });
}
