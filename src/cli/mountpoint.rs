use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use rustix::fs::FlockOperation;

use super::{
    detach::{self, How},
    mounts::{Health, Mount, must_answer},
    raw_path::shell_word,
    registry,
};
use crate::fs::fuse::mountinfo;

/// Symlinks in a path that are followed, as many as the kernel follows.
const MAX_SYMLINKS: usize = 40;
/// A dead mount is detached within this time: the kernel has no process to wait for.
const DETACH_WITHIN: Duration = Duration::from_secs(1);

/// A castore whose mount was taken away just now holds the lock of the mount point for less than this.
const LOCK_WITHIN: Duration = Duration::from_millis(500);

/// A directory that can be mounted on, locked against a second castore that wants to do the same.
pub(super) struct Mountpoint {
    pub(super) path: PathBuf,
    /// The directory itself, also while something is mounted on it.
    directory: File,
}

impl Mountpoint {
    /// Lets others mount here, once this mount is registered.
    pub(super) fn unlock(&self) {
        let _ = rustix::fs::flock(&self.directory, FlockOperation::Unlock);
    }

    /// Whether no other castore is mounting here; none is until this is dropped.
    pub(super) fn lock(&self) -> bool {
        rustix::fs::flock(&self.directory, FlockOperation::NonBlockingLockExclusive).is_ok()
    }
}

/// An absolute path without symlinks in it. A path that is mounted on is not looked at, and none that leads through a castore
/// mount is, unless that answers: the look would hang.
pub(super) fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    let given = std::path::absolute(path)?;
    let table = mountinfo::table()?;
    let mut resolved = PathBuf::from("/");
    let mut rest = Vec::new();
    push(&mut rest, &given);
    let mut symlinks = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            resolved.pop();
            continue;
        }
        let next = resolved.join(name);
        let is_last = rest.is_empty();
        if let Some(mounted) = table.iter().rfind(|mounted| mounted.mountpoint == next) {
            if !is_last {
                must_answer(mounted)?;
            }
            resolved = next;
            continue;
        }
        match fs::symlink_metadata(&next) {
            Ok(metadata) if metadata.is_symlink() => {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    bail!("{path:?} has too many symlinks in it");
                }
                let target = fs::read_link(&next)?;
                if target.is_absolute() {
                    resolved = "/".into();
                }
                push(&mut rest, &target);
            }
            Ok(_) => resolved = next,
            Err(_) if is_last => resolved = next,
            Err(error) => {
                let parent = given.parent().unwrap_or(&given);
                return Err(error)
                    .with_context(|| format!("the directory {parent:?} is not there"));
            }
        }
    }
    Ok(resolved)
}

/// Puts the components of a path onto a stack, the first uppermost.
fn push(stack: &mut Vec<OsString>, path: &Path) {
    let names = path
        .components()
        .rev()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        });
    stack.extend(names);
}

/// Checks that a path can be mounted on. A dead mount that is found there is detached, with a note.
pub(super) fn prepare(path: &Path, cache_dir: &Path) -> anyhow::Result<Mountpoint> {
    let path = absolute(path).with_context(|| format!("cannot mount on {path:?}"))?;
    // Before anything looks at the path itself: what is mounted there may hang.
    clear(&path)?;
    let metadata = match fs::metadata(&path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!("the mount point {path:?} does not exist; create it with mkdir")
        }
        Err(error) => bail!("cannot mount on {path:?}: {error}"),
    };
    if !metadata.is_dir() {
        bail!("the mount point {path:?} is not a directory");
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
    let directory = File::open(&path)?;
    let mountpoint = Mountpoint { path, directory };
    let path = &mountpoint.path;
    let deadline = Instant::now() + LOCK_WITHIN;
    while !mountpoint.lock() {
        if Instant::now() > deadline {
            bail!("another castore is mounting on {path:?}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // What was looked at before the lock may have been mounted on since.
    if mountinfo::at(path)?.is_some() {
        bail!("something is mounted on {path:?} already; unmount it first");
    }
    Ok(mountpoint)
}

/// Sees that nothing is mounted on a path. Dead mounts are detached, with a note.
fn clear(path: &Path) -> anyhow::Result<()> {
    while let Some(mounted) = mountinfo::at(path)? {
        let mount = Mount::new(mounted);
        let mounted = &mount.mounted;
        match mount.health() {
            // What is detached must be what was registered, and not a later mount that its process could not register.
            Health::Dead if mount.is_registered_at(path) => {}
            Health::Silent => return Err(mount.silent()),
            Health::Unregistered if mounted.is_ours() => bail!(
                "something is mounted on {path:?} already ({} of type {}), and it is not known which process serves it; \
                 if that is gone, `castore unmount --lazy {}` takes it away",
                mounted.source,
                mounted.kind,
                shell_word(path)
            ),
            Health::Answers(_) | Health::Denied | Health::Dead | Health::Unregistered => bail!(
                "something is mounted on {path:?} already ({} of type {}); unmount it first",
                mounted.source,
                mounted.kind
            ),
        }
        detach::unmount(path, How::Lazily, DETACH_WITHIN)
            .with_context(|| format!("the dead mount on {path:?} cannot be detached"))?;
        if let Some(registered) = &mount.registered {
            registry::forget_dead(registered);
        }
        eprintln!("castore: detached a dead mount on {path:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn symlinks_and_dots_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir_all(dir.join("a/b")).unwrap();
        std::os::unix::fs::symlink("a/b", dir.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.join("link"), dir.join("absolute")).unwrap();
        std::os::unix::fs::symlink("loop", dir.join("loop")).unwrap();
        let resolved = |path: &str| absolute(&dir.join(path));
        assert_eq!(resolved("absolute").unwrap(), dir.join("a/b"));
        assert_eq!(resolved("link/../new").unwrap(), dir.join("a/new"));
        assert_eq!(resolved("a/b/").unwrap(), dir.join("a/b"));
        assert_eq!(absolute(Path::new("/")).unwrap(), Path::new("/"));
        assert!(resolved("loop").is_err());
        let error = resolved("no/such").unwrap_err().to_string();
        assert!(error.contains("not there"), "{error}");
    }
}
