use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
};

use super::{raw_path::RawPath, registry};
use crate::{fs::RecentError, prefetch::Trace, remote::RemoteStatus};

/// A mount that lives answers within this time, from connecting to the last byte.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// A client sends its request and takes the answer within this time.
const CLIENT_WITHIN: Duration = Duration::from_secs(5);
/// The longest request, in bytes.
const MAX_REQUEST: u64 = 64 << 10;
/// The longest answer, in bytes: a trace of some hundred thousand reads.
const MAX_ANSWER: u64 = 1 << 30;
/// How soon a mount is tried again that has too many clients already.
const BUSY: Duration = Duration::from_millis(10);

/// What a mount says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct MountStatus {
    pub(super) mountpoint: RawPath,
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
    /// What the kernel has asked since then, by the operation's name in the protocol.
    #[serde(default)]
    pub(super) requests: Vec<(String, u64)>,
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
        let (listener, path) = listen(&sockets(cache_dir)).or_else(|error| {
            // The cache may be one that can only be read. The registry tells where the socket is.
            let dir = registry::own_dir().map_err(|_| error)?;
            listen(&sockets(&dir))
        })?;
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

    /// Where it listens.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes a socket of this process in a directory.
fn listen(dir: &Path) -> std::io::Result<(UnixListener, PathBuf)> {
    fs::create_dir_all(dir)?;
    let name = format!("{}.sock", std::process::id());
    let path = dir.join(&name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let handle = File::open(dir)?;
    let listener = UnixListener::bind(reach(&handle, &name))?;
    Ok((listener, path))
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
    tokio::time::timeout(CLIENT_WITHIN, limited.read_to_end(&mut request)).await??;
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
    tokio::time::timeout(CLIENT_WITHIN, stream.write_all(&json)).await??;
    Ok(())
}

/// Asks the mount that listens on a socket. `within` is the time for all of it.
///
/// # Errors
/// `TimedOut` when it does not answer, `ConnectionRefused` when nobody listens, `PermissionDenied` when it is another user's.
pub(super) fn ask<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
    within: Duration,
) -> io::Result<T> {
    let deadline = Instant::now() + within;
    let mut stream = connect(socket, deadline)?;
    stream.set_write_timeout(Some(left(deadline)?))?;
    stream.write_all(&serde_json::to_vec(request)?)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut json = Vec::new();
    let mut part = vec![0; 64 << 10];
    loop {
        stream.set_read_timeout(Some(left(deadline)?))?;
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(len) => json.extend_from_slice(&part[..len]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(error) => return Err(error),
        }
        if json.len() as u64 > MAX_ANSWER {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    Ok(serde_json::from_slice(&json)?)
}

/// Connecting waits while a process has not taken the connections that it has, so one that is stopped would be waited for
/// without end.
fn connect(socket: &Path, deadline: Instant) -> io::Result<UnixStream> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let dir = File::open(dir)?;
    let address = SocketAddrUnix::new(reach(&dir, name.to_string_lossy().as_ref()))?;
    loop {
        let stream = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        )?;
        match rustix::net::connect(&stream, &address) {
            Ok(()) => {
                let stream = UnixStream::from(stream);
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(rustix::io::Errno::AGAIN) => std::thread::sleep(BUSY.min(left(deadline)?)),
            Err(error) => return Err(error.into()),
        }
    }
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

/// The sockets of the mounts that use a cache, with the numbers of their processes.
pub(super) fn sockets_of(cache_dir: &Path) -> Vec<(u32, PathBuf)> {
    let entries = fs::read_dir(sockets(cache_dir))
        .into_iter()
        .flatten()
        .flatten();
    let found = entries.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let pid = name.strip_suffix(".sock")?.parse().ok()?;
        Some((pid, entry.path()))
    });
    found.collect()
}

fn sockets(dir: &Path) -> PathBuf {
    dir.join("mounts")
}

/// The address of a socket holds 107 bytes, and a cache directory's path can be longer.
fn reach(dir: &File, name: &str) -> PathBuf {
    let fd = std::os::fd::AsRawFd::as_raw_fd(dir);
    PathBuf::from(format!("/proc/self/fd/{fd}/{name}"))
}
