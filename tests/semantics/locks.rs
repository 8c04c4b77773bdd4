//! Locks between two processes, on one file and on its equal.

use std::{
    ffi::CString,
    fs::File,
    io,
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, process::CommandExt},
    },
    path::Path,
    process::Command,
};

use crate::mounted;

/// The system calls of `work` on a path, made in another process: its result, or the error that it had.
fn in_another_process(
    path: &Path,
    work: impl Fn(i32) -> io::Result<()> + Send + Sync + 'static,
) -> Result<(), i32> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    let mut command = Command::new("true");
    // SAFETY: system calls alone, between `fork` and `exec`. What the closure fails with is the error of `spawn`.
    unsafe {
        command.pre_exec(move || {
            let file = libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if file < 0 {
                return Err(io::Error::last_os_error());
            }
            work(file)
        });
    }
    match command.status() {
        Ok(status) => {
            assert!(status.success());
            Ok(())
        }
        Err(error) => Err(error.raw_os_error().unwrap()),
    }
}

fn succeeds(result: i32) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn flock(file: i32) -> io::Result<()> {
    // SAFETY: a system call with a valid descriptor.
    succeeds(unsafe { libc::flock(file, libc::LOCK_EX | libc::LOCK_NB) })
}

/// A lock on the whole of a file: of a process, without waiting.
fn whole(kind: i32) -> libc::flock {
    // SAFETY: a structure of plain numbers, for which zeros are valid.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    lock.l_type = i16::try_from(kind).unwrap();
    lock
}

fn set_lock(file: i32, kind: i32) -> io::Result<()> {
    let lock = whole(kind);
    // SAFETY: a valid descriptor and a structure of the right type.
    succeeds(unsafe { libc::fcntl(file, libc::F_SETLK, &raw const lock) })
}

/// Whether this process could have the lock: EAGAIN when another one has a lock that excludes it, ESRCH when that is not
/// the process `owner`.
fn test_lock(file: i32, kind: i32, owner: i32) -> io::Result<()> {
    let mut lock = whole(kind);
    // SAFETY: a valid descriptor and a structure of the right type.
    succeeds(unsafe { libc::fcntl(file, libc::F_GETLK, &raw mut lock) })?;
    if i32::from(lock.l_type) == libc::F_UNLCK {
        return Ok(());
    }
    let error = if lock.l_pid == owner {
        libc::EAGAIN
    } else {
        libc::ESRCH
    };
    Err(io::Error::from_raw_os_error(error))
}

#[test]
#[ignore = "needs /dev/fuse"]
fn flock_holds_between_processes() {
    let (_scratch, mount) = mounted(&[]);
    let held = File::open(mount.at("hello")).unwrap();
    flock(held.as_raw_fd()).unwrap();
    let lock = |name: &str| in_another_process(&mount.at(name), flock);
    assert_eq!(lock("hello"), Err(libc::EWOULDBLOCK));
    // Its equal is another file.
    assert_eq!(lock("hello-too"), Ok(()));
    drop(held);
    assert_eq!(lock("hello"), Ok(()));
    // The lock of a process that is gone is gone too.
    let after = File::open(mount.at("hello")).unwrap();
    flock(after.as_raw_fd()).unwrap();
    drop(after);
    mount.stop();
}

/// `fcntl` locks, of which there are only those for reading: the others want a file that is open for writing.
#[test]
#[ignore = "needs /dev/fuse"]
fn fcntl_locks_hold_between_processes() {
    let (_scratch, mount) = mounted(&[]);
    let held = File::open(mount.at("hello")).unwrap();
    set_lock(held.as_raw_fd(), libc::F_RDLCK).unwrap();
    let us = i32::try_from(std::process::id()).unwrap();
    let test = |name: &str, kind| {
        in_another_process(&mount.at(name), move |file| test_lock(file, kind, us))
    };
    assert_eq!(test("hello", libc::F_WRLCK), Err(libc::EAGAIN));
    assert_eq!(test("hello", libc::F_RDLCK), Ok(()));
    for kind in [libc::F_WRLCK, libc::F_RDLCK] {
        assert_eq!(test("hello-too", kind), Ok(()));
    }
    let set = |kind| in_another_process(&mount.at("hello"), move |file| set_lock(file, kind));
    assert_eq!(set(libc::F_RDLCK), Ok(()));
    assert_eq!(set(libc::F_WRLCK), Err(libc::EBADF));
    set_lock(held.as_raw_fd(), libc::F_UNLCK).unwrap();
    assert_eq!(test("hello", libc::F_WRLCK), Ok(()));
    drop(held);
    mount.stop();
}
