use std::{
    fs,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::server::{Place, Server};

/// A stream's flow-control window, in bytes: 1 Gbit/s over 60 ms.
const STREAM_WINDOW: u32 = 8 << 20;
/// A connection's, in bytes.
const CONNECTION_WINDOW: u32 = 32 << 20;
/// A dead connection is noticed within twice this time, and sooner by a request on it. Servers close connections of clients
/// that ask more often.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// Another connection is opened when so many requests are under way on each.
const BUSY: usize = 16;

/// HTTP/2 connections to one server. Each is opened when it is needed and reconnects by itself.
#[derive(Debug)]
pub(super) struct Connections {
    slots: Vec<Arc<Slot>>,
    next: AtomicUsize,
    endpoint: Endpoint,
    socket: Option<Arc<std::path::PathBuf>>,
}

#[derive(Debug, Default)]
struct Slot {
    /// With a number of its own. The lock is held for a look only.
    channel: Mutex<Option<(usize, Channel)>>,
    /// Requests under way.
    requests: AtomicUsize,
}

/// One of the connections, which counts one request more for as long as this lives.
pub(super) struct Connection {
    channel: Channel,
    number: usize,
    slot: Arc<Slot>,
}

impl Connection {
    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Has the next request use another connection: on this one nothing came, and it may be dead.
    pub(super) fn distrust(&self) {
        let mut channel = self.slot.channel();
        if channel
            .as_ref()
            .is_some_and(|(number, _)| *number == self.number)
        {
            *channel = None;
        }
    }
}

impl Slot {
    fn channel(&self) -> std::sync::MutexGuard<'_, Option<(usize, Channel)>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.slot.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connections {
    pub(super) fn new(server: &Server, timeout: Duration) -> Result<Self, String> {
        let (uri, socket) = match &server.place {
            Place::Host(uri) => (uri.clone(), None),
            // The URI is not used to find the server, but HTTP wants one.
            Place::Socket(path) => ("http://castore".to_owned(), Some(Arc::new(path.clone()))),
        };
        let tls = uri.starts_with("https:");
        let connect_timeout = timeout.min(Duration::from_secs(5));
        let mut endpoint = Endpoint::from_shared(uri)
            .map_err(|error| error.to_string())?
            .tcp_nodelay(true)
            .connect_timeout(connect_timeout)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE);
        if tls {
            endpoint = endpoint
                .tls_config(tls_config(server)?.timeout(connect_timeout))
                .map_err(|error| error.to_string())?;
        }
        Ok(Self {
            slots: (0..server.connections).map(|_| Arc::default()).collect(),
            next: AtomicUsize::default(),
            endpoint,
            socket,
        })
    }

    /// The first connection that is not busy, else the least busy.
    pub(super) fn get(&self) -> Connection {
        let load = |slot: &&Arc<Slot>| slot.requests.load(Ordering::Relaxed);
        let slot = self
            .slots
            .iter()
            .find(|slot| load(slot) < BUSY)
            .or_else(|| self.slots.iter().min_by_key(load));
        let slot = slot.unwrap_or(&self.slots[0]);
        slot.requests.fetch_add(1, Ordering::Relaxed);
        let (number, channel) = slot
            .channel()
            .get_or_insert_with(|| (self.next.fetch_add(1, Ordering::Relaxed), self.connect()))
            .clone();
        Connection {
            channel,
            number,
            slot: Arc::clone(slot),
        }
    }

    fn connect(&self) -> Channel {
        match self.socket.clone() {
            None => self.endpoint.connect_lazy(),
            Some(path) => {
                let connect = tower::service_fn(move |_| {
                    let path = Arc::clone(&path);
                    async move { UnixStream::connect(&*path).await.map(TokioIo::new) }
                });
                self.endpoint.connect_with_connector_lazy(connect)
            }
        }
    }
}

fn tls_config(server: &Server) -> Result<ClientTlsConfig, String> {
    let read =
        |path: &std::path::Path| fs::read(path).map_err(|error| format!("{path:?}: {error}"));
    let mut config = ClientTlsConfig::new();
    config = match &server.ca {
        Some(path) => config.ca_certificate(Certificate::from_pem(read(path)?)),
        None => config.with_native_roots(),
    };
    if let Some((certificate, key)) = &server.identity {
        config = config.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(config)
}
