use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail};
use rustix::{fs::FlockOperation, process::geteuid};
use serde::{Deserialize, Serialize};

use super::{
    paths,
    process::{Life, Process},
    raw_path::RawPath,
};
use crate::{
    cache,
    fs::fuse::mountinfo::{self, Mounted},
};

/// The largest file that is read, in bytes: two paths of 4096 bytes, each in both forms, and the rest.
const MAX_FILE: u64 = 64 << 10;
/// How often a process says that it lives, by the time of its file. `status` shows for how long it has not.
pub(super) const HEARTBEAT: Duration = Duration::from_secs(5);

/// A mount, as its process has registered it: commands find its process without a look at the mount itself, which may hang.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Registered {
    #[serde(flatten)]
    pub(super) process: Process,
    pub(super) mountpoint: RawPath,
    pub(super) cache_dir: RawPath,
    /// Where it answers.
    pub(super) socket: RawPath,
    /// When it was mounted, in seconds since 1970.
    pub(super) since: u64,
    /// When its process last said that it lives.
    #[serde(skip)]
    pub(super) beat: Option<SystemTime>,
}

impl Registered {
    pub(super) fn this(mountpoint: &Path, cache_dir: &Path, socket: &Path) -> io::Result<Self> {
        Ok(Self {
            process: Process::this()?,
            mountpoint: RawPath(mountpoint.to_owned()),
            cache_dir: RawPath(cache_dir.to_owned()),
            socket: RawPath(socket.to_owned()),
            since: cache::now(),
            beat: None,
        })
    }

    /// Whether the mount table still has it. The kernel gives the device of a mount that is gone to the next one, and its
    /// process may be alive then: stopped, say, and detached from the directory tree.
    fn is_in(&self, table: &[Mounted], device: &str) -> bool {
        let mut mounts = table.iter();
        mounts.any(|there| there.device == device && there.mountpoint == self.mountpoint.0)
    }
}

/// The registration of a mount of this process. The mount is forgotten when this is dropped.
pub(super) struct Registration {
    dir: PathBuf,
    name: String,
    process: Process,
    file: File,
}

impl Registration {
    /// `device` is that of the mount table, as `0:39`.
    pub(super) fn new(device: &str, mount: &Registered) -> anyhow::Result<Self> {
        let dir = own_dir()?;
        sweep();
        let name = file_name(device);
        let temporary = dir.join(format!(".{name}.{}", mount.process.pid));
        let _ = fs::remove_file(&temporary);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&serde_json::to_vec(mount)?)?;
                let _lock = lock(&dir)?;
                fs::rename(&temporary, dir.join(&name))?;
                Ok(file)
            });
        let file = written.with_context(|| format!("{:?} cannot be written", dir.join(&name)))?;
        Ok(Self {
            dir,
            name,
            process: mount.process.clone(),
            file,
        })
    }

    /// Says again and again that this process lives.
    pub(super) async fn beat(&self) {
        let mut interval = tokio::time::interval(HEARTBEAT);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            let _ = self.file.set_modified(SystemTime::now());
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        forget(&self.dir, &self.name, &self.process);
    }
}

/// Removes the registration of a mount that is gone, if it is still that of its process: the kernel uses device numbers again.
fn forget(dir: &Path, name: &str, process: &Process) {
    // Held from the look to the removal.
    let Ok(_lock) = lock(dir) else {
        return;
    };
    let path = dir.join(name);
    if read(&path).is_some_and(|found| found.process == *process) {
        let _ = fs::remove_file(path);
    }
}

/// Removes the registration of a mount whose process is gone.
pub(super) fn forget_dead(device: &str, mount: &Registered) {
    if let Ok(dir) = own_dir() {
        forget(&dir, &file_name(device), &mount.process);
    }
}

/// The registration of a mount of the table.
pub(super) fn find(mounted: &Mounted) -> Option<Registered> {
    let owner = mounted.user_id.unwrap_or_else(|| geteuid().as_raw());
    let name = file_name(&mounted.device);
    let places = candidates(owner).into_iter().map(|dir| dir.join(&name));
    let table = mountinfo::table().ok()?;
    // The device may have been that of an earlier mount, which was registered elsewhere and has left its file.
    places
        .filter_map(|path| read_of(&path, owner))
        .filter(|found| found.is_in(&table, &mounted.device))
        .min_by_key(|found| found.process.life() == Life::Gone)
}

