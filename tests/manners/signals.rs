//! What a mount does on signals, and when its connection is aborted.

use std::{
    fs,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    time::Duration,
};

use castore::fs::fuse::mountinfo;

use super::{Background, Fusectl, prepared};
use crate::support::{self, Mount, Scratch, eventually, is_mounted};

const END: Duration = Duration::from_secs(20);

fn ends_well(mut mount: Mount, scratch: &Scratch) {
    let status = support::wait(&mut mount.child, END).expect("it does not end");
    assert!(status.success() && !is_mounted(&scratch.mnt()), "{status}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn what_ends_a_mount() {
    let scratch = prepared();
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT, libc::SIGHUP] {
        let mount = scratch.mount(["tree"]);
        fs::read(mount.at("hello")).unwrap();
        support::signal(&mount.child, signal);
        ends_well(mount, &scratch);
    }
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGQUIT] {
        let mount = Background::start(&scratch);
        mount.signal(signal);
        eventually("the process ends", || !mount.is_alive());
        assert!(!is_mounted(&scratch.mnt()), "{signal}");
    }
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_ends_with_its_terminal() {
    let scratch = prepared();
    let (mut terminal, mut end) = (0, 0);
    // SAFETY: the two descriptors are written to where they are; the rest may be null.
    let opened = unsafe {
        libc::openpty(
            &raw mut terminal,
            &raw mut end,
            std::ptr::null_mut(),
            std::ptr::null(),
            std::ptr::null(),
        )
    };
    assert_eq!(opened, 0);
    // SAFETY: they were just made, and have no other owner.
    let (terminal, end) = unsafe { (OwnedFd::from_raw_fd(terminal), OwnedFd::from_raw_fd(end)) };
    // The mount must not keep its own terminal open.
    // SAFETY: a system call.
    unsafe { libc::fcntl(terminal.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) };
    let mut command = scratch.command(["mount", "--foreground", "tree"]);
    command.arg(scratch.mnt());
    let end_fd = end.as_raw_fd();
    // SAFETY: system calls alone, between `fork` and `exec`.
    unsafe {
        command.pre_exec(move || {
            libc::setsid();
            match libc::ioctl(end_fd, libc::TIOCSCTTY, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
    command.stdout(end.try_clone().unwrap()).stderr(end);
    let mut child = command.spawn().unwrap();
    drop(command);
    eventually("the mount is there", || is_mounted(&scratch.mnt()));
    assert_eq!(
        fs::read(scratch.mnt().join("hello")).unwrap(),
        b"Hello World"
    );
    drop(terminal);
    let status = support::wait(&mut child, END);
    if status.is_none() {
        let _ = child.kill();
    }
    let left = is_mounted(&scratch.mnt());
    support::detach(&scratch.mnt());
    let status = status.expect("it does not end");
    assert!(status.success() && !left, "{status}, left: {left}");
}

#[test]
#[ignore = "needs /dev/fuse"]
fn what_is_ignored() {
    let scratch = prepared();
    let mount = scratch.mount(["tree"]);
    fs::read(mount.at("hello")).unwrap();
    for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM] {
        support::signal(&mount.child, signal);
    }
    // Signals are delivered before the process goes on, so a mount that still reads has survived them.
    assert_eq!(fs::read(mount.at("hello")).unwrap(), b"Hello World");
    assert_eq!(fs::read(mount.at("large")).unwrap().len(), 5_000_001);
    mount.stop();
    // And in the background.
    let mount = Background::start(&scratch);
    for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGALRM] {
        mount.signal(signal);
    }
    assert_eq!(
        fs::read(scratch.mnt().join("large")).unwrap().len(),
        5_000_001
    );
    assert!(mount.is_alive());
    scratch.ok(["unmount".as_ref(), scratch.mnt().as_os_str()]);
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_under_nohup_outlives_its_terminal() {
    let scratch = prepared();
    let mut command = scratch.command(["mount", "--foreground", "tree"]);
    command.arg(scratch.mnt());
    // SAFETY: one system call between `fork` and `exec`.
    unsafe {
        command.pre_exec(|| {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
            Ok(())
        });
    }
    let mount = Mount::start(command, &scratch.mnt());
    support::signal(&mount.child, libc::SIGHUP);
    assert_eq!(fs::read(mount.at("large")).unwrap().len(), 5_000_001);
    mount.stop();
}

#[test]
#[ignore = "needs /dev/fuse"]
fn logs_are_rotated() {
    let scratch = prepared();
    let mount = Background::start(&scratch);
    let (log, old) = (scratch.path("cache/castore.log"), scratch.path("old.log"));
    fs::rename(&log, &old).unwrap();
    mount.signal(libc::SIGHUP);
    let text = || fs::read_to_string(&log).unwrap_or_default();
    eventually("the log is opened anew", || text().contains("opened anew"));
    assert!(is_mounted(&scratch.mnt()));
    // Nothing holds the old one any more, stderr neither.
    let fds = fs::read_dir(format!("/proc/{}/fd", mount.pid)).unwrap();
    let old = old.canonicalize().unwrap();
    let held = fds
        .flatten()
        .filter(|fd| fs::read_link(fd.path()).is_ok_and(|to| to == old));
    assert_eq!(held.count(), 0);
    scratch.ok(["unmount".as_ref(), scratch.mnt().as_os_str()]);
    assert!(text().contains("unmounted"));
}

#[test]
#[ignore = "needs /dev/fuse"]
fn a_mount_whose_connection_was_aborted_is_taken_down() {
    let scratch = prepared();
    let control = Fusectl::mount(scratch.path("control"));
    let mount = scratch.mount(["tree"]);
    fs::read(mount.at("hello")).unwrap();
    let minor = mountinfo::at(&scratch.mnt()).unwrap().unwrap().minor();
    let abort = control.0.join(minor.unwrap().to_string()).join("abort");
    fs::write(abort, b"1").unwrap();
    ends_well(mount, &scratch);
}
