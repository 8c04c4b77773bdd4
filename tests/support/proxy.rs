//! A TCP proxy between a client and a server, both on this machine, that makes a far or a bad link of it.
//!
//! It models the link and not TCP: the kernel acknowledges at once what an end sends to the proxy. So there is no slow
//! start, no loss, no packet header, and connecting takes no time.

use std::{
    collections::VecDeque,
    future::pending,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    io::{Error, ErrorKind, Result},
    net::{Ipv4Addr, SocketAddr},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    ptr::null_mut,
    sync::{Arc, Mutex, atomic::AtomicU64, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use rustix::net::sockopt::set_socket_linger;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, unix::AsyncFd},
    net::{TcpListener, TcpSocket, TcpStream, UnixStream},
    runtime::{Builder, Runtime},
    sync::watch,
    task::JoinHandle,
    time::sleep,
};

use super::{DEADLINE, eventually};

const CHUNK: usize = 64 << 10;
/// No more is taken from one end while the other end does not take it: 25 ms of 20 Gbit/s.
const ON_THE_WAY: usize = 64 << 20;
/// So late the proxy may be, when the processors are busy, without the link's idling.
const LATE: Duration = Duration::from_millis(50);

/// What the link does. Default: nothing.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// One way, in each direction: the round trip takes twice this time.
    pub delay: Duration,
    /// Bytes per second, for each direction, shared by all connections. `None`: no limit.
    pub bandwidth: Option<u64>,
    /// A connection is reset when so many bytes, from its beginning on, have gone to the client. The reset destroys
    /// what a slow client has not received by then, so that it gets less.
    pub reset_after: Option<u64>,
    /// One byte of each so many to the client is flipped. Which one, is the same every time for the n-th connection.
    pub wrong_byte_every: Option<u64>,
    /// Connections are accepted, but nothing is read, nothing is written, and nobody is told of anything. When this
    /// ends, all goes on without a loss.
    pub black_hole: bool,
    /// An end is not told that the other end has closed or reset the connection, until this ends.
    pub half_open: bool,
}

/// Where the proxy connects to.
#[derive(Clone, Debug)]
pub enum Upstream {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl From<SocketAddr> for Upstream {
    fn from(address: SocketAddr) -> Self {
        Self::Tcp(address)
    }
}

/// A port of 127.0.0.1.
impl From<u16> for Upstream {
    fn from(port: u16) -> Self {
        Self::Tcp((Ipv4Addr::LOCALHOST, port).into())
    }
}

impl From<&Path> for Upstream {
    fn from(path: &Path) -> Self {
        Self::Unix(path.to_owned())
    }
}

/// A running proxy, on threads of its own. For blocking code: not to be used on a thread of another runtime.
pub struct Proxy {
    address: SocketAddr,
    /// Bound, never listening: keeps the port while the proxy is closed. Otherwise somebody else gets it in the end, or
    /// a client that tries again and again gets it as its own port and is connected to itself.
    hold: TcpSocket,
    shared: Arc<Shared>,
    /// The task that accepts connections, unless closed.
    accepting: Mutex<Option<JoinHandle<()>>>,
    /// Always there, up to `drop`.
    runtime: Option<Runtime>,
}

struct Shared {
    link: watch::Sender<Link>,
    upstream: Mutex<Upstream>,
    connections: Mutex<Vec<JoinHandle<()>>>,
    accepted: AtomicU64,
    /// To the server, to the client.
    ways: [Way; 2],
}

/// One direction of the link: a queue that all connections stand in.
#[derive(Default)]
struct Way {
    /// When all that was read has left.
    free: Mutex<Option<Instant>>,
    passed: AtomicU64,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1.
    pub fn start(upstream: impl Into<Upstream>) -> Self {
        let hold = TcpSocket::new_v4().unwrap();
        hold.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).thread_name("proxy").enable_all();
        let proxy = Self {
            address: hold.local_addr().unwrap(),
            hold,
            shared: Arc::new(Shared {
                link: watch::Sender::default(),
                upstream: Mutex::new(upstream.into()),
                connections: Mutex::default(),
                accepted: AtomicU64::default(),
                ways: Default::default(),
            }),
            accepting: Mutex::default(),
            runtime: Some(runtime.build().unwrap()),
        };
        proxy.open();
        proxy
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What happens from now on, on existing connections too. What is on its way arrives when it would have.
    pub fn set(&self, link: Link) {
        self.shared.link.send_replace(link);
    }

    /// Resets every connection there is. They are gone when this returns.
    pub fn cut(&self) {
        let connections = std::mem::take(&mut *self.shared.connections.lock().unwrap());
        end(&connections);
    }

    /// Refuses connections from now on, and resets those there are.
    pub fn close(&self) {
        let mut accepting = self.accepting.lock().unwrap();
        end(accepting.take().as_slice());
        self.cut();
    }

