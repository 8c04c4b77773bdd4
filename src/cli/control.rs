use std::{
    fs::{self, File},
    io::Read,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{io::AsyncWriteExt, net::UnixListener};

use crate::fs::{Filesystem, Trouble};

/// A mount answers within this time, or is taken for stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What a mount says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MountStatus {
    pub(super) mountpoint: PathBuf,
    pub(super) pid: u32,
    /// As it was given.
    pub(super) root: String,
    /// What the root stood for when it was mounted.
    pub(super) digest: Option<String>,
    pub(super) remotes: Vec<String>,
    /// Seconds since 1970.
    pub(super) since: u64,
    #[serde(default)]
    pub(super) inodes: usize,
    /// Counted since it was mounted.
    #[serde(default)]
    pub(super) counters: Vec<(String, u64)>,
    #[serde(default)]
    pub(super) errors: Vec<Trouble>,
}

/// A socket on which a mount answers `status`. It is removed when this is dropped.
pub(super) struct Control {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Control {
    /// Must be called within a tokio runtime.
    pub(super) fn start(
        cache_dir: &Path,
        status: MountStatus,
        fs: Arc<Filesystem>,
    ) -> std::io::Result<Self> {
        let dir = sockets(cache_dir);
        fs::create_dir_all(&dir)?;
        let name = format!("{}.sock", status.pid);
        let path = dir.join(&name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(reach(&File::open(&dir)?, &name))?;
        let task = tokio::spawn(async move {
            loop {
                let Ok((mut stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                let counters = fs.cache().stats().iter();
                let status = MountStatus {
                    inodes: fs.inode_count(),
                    counters: counters
                        .map(|(name, value)| (name.to_owned(), value))
                        .collect(),
                    errors: fs.troubles(),
                    ..status.clone()
                };
                if let Ok(json) = serde_json::to_vec(&status) {
                    let _ = tokio::time::timeout(ANSWER_WITHIN, stream.write_all(&json)).await;
                }
            }
        });
        Ok(Self { path, task })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.task.abort();
        let _ = fs::remove_file(&self.path);
    }
}

/// What the mounts that use a cache say, and how many do not answer. Sockets of processes that are gone are removed.
pub(super) fn ask_all(cache_dir: &Path) -> (Vec<MountStatus>, usize) {
    let dir = sockets(cache_dir);
    let (mut mounts, mut silent) = (Vec::new(), 0);
    let Ok(handle) = File::open(&dir) else {
        return (mounts, silent);
    };
    for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        match UnixStream::connect(reach(&handle, &name)) {
            Ok(stream) => match ask(stream) {
                Ok(status) => mounts.push(status),
                Err(_) => silent += 1,
            },
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
                let _ = fs::remove_file(entry.path());
            }
            Err(_) => silent += 1,
        }
    }
    mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    (mounts, silent)
}

fn ask(mut stream: UnixStream) -> anyhow::Result<MountStatus> {
    stream.set_read_timeout(Some(ANSWER_WITHIN))?;
    let mut json = Vec::new();
    stream.read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

fn sockets(cache_dir: &Path) -> PathBuf {
    cache_dir.join("mounts")
}

/// The address of a socket holds 107 bytes, and a cache directory's path can be longer.
fn reach(dir: &File, name: &str) -> PathBuf {
    let fd = std::os::fd::AsRawFd::as_raw_fd(dir);
    PathBuf::from(format!("/proc/self/fd/{fd}/{name}"))
}
