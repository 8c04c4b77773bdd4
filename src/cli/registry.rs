use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime},
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
/// The beginning of the name of a file for a mount that is about to be made; the number of its process follows.
const MOUNTING: &str = "mounting-";
/// The same for one that is being written.
const TEMPORARY: &str = ".";
/// The lock of a directory is held for some microseconds, unless its holder was stopped.
const LOCK_WITHIN: Duration = Duration::from_millis(300);
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
    /// Where this was read.
    #[serde(skip)]
    file: PathBuf,
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
            file: PathBuf::new(),
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
    path: PathBuf,
    process: Process,
    file: File,
}

impl Registration {
    /// Registers a mount that is about to be made, by its mount point: a process that is killed before it knows the device
    /// number leaves a mount that is known to be dead.
    pub(super) fn announce(mount: &Registered) -> anyhow::Result<Self> {
        let dir = own_dir()?;
        sweep();
        let pid = mount.process.pid;
        let path = dir.join(format!("{MOUNTING}{pid}.json"));
        let temporary = dir.join(format!("{TEMPORARY}{pid}"));
        let _ = fs::remove_file(&temporary);
        let written = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o644)
            .open(&temporary)
            .and_then(|mut file| {
                file.write_all(&serde_json::to_vec(mount)?)?;
                fs::rename(&temporary, &path)?;
                Ok(file)
            });
        let file = written.with_context(|| format!("{path:?} cannot be written"))?;
        Ok(Self {
            dir,
            path,
            process: mount.process.clone(),
            file,
        })
    }

    /// Registers it by its device in the mount table, such as `0:39`. What an earlier mount has left there is replaced.
    pub(super) fn settle(&mut self, device: &str) -> io::Result<()> {
        let path = self.dir.join(file_name(device));
        let _lock = lock(&self.dir)?;
        fs::rename(&self.path, &path)?;
        self.path = path;
        Ok(())
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
        forget(&self.path, &self.process);
    }
}

/// Removes the registration of a mount that is gone, if it is still that of its process: the kernel uses device numbers again.
fn forget(path: &Path, process: &Process) {
    // Held from the look to the removal.
    let Some(Ok(_lock)) = path.parent().map(lock) else {
        return;
    };
    if read(path).is_some_and(|found| found.process == *process) {
        let _ = fs::remove_file(path);
    }
}

/// Removes the registration of a mount whose process is gone.
pub(super) fn forget_dead(mount: &Registered) {
    forget(&mount.file, &mount.process);
}

/// The registration of a mount of the table.
pub(super) fn find(mounted: &Mounted) -> Option<Registered> {
    let owner = mounted.user_id.unwrap_or_else(|| geteuid().as_raw());
    let table = mountinfo::table().ok()?;
    let dirs = candidates(owner);
    let by_device = dirs.iter().map(|dir| dir.join(file_name(&mounted.device)));
    // The device may have been that of an earlier mount, which was registered elsewhere and has left its file.
    let found = by_device
        .filter_map(|path| read_of(&path, owner))
        .filter(|found| found.is_in(&table, &mounted.device))
        .min_by_key(|found| found.process.life() == Life::Gone);
    found.or_else(|| {
        let mut announced = dirs
            .iter()
            .flat_map(|dir| files(dir))
            .filter(|path| is_announced(path));
        announced.find_map(|path| {
            read_of(&path, owner).filter(|found| found.mountpoint.0 == mounted.mountpoint)
        })
    })
}

/// What is registered in the caller's own directory.
pub(super) fn all() -> Vec<Registered> {
    let dir = own_dir().ok();
    let files = dir.iter().flat_map(|dir| files(dir));
    files.filter_map(|path| read(&path)).collect()
}

/// The files of a directory that register something.
fn files(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let is_json = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "json")
    };
    paths.filter(is_json).collect()
}

fn is_announced(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(MOUNTING))
}

/// Removes what processes have left that were killed, and whose mounts have been taken away by other means.
fn sweep() {
    let table = mountinfo::table().unwrap_or_default();
    for mount in all() {
        let is_there = table.iter().any(|there| {
            let is_its =
                is_announced(&mount.file) || mount.file.ends_with(file_name(&there.device));
            is_its && there.mountpoint == mount.mountpoint.0
        });
        if mount.process.life() == Life::Gone && !is_there {
            forget_dead(&mount);
        }
    }
    let entries = own_dir().and_then(|dir| Ok(fs::read_dir(dir)?));
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(TEMPORARY));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_file(entry.path());
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
        file: path.to_owned(),
        ..found
    })
}

/// Held for one look and one change of a directory. Not waited for without end: a process may have been stopped there.
fn lock(dir: &Path) -> io::Result<File> {
    let handle = File::open(dir)?;
    let deadline = Instant::now() + LOCK_WITHIN;
    loop {
        match rustix::fs::flock(&handle, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(handle),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// The caller's own directory: `/run/castore` for root, else below `$XDG_RUNTIME_DIR`, or `/tmp/castore-UID` where there is
/// none. It is made if it is not there.
pub(super) fn own_dir() -> anyhow::Result<PathBuf> {
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