    /// Listens again, on the same port.
    pub fn open(&self) {
        let mut accepting = self.accepting.lock().unwrap();
        if accepting.is_none() {
            let runtime = self.runtime.as_ref().unwrap();
            let _context = runtime.enter();
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            // For this moment only: nobody else is to share the port.
            self.hold.set_reuseaddr(true).unwrap();
            socket.bind(self.address).unwrap();
            let listener = socket.listen(1024).unwrap();
            self.hold.set_reuseaddr(false).unwrap();
            *accepting = Some(runtime.spawn(accept(listener, Arc::clone(&self.shared))));
        }
    }

    /// Points it at another server, from the next connection on.
    pub fn forward_to(&self, upstream: impl Into<Upstream>) {
        *self.shared.upstream.lock().unwrap() = upstream.into();
    }

    /// Bytes that went through so far: to the server, to the client. Behind by a moment: counted once written.
    pub fn bytes(&self) -> (u64, u64) {
        let [there, back] = &self.shared.ways;
        (there.passed.load(Relaxed), back.passed.load(Relaxed))
    }

    /// Open now.
    pub fn connections(&self) -> usize {
        let connections = self.shared.connections.lock().unwrap();
        connections.iter().filter(|one| !one.is_finished()).count()
    }

    /// In total.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // Drops all tasks and with them all sockets, and joins the threads.
        self.runtime.take().unwrap().shutdown_timeout(DEADLINE);
    }
}

/// Ends tasks. Their sockets are closed when this returns.
fn end(tasks: &[JoinHandle<()>]) {
    tasks.iter().for_each(JoinHandle::abort);
    let ended = || tasks.iter().all(JoinHandle::is_finished);
    eventually("the end of the proxy's tasks", ended);
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            // Out of file descriptors, most likely, which passes.
            sleep(Duration::from_millis(10)).await;
            continue;
        };
        let mut connections = shared.connections.lock().unwrap();
        connections.retain(|one| !one.is_finished());
        let seed = shared.accepted.fetch_add(1, Relaxed);
        let shared = Arc::clone(&shared);
        connections.push(tokio::spawn(async move {
            let _ = relay(client, &shared, seed).await;
        }));
    }
}

trait Socket: AsyncRead + AsyncWrite + AsFd + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + AsFd + Send + Unpin> Socket for T {}

/// One connection, until both ends have closed it or something has gone wrong.
async fn relay(mut client: TcpStream, shared: &Shared, seed: u64) -> Result<()> {
    // However this ends, the end sees a reset.
    set_socket_linger(&client, Some(Duration::ZERO))?;
    client.set_nodelay(true)?;
    let mut links = shared.link.subscribe();
    let _ = links.wait_for(|link| !link.black_hole).await;
    let upstream = shared.upstream.lock().unwrap().clone();
    let mut server: Box<dyn Socket> = match upstream {
        Upstream::Tcp(address) => {
            let server = TcpStream::connect(address).await?;
            server.set_nodelay(true)?;
            Box::new(server)
        }
        Upstream::Unix(path) => Box::new(UnixStream::connect(path).await?),
    };
    set_socket_linger(&server, Some(Duration::ZERO))?;
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = tokio::io::split(&mut server);
    tokio::try_join!(
        pump(from_client, to_server, shared, None),
        pump(from_server, to_client, shared, Some(seed)),
    )?;
    // Except now: each was told that the other has closed it, and takes what the kernel still has for it.
    set_socket_linger(&server, None)?;
    Ok(set_socket_linger(&client, None)?)
}

