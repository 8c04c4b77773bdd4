use std::{
    fs, io,
    net::{SocketAddr, ToSocketAddrs},
    os::{fd::AsFd, unix::fs::FileTypeExt},
    path::{Path, PathBuf},
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::{Stream, StreamExt};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf},
    net::{TcpStream, UnixListener, UnixStream},
};
use tonic::transport::{
    Certificate, Identity, ServerTlsConfig,
    server::{Connected, TcpConnectInfo, TcpIncoming},
};

/// A connection that is closed here waits this long for its client to close it.
const LINGER: Duration = Duration::from_secs(5);

/// Why a server does not listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("{0:?} is no place to listen at; write host:port or unix:///absolute/path")]
    Address(String),
    #[error("cannot listen at {place}: {cause}")]
    Bind { place: String, cause: io::Error },
    #[error("{path:?}: {cause}")]
    File { path: PathBuf, cause: io::Error },
    #[error("{0:?} and {1:?} are no certificate and its key, in PEM")]
    Certificate(PathBuf, PathBuf),
    #[error("{0:?} is no certificate in PEM")]
    Authority(PathBuf),
    #[error("the server cannot be set up: {0}")]
    Setup(String),
}

/// Where a server listens.
pub struct Listener(Kind);

enum Kind {
    Tcp(TcpIncoming, SocketAddr),
    Socket(UnixListener, SocketFile),
}

/// A place to listen at.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Tcp(String),
    Socket(PathBuf),
}

impl FromStr for Place {
    type Err = ListenError;

    fn from_str(text: &str) -> Result<Self, ListenError> {
        match text.strip_prefix("unix://") {
            Some(path) if path.starts_with('/') => Ok(Self::Socket(path.into())),
            None if text
                .rsplit_once(':')
                .is_some_and(|(_, port)| port.parse::<u16>().is_ok()) =>
            {
                Ok(Self::Tcp(text.to_owned()))
            }
            _ => Err(ListenError::Address(text.to_owned())),
        }
    }
}

/// A socket's name in the filesystem, which goes when the server does.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Listener {
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address is not understood or taken.
    pub fn bind(text: &str) -> Result<Self, ListenError> {
        let failed = |cause| ListenError::Bind {
            place: text.to_owned(),
            cause,
        };
        match text.parse()? {
            Place::Tcp(host) => {
                let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
                for address in host.to_socket_addrs().map_err(failed)? {
                    match TcpIncoming::bind(address) {
                        Ok(incoming) => {
                            let address = incoming.local_addr().map_err(failed)?;
                            let incoming = incoming.with_nodelay(Some(true));
                            return Ok(Self(Kind::Tcp(incoming, address)));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(failed(last))
            }
            Place::Socket(path) => {
                // One that nobody listens at was left behind.
                if is_left_behind(&path) {
                    fs::remove_file(&path).map_err(failed)?;
                }
                let listener = UnixListener::bind(&path).map_err(failed)?;
                Ok(Self(Kind::Socket(listener, SocketFile(path))))
            }
        }
    }

    /// As clients write it.
    #[must_use]
    pub fn address(&self, tls: bool) -> String {
        match &self.0 {
            Kind::Tcp(_, address) if tls => format!("grpc+https://{address}"),
            Kind::Tcp(_, address) => format!("grpc+http://{address}"),
            Kind::Socket(_, SocketFile(path)) => format!("grpc+unix://{}", path.display()),
        }
    }

    /// Whether only this machine can reach it.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match &self.0 {
            Kind::Tcp(_, address) => address.ip().is_loopback(),
            Kind::Socket(..) => true,
        }
    }

    pub(super) fn incoming(self, closing: Closing) -> impl Stream<Item = io::Result<Connection>> {
        let accepted = match self.0 {
            Kind::Tcp(incoming, _) => incoming.map(|stream| stream.map(Io::Tcp)).left_stream(),
            Kind::Socket(listener, file) => {
                futures::stream::unfold((listener, file), |(listener, file)| async move {
                    let accepted = listener.accept().await;
                    Some((
                        accepted.map(|(stream, _)| Io::Socket(stream)),
                        (listener, file),
                    ))
                })
                .boxed()
                .right_stream()
            }
        };
        accepted.map(move |io| {
            let closing = closing.clone();
            io.map(|io| Connection { io, closing })
        })
    }
}

