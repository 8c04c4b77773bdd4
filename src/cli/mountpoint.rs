use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::mount::UnmountFlags;

use crate::fs::fuse::mountinfo;

/// A directory that can be mounted on, locked against a second castore that wants to do the same.
pub(super) struct Mountpoint {
    pub(super) path: PathBuf,
    _lock: File,
}

/// An absolute path without symlinks in it, of which the last component is not looked at: it may be a dead mount.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(path); // The root of all.
    };
    let parent = parent
        .canonicalize()
        .with_context(|| format!("the directory {parent:?} is not there"))?;
    let path = parent.join(name);
    // A symlink to the mount point is followed, where that can be looked at.
    match fs::symlink_metadata(&path) {
        Ok(metadata) if metadata.is_symlink() => Ok(path.canonicalize()?),
        _ => Ok(path),
    }
}

/// Checks that a path can be mounted on. A dead mount that is found there is detached, with a note.
pub(super) fn prepare(path: &Path, cache_dir: &Path) -> anyhow::Result<Mountpoint> {
    let path = absolute(path).with_context(|| format!("cannot mount on {path:?}"))?;
    let mut metadata = fs::metadata(&path);
    if is_dead(&path) {
        detach(&path).with_context(|| format!("the dead mount on {path:?} cannot be detached"))?;
        eprintln!("castore: detached a dead mount on {path:?}");
        metadata = fs::metadata(&path);
    }
    let metadata = match metadata {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("the mount point {path:?} does not exist; create it with mkdir")
        }
        Err(error) => bail!("cannot mount on {path:?}: {error}"),
    };
    if !metadata.is_dir() {
        bail!("the mount point {path:?} is not a directory");
    }
    if let Some(mounted) = mountinfo::at(&path)? {
        bail!(
            "something is mounted on {path:?} already ({} of type {}); unmount it first",
            mounted.source,
            mounted.kind
        );
    }
    if let Ok(cache_dir) = cache_dir.canonicalize() {
        if path.starts_with(&cache_dir) {
            bail!("the mount point {path:?} is inside the cache directory {cache_dir:?}");
        }
        if cache_dir.starts_with(&path) {
            bail!("the cache directory {cache_dir:?} is below the mount point {path:?}");
        }
    }
    if fs::read_dir(&path)
        .with_context(|| format!("the mount point {path:?} cannot be listed"))?
        .next()
        .is_some()
    {
        bail!("the mount point {path:?} is not empty");
    }
    let lock = File::open(&path)?;
    let operation = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    if rustix::fs::flock(&lock, operation).is_err() {
        bail!("another castore is mounting on {path:?}");
    }
    // What was looked at before the lock may have been mounted on since.
    if mountinfo::at(&path)?.is_some() {
        bail!("something is mounted on {path:?} already; unmount it first");
    }
    Ok(Mountpoint { path, _lock: lock })
}

/// Whether a mount is there whose process is not. `statfs` is what the kernel never answers from its caches; it is called
/// on a thread of its own, since a mount may also hang.
fn is_dead(path: &Path) -> bool {
    let path = path.to_owned();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = sender.send(rustix::fs::statfs(path).err());
    });
    let error = receiver.recv_timeout(Duration::from_secs(2));
    error.is_ok_and(|error| error == Some(rustix::io::Errno::NOTCONN))
}

/// Takes a mount away as soon as nobody uses it any more.
pub(super) fn detach(path: &Path) -> anyhow::Result<()> {
    unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW, "-uz")
}

/// Takes a mount away if nobody uses it.
pub(super) fn take_away(path: &Path) -> anyhow::Result<()> {
    unmount(path, UnmountFlags::NOFOLLOW, "-u")
}

/// By the system call where that is permitted, else by `fusermount3`.
fn unmount(path: &Path, flags: UnmountFlags, option: &str) -> anyhow::Result<()> {
    match rustix::mount::unmount(path, flags) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(io::Error::from(error).into()),
    }
    let output = Command::new("fusermount3")
        .arg(option)
        .arg("--")
        .arg(path)
        .output()
        .context("fusermount3 cannot be run; install the fuse3 package")?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if message.contains("busy") {
        return Err(io::Error::from_raw_os_error(libc::EBUSY).into());
    }
    bail!("{message}")
}