/// One direction of one connection: with a seed for the faults, it is the one to the client.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    shared: &Shared,
    seed: Option<u64>,
) -> Result<()> {
    let way = &shared.ways[usize::from(seed.is_some())];
    let mut links = shared.link.subscribe();
    let mut timer = Timer::new()?;
    let mut buffer = vec![0; CHUNK];
    // What was read and not written: the first `due` bytes may be written, the others from the times in `later` on.
    let (mut queue, mut due) = (VecDeque::new(), 0);
    let mut later = VecDeque::<(Instant, usize)>::new();
    let (mut last, mut read_at) = (Instant::now(), Instant::now());
    let (mut passed, mut ended, mut idle) = (0, None, true);
    loop {
        let link = links.borrow_and_update().clone();
        if link.black_hole {
            links.changed().await.map_err(Error::other)?;
            continue;
        }
        let now = Instant::now();
        while let Some((_, len)) = later.front().filter(|(at, _)| *at <= now) {
            due += len;
            later.pop_front();
        }
        let arrived = queue.is_empty() && last <= now;
        if let Some(result) = ended.take_if(|_| arrived && !link.half_open) {
            result?;
            return to.shutdown().await;
        }
        let left = link.reset_after.filter(|_| seed.is_some());
        let left = left.map_or(usize::MAX, |limit| to_len(limit.saturating_sub(passed)));
        if left == 0 {
            return Err(ErrorKind::ConnectionReset.into());
        }
        let front = queue.as_slices().0;
        let front = &front[..front.len().min(due).min(left)];
        // No more than a millisecond's worth, lest a slow link is a fast link now and then.
        let most = link.bandwidth.map_or(u64::MAX, |rate| rate / 1000);
        let most = to_len(most).clamp(1, CHUNK);
        let reads = ended.is_none() && queue.len() < ON_THE_WAY && read_at <= now;
        let next = later.front().map_or(last, |(at, _)| *at);
        let next = [next, read_at].into_iter().filter(|at| *at > now).min();
        tokio::select! {
            biased;
            changed = links.changed() => changed.map_err(Error::other)?,
            fired = timer.wait(next.unwrap_or(now)), if next.is_some() => fired?,
            written = to.write(front), if !front.is_empty() => match written {
                Ok(len) => {
                    queue.drain(..len);
                    due -= len;
                    passed += len as u64;
                    way.passed.fetch_add(len as u64, Relaxed);
                }
                // The receiver has reset it. The sender hears of it when the news has travelled back.
                Err(error) => {
                    (queue, later, due) = Default::default();
                    (last, ended) = (now + link.delay, Some(Err(error)));
                }
            },
            read = from.read(&mut buffer[..most]), if reads => {
                let len = *read.as_ref().unwrap_or(&0);
                if let (Some(seed), Some(every)) = (seed, link.wrong_byte_every) {
                    spoil(&mut buffer[..len], passed + queue.len() as u64, seed, every);
                }
                let now = Instant::now();
                let mut leaves = now;
                if let Some(bandwidth) = link.bandwidth {
                    // Reckoned from when it could have been read, so that being late does not add up.
                    leaves = if idle { now } else { read_at.max(now.checked_sub(LATE).unwrap()) };
                    let mut free = way.free.lock().unwrap();
                    leaves = free.map_or(leaves, |free| free.max(leaves));
                    leaves += Duration::from_nanos(len as u64 * 1_000_000_000 / bandwidth.max(1));
                    *free = Some(leaves);
                }
                (read_at, idle) = (leaves, false);
                // Nothing overtakes anything, also when the delay was longer before.
                last = last.max(leaves + link.delay);
                later.push_back((last, len));
                queue.extend(&buffer[..len]);
                if len == 0 {
                    ended = Some(read.map(drop));
                }
            }
            // Polled after all the others had to wait.
            () = async { idle |= reads; pending().await } => {}
        }
    }
}

/// Flips one byte of each `every` bytes of a stream. So many bytes of it were `before` these.
fn spoil(bytes: &mut [u8], before: u64, seed: u64, every: u64) {
    let every = every.max(1);
    for run in before / every..=(before + bytes.len() as u64) / every {
        // The keys of this hasher are always the same.
        let random = BuildHasherDefault::<DefaultHasher>::default().hash_one((seed, run));
        let wrong = (run * every + random % every).checked_sub(before);
        if let Some(byte) = wrong.and_then(|at| bytes.get_mut(to_len(at))) {
            *byte = !*byte;
        }
    }
}

/// Longer than anything here is short enough.
fn to_len(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

/// The runtime's own timers are late by 1 ms on average: too much for a link of 1 ms.
struct Timer {
    fd: AsyncFd<OwnedFd>,
    set: Option<Instant>,
}

impl Timer {
    fn new() -> Result<Self> {
        let flags = libc::TFD_NONBLOCK | libc::TFD_CLOEXEC;
        // SAFETY: a system call without pointers.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, flags) };
        assert!(fd >= 0, "no timer: {}", Error::last_os_error());
        // SAFETY: it is new, nobody else's, and stays open as long as it is registered.
        let fd = unsafe { AsyncFd::register(OwnedFd::from_raw_fd(fd)) }?;
        Ok(Self { fd, set: None })
    }

    /// Waits until this time, or less sometimes, when an earlier time is over: the caller looks at the clock.
    async fn wait(&mut self, time: Instant) -> Result<()> {
        if self.set.replace(time) != Some(time) {
            // SAFETY: a structure of numbers.
            let mut spec: libc::itimerspec = unsafe { std::mem::zeroed() };
            // At least something: 0 is for ever.
            let wait = (time - Instant::now()).max(Duration::from_nanos(1));
            spec.it_value.tv_sec = wait.as_secs().try_into().unwrap();
            spec.it_value.tv_nsec = wait.subsec_nanos().into();
            let fd = self.fd.as_raw_fd();
            // SAFETY: a system call with a valid structure, and without the optional one.
            unsafe { libc::timerfd_settime(fd, 0, &raw const spec, null_mut()) };
        }
        self.fd.readable().await?.clear_ready();
        Ok(())
    }
}