fn is_left_behind(path: &Path) -> bool {
    let refused = io::ErrorKind::ConnectionRefused;
    // Whatever else has that name is somebody's.
    if !fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        return false;
    }
    std::os::unix::net::UnixStream::connect(path).is_err_and(|error| error.kind() == refused)
}

/// A client's connection.
pub(super) struct Connection {
    io: Io,
    closing: Closing,
}

enum Io {
    Tcp(TcpStream),
    Socket(UnixStream),
}

/// A server's connections that are closed here and perhaps not read to their end by their clients.
#[derive(Clone, Default)]
pub(super) struct Closing(Arc<()>);

impl Closing {
    /// Resolves when all are read, or after a while.
    pub(super) async fn done(self) {
        let deadline = tokio::time::Instant::now() + LINGER;
        while Arc::strong_count(&self.0) > 1 && tokio::time::Instant::now() < deadline {
            tokio::time::sleep(LINGER / 200).await;
        }
    }
}

impl Drop for Connection {
    /// A socket that is closed while something of its client's is unread is reset, and what the client has not received is
    /// lost. HTTP/2 clients go on sending window updates to the last, so the socket is kept and drained until the client
    /// closes it.
    fn drop(&mut self) {
        let Io::Tcp(stream) = &self.io else {
            return;
        };
        let (Ok(runtime), Ok(kept)) = (
            tokio::runtime::Handle::try_current(),
            stream.as_fd().try_clone_to_owned(),
        ) else {
            return;
        };
        let closing = self.closing.clone();
        runtime.spawn(async move {
            let Ok(mut kept) = TcpStream::from_std(kept.into()) else {
                return;
            };
            let drained = async {
                kept.shutdown().await?;
                tokio::io::copy(&mut kept, &mut tokio::io::sink()).await
            };
            let _ = tokio::time::timeout(LINGER, drained).await;
            drop(closing);
        });
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        match &self.io {
            Io::Tcp(stream) => stream.connect_info(),
            Io::Socket(_) => TcpConnectInfo {
                local_addr: None,
                remote_addr: None,
            },
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_read(context, buffer),
            Io::Socket(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_write(context, bytes),
            Io::Socket(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_write_vectored(context, slices),
            Io::Socket(stream) => Pin::new(stream).poll_write_vectored(context, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Tcp(stream) => stream.is_write_vectored(),
            Io::Socket(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_flush(context),
            Io::Socket(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().io {
            Io::Tcp(stream) => Pin::new(stream).poll_shutdown(context),
            Io::Socket(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

/// A server's certificate and key, and whose clients it takes.
pub struct Tls(ServerTlsConfig);

impl Tls {
    /// Reads PEM files. With `client_ca`, clients must show a certificate of that authority.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn read(
        certificate: &Path,
        key: &Path,
        client_ca: Option<&Path>,
    ) -> Result<Self, ListenError> {
        let read = |path: &Path| {
            fs::read(path).map_err(|cause| ListenError::File {
                path: path.to_owned(),
                cause,
            })
        };
        let identity = Identity::from_pem(read(certificate)?, read(key)?);
        let mut config = ServerTlsConfig::new().identity(identity);
        let usable = |config: &ServerTlsConfig| {
            let tried = tonic::transport::Server::builder().tls_config(config.clone());
            tried.is_ok()
        };
        if !usable(&config) {
            return Err(ListenError::Certificate(
                certificate.to_owned(),
                key.to_owned(),
            ));
        }
        if let Some(path) = client_ca {
            config = config.client_ca_root(Certificate::from_pem(read(path)?));
            if !usable(&config) {
                return Err(ListenError::Authority(path.to_owned()));
            }
        }
        Ok(Self(config))
    }

    pub(super) fn config(self) -> ServerTlsConfig {
        self.0
    }
}
