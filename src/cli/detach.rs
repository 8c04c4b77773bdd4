use std::{
    ffi::{CStr, CString},
    io,
    os::unix::ffi::OsStrExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::process::{Pid, PidfdFlags};

use super::{
    process::{Handle, Life},
    registry,
};
use crate::fs::fuse::mountinfo::{self, Mounted};

/// The kernel takes a mount whose process has stopped to serve it away within this time.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// How a mount is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Only if it is not in use.
    Idle,
    /// From the directory tree at once; it ends with its last user.
    Lazily,
    /// Requests under way fail.
    ByForce,
}

impl How {
    const fn flags(self) -> libc::c_int {
        libc::UMOUNT_NOFOLLOW
            | match self {
                Self::Idle => 0,
                Self::Lazily => libc::MNT_DETACH,
                Self::ByForce => libc::MNT_FORCE,
            }
    }
}

/// Takes the uppermost mount on a path away, by the system call where that is permitted, else by `fusermount3`.
///
/// # Errors
/// `EBUSY` when it is in use, `TimedOut` when the kernel still waits for the process that serves the mount.
pub(super) fn unmount(path: &Path, how: How, within: Duration) -> anyhow::Result<()> {
    let deadline = Instant::now() + within;
    let target = CString::new(path.as_os_str().as_bytes())?;
    match aside(&Call::Unmount(&target, how.flags()), within) {
        Ok(()) => return Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        Err(error) => return Err(error.into()),
    }
    let option = match how {
        How::Idle => "-u",
        How::Lazily => "-uz",
        // It has nothing of the kind.
        How::ByForce => return Err(io::Error::from_raw_os_error(libc::EPERM).into()),
    };
    let mut child = Command::new("fusermount3")
        .arg(option)
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("fusermount3 cannot be run; install the fuse3 package")?;
    let ended = Handle::of(child.id()).is_none_or(|handle| {
        handle.ends_within(deadline.saturating_duration_since(Instant::now()))
    });
    if !ended {
        let _ = child.kill();
        return Err(io::Error::from(io::ErrorKind::TimedOut).into());
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if message.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY).into());
    }
    bail!("{message}")
}

/// Aborts the connection of a mount: every request under way and every later one fails. Its process need not answer.
///
/// # Errors
/// When no file system of type `fusectl` is mounted, or it is another user's mount.
pub(super) fn abort(mounted: &Mounted, within: Duration) -> io::Result<()> {
    let not_found = || io::Error::from(io::ErrorKind::NotFound);
    let minor = mounted.minor().ok_or_else(not_found)?;
    let table = mountinfo::table()?;
    let control = table.iter().find(|mounted| mounted.kind == "fusectl");
    let control = &control.ok_or_else(not_found)?.mountpoint;
    let file = control.join(minor.to_string()).join("abort");
    aside(
        &Call::Write(&CString::new(file.as_os_str().as_bytes())?),
        within,
    )
}

/// Takes away what the mount table still has of a mount of this process. By the bytes of the path: the crate that mounts takes
/// some paths for invalid, and an aborted connection for an unmounted one.
///
/// The caller holds the lock of the mount point: the kernel gives the device number of a mount that is gone to the next one at
/// once, and what another process has mounted there since is told from this mount by its registration, which is written under
/// that lock.
pub(super) fn leave_nothing(path: &Path, device: &str) {
    let Ok(Some(there)) = mountinfo::at(path) else {
        return;
    };
    let is_another = registry::find(&there).is_some_and(|found| {
        found.process.pid != std::process::id() && found.process.life() != Life::Gone
    });
    if !there.is_ours() || there.device != device || is_another {
        return;
    }
    if let Err(error) = unmount(path, How::Lazily, LEAVE_WITHIN) {
        tracing::warn!(?path, "cannot be unmounted: {error:#}");
    }
}

/// A system call that may wait for the process that serves a mount.
enum Call<'a> {
    Unmount(&'a CStr, libc::c_int),
    /// Of one byte, to a file.
    Write(&'a CStr),
}

impl Call<'_> {
    /// The error number, 0 for success. Allocates nothing.
    fn run(&self) -> libc::c_int {
        let failed = match self {
            // SAFETY: a system call; the path is terminated and outlives it.
            Self::Unmount(path, flags) => (unsafe { libc::umount2(path.as_ptr(), *flags) }) < 0,
            Self::Write(path) => {
                // SAFETY: as above; the byte is a constant.
                unsafe {
                    let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
                    file < 0 || libc::write(file, c"1".as_ptr().cast(), 1) < 0
                }
            }
        };
        match failed {
            // SAFETY: the place of this thread's error number is always valid.
            true => unsafe { *libc::__errno_location() },
            false => 0,
        }
    }
}

/// Runs a system call in a process of its own, which is left alone when it takes too long: a process that waits for a mount
/// cannot end, and neither can one that has a thread which does.
fn aside(call: &Call<'_>, within: Duration) -> io::Result<()> {
    // SAFETY: until it exits, the child makes system calls alone: it allocates nothing and takes no lock, so it does not matter
    // what other threads held when it was made.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    if child == 0 {
        // SAFETY: as above. Descriptors are closed first: a child that hangs must not keep the caller's pipes open.
        unsafe {
            libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0);
            libc::_exit(call.run());
        }
    }
    let Some(pid) = Pid::from_raw(child) else {
        return Err(io::ErrorKind::NotFound.into());
    };
    let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    if !Handle::from(handle).ends_within(within) {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let status = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    let code = status.and_then(|(_, status)| status.exit_status());
    match code {
        Some(0) => Ok(()),
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => Err(io::Error::other("the process that unmounts was killed")),
    }
}

/// Whether something of castore is mounted on a path, of this device.
pub(super) fn is_there(mounted: &Mounted) -> bool {
    let there = mountinfo::at(&mounted.mountpoint).ok().flatten();
    there.is_some_and(|there| there.device == mounted.device)
}

/// Sets or clears `noexec` on a mount of the machine's root. Done on the mount and not on the file system, so it can be done
/// after mounting, and is for this mount alone.
pub(super) fn set_noexec(path: &Path, noexec: bool) -> io::Result<()> {
    use rustix::mount::MountFlags;
    let mut flags = MountFlags::BIND
        | MountFlags::RDONLY
        | MountFlags::NOSUID
        | MountFlags::NODEV
        | MountFlags::NOATIME;
    flags.set(MountFlags::NOEXEC, noexec);
    Ok(rustix::mount::mount_remount(path, flags, "")?)
}