/// What is registered in the caller's own directory, with devices.
pub(super) fn all() -> Vec<(String, Registered)> {
    let Ok(dir) = own_dir() else {
        return Vec::new();
    };
    let entries = fs::read_dir(&dir).into_iter().flatten().flatten();
    let found = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let (major, minor) = name.strip_suffix(".json")?.split_once('-')?;
        Some((format!("{major}:{minor}"), read(&dir.join(&name))?))
    });
    found.collect()
}

/// Removes what processes have left that were killed, and whose mounts have been taken away by other means.
fn sweep() {
    let table = mountinfo::table().unwrap_or_default();
    for (device, mount) in all() {
        if mount.process.life() == Life::Gone && !mount.is_in(&table, &device) {
            forget_dead(&device, &mount);
        }
    }
}

fn file_name(device: &str) -> String {
    format!("{}.json", device.replace(':', "-"))
}

/// The file of this user. What other users have written is not believed, and neither is that another user's process
/// serves the mount: it may be ended.
fn read_of(path: &Path, user: u32) -> Option<Registered> {
    let is_theirs = |owner: u32| owner == user;
    let file = fs::symlink_metadata(path).ok()?;
    let found = is_theirs(file.uid()).then(|| read(path)).flatten()?;
    let process = found.process.owner();
    process.is_none_or(is_theirs).then_some(found)
}

fn read(path: &Path) -> Option<Registered> {
    let file = File::open(path).ok()?;
    let beat = file.metadata().and_then(|metadata| metadata.modified());
    let mut json = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut json).ok()?;
    let found: Registered = serde_json::from_slice(&json).ok()?;
    Some(Registered {
        beat: beat.ok(),
        ..found
    })
}

fn lock(dir: &Path) -> io::Result<File> {
    let handle = File::open(dir)?;
    rustix::fs::flock(&handle, FlockOperation::LockExclusive)?;
    Ok(handle)
}

/// The caller's own directory: `/run/castore` for root, else below `$XDG_RUNTIME_DIR`, or `/tmp/castore-UID` where there is
/// none. It is made if it is not there.
fn own_dir() -> anyhow::Result<PathBuf> {
    let (dir, mode) = match (paths::is_root(), runtime_dir()) {
        (true, _) if private(Path::new("/run/castore"), 0o755).is_ok() => {
            return Ok("/run/castore".into());
        }
        // In a container, /run may be missing or read-only.
        (true, _) => (fallback(0), 0o700),
        (false, Some(base)) => (base.join("castore"), 0o700),
        (false, None) => (fallback(paths::outer_uid()), 0o700),
    };
    private(&dir, mode)?;
    Ok(dir)
}

/// Makes a directory to which only this user may write, or checks that the existing one is such.
pub(super) fn private(dir: &Path, mode: u32) -> anyhow::Result<()> {
    match DirBuilder::new().mode(mode).create(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("{dir:?} cannot be made"));
        }
        _ => {}
    }
    let metadata = fs::symlink_metadata(dir)?;
    let others_write = metadata.mode() & 0o022 != 0;
    if !metadata.is_dir() || metadata.uid() != geteuid().as_raw() || others_write {
        bail!("{dir:?} is not a directory that only this user may write to; remove it");
    }
    Ok(())
}

/// Where a mount of a user may be registered.
fn candidates(owner: u32) -> Vec<PathBuf> {
    let mut dirs: Vec<_> = own_dir().into_iter().collect();
    dirs.push(match owner {
        0 => "/run/castore".into(),
        owner => format!("/run/user/{owner}/castore").into(),
    });
    dirs.push(fallback(owner));
    dirs
}

fn runtime_dir() -> Option<PathBuf> {
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)?;
    (dir.is_absolute() && dir.is_dir()).then_some(dir)
}

fn fallback(user: u32) -> PathBuf {
    format!("/tmp/castore-{user}").into()
}
