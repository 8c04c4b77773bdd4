use std::{
    fs::{self, File},
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::bail;
use async_trait::async_trait;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use super::paths;
use crate::{fs::RecentError, prefetch::Trace, remote::RemoteStatus};

/// A mount answers within this time, or is taken for stuck.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// The longest request, in bytes.
const MAX_REQUEST: u64 = 64 << 10;

/// What a mount says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MountStatus {
    pub(super) mountpoint: PathBuf,
    pub(super) pid: u32,
    /// As it was given, to `mount` or to `switch`.
    pub(super) root: String,
    /// What the root stood for then.
    pub(super) digest: Option<String>,
    #[serde(default)]
    pub(super) remotes: Vec<RemoteStatus>,
    /// Seconds since 1970.
    pub(super) since: u64,
    #[serde(default)]
    pub(super) inodes: usize,
    /// Counted since it was mounted.
    #[serde(default)]
    pub(super) counters: Vec<(String, u64)>,
    #[serde(default)]
    pub(super) errors: Vec<RecentError>,
}

/// What a mount is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Request {
    Status,
    /// To show another tree: a root as on the command line.
    Switch(String),
    /// To begin to note what is read; answers with a number.
    TraceStart,
    /// And to tell, if no other has begun since.
    TraceStop(u64),
}

/// What a mount answers when it was asked to switch: a message, or why not.
pub(super) type Switched = Result<String, String>;

/// Who answers.
#[async_trait]
pub(super) trait Mounted: Send + Sync + 'static {
    fn status(&self) -> MountStatus;
    fn trace(&self) -> u64;
    fn traced(&self, number: u64) -> Option<Trace>;
    async fn switch(&self, root: &str) -> anyhow::Result<String>;
}

/// A socket on which a mount answers. It is removed when this is dropped.
pub(super) struct Control {
    path: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Control {
    /// Must be called within a tokio runtime.
    pub(super) fn start(cache_dir: &Path, mounted: Arc<dyn Mounted>) -> std::io::Result<Self> {
        let dir = sockets(cache_dir);
        fs::create_dir_all(&dir)?;
        let name = format!("{}.sock", std::process::id());
        let path = dir.join(&name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(reach(&File::open(&dir)?, &name))?;
        let task = tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                };
                // Each on its own: one that says nothing must not hold up the next.
                tokio::spawn(answer(stream, Arc::clone(&mounted)));
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

async fn answer(
    mut stream: tokio::net::UnixStream,
    mounted: Arc<dyn Mounted>,
) -> anyhow::Result<()> {
    let mut request = Vec::new();
    let mut limited = (&mut stream).take(MAX_REQUEST);
    tokio::time::timeout(ANSWER_WITHIN, limited.read_to_end(&mut request)).await??;
    // Nothing was all that older versions said.
    let request = match &request[..] {
        [] => Request::Status,
        json => serde_json::from_slice(json)?,
    };
    let json = match request {
        Request::Status => serde_json::to_vec(&mounted.status())?,
        Request::TraceStart => serde_json::to_vec(&mounted.trace())?,
        Request::TraceStop(number) => serde_json::to_vec(&mounted.traced(number))?,
        Request::Switch(root) => {
            let switched: Switched = mounted
                .switch(&root)
                .await
                .map_err(|error| format!("{error:#}"));
            serde_json::to_vec(&switched)?
        }
    };
    tokio::time::timeout(ANSWER_WITHIN, stream.write_all(&json)).await??;
    Ok(())
}

/// The cache of the mount on a path, and its process. `cache_dir` is what was said of it: a mount tells by itself, unless it has
/// no extended attributes.
pub(super) fn find(path: &Path, cache_dir: Option<&Path>) -> anyhow::Result<(PathBuf, u32)> {
    let dir = cache_dir.map_or_else(paths::default_cache, Path::to_owned);
    let (mounts, _) = ask_all(&dir);
    let Some(mount) = mounts.iter().rfind(|mount| mount.mountpoint == path) else {
        bail!(
            "nothing is mounted on {path:?} with the cache {dir:?}; `castore status` lists its mounts, --cache-dir names \
             another cache"
        );
    };
    Ok((dir, mount.pid))
}

/// Asks the mount of a process that uses a cache.
pub(super) fn ask_one<T: DeserializeOwned>(
    cache_dir: &Path,
    pid: u32,
    request: &Request,
    within: Duration,
) -> anyhow::Result<T> {
    let dir = File::open(sockets(cache_dir))?;
    let stream = UnixStream::connect(reach(&dir, &format!("{pid}.sock")))?;
    ask(stream, request, within)
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
            Ok(stream) => match ask(stream, &Request::Status, ANSWER_WITHIN) {
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

fn ask<T: DeserializeOwned>(
    mut stream: UnixStream,
    request: &Request,
    within: Duration,
) -> anyhow::Result<T> {
    stream.set_read_timeout(Some(within))?;
    stream.set_write_timeout(Some(within))?;
    // A mount of an older version answers before it is asked, and may be gone by now.
    let asked = stream.write_all(&serde_json::to_vec(request)?);
    if asked.is_ok() {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
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
