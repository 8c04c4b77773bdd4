//! A server that speaks the gRPC protocol of tvix and snix, and perhaps castore's own service for names.
//!
//! - [`GrpcRemote`]: requests and answers
//! - [`Server`]: where it is and how to get there, from an address
//! - `read`, `publish`: requests by theme
//! - `connections`: HTTP/2 connections, as many as are worth it
//! - `codec`: messages that are not decoded, because their digest is that of the bytes
//! - `status`: what a gRPC status means

mod codec;
mod connections;
mod publish;
mod read;
mod server;
mod status;

use std::{
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::Stream;
use http::uri::PathAndQuery;
use tonic::{
    Code, Request, Status, Streaming,
    metadata::{Ascii, MetadataValue},
};

use self::connections::Connections;
pub(super) use self::server::Server;
use super::{Object, PathInfo, Policy, RemoteError, Urgency};
use crate::{
    model::{Digest, OutputHash, StorePath},
    proto::{
        self,
        tvix::{
            castore::v1::{self as castore},
            store::v1::{self as store},
        },
    },
};

/// Request metadata that tells a server how urgent a chunk is.
pub const PRIORITY: &str = "castore-priority";
/// Its value where no reader waits.
pub const PREFETCH: &str = "prefetch";
/// Request metadata that tells a server the size of what is asked for, in bytes.
pub const SIZE: &str = "castore-size";
/// Answer metadata that tells how long an overloaded server wants to be left alone, in milliseconds.
pub const RETRY_AFTER: &str = "castore-retry-after-ms";

/// Answer metadata of a server that turns prefetch away and would take a reader.
pub const SHED: &str = "castore-shed";
/// Answer metadata of a server that is well and cannot get what was asked for: why not.
pub const UPSTREAM: &str = "castore-upstream";
/// Its value where the server's own remotes are away …
pub const AWAY: &str = "away";
/// … and where they have not answered yet.
pub const PENDING: &str = "pending";
/// Request metadata that tells how long the client waits for the first message of an answer, in milliseconds.
pub const WAIT: &str = "castore-wait-ms";
/// Request metadata that holds the token of those who may change names.
pub const NAMES_TOKEN: &str = "castore-names-token";

/// The largest message that is accepted, in bytes: a directory of about a million entries.
pub(crate) const MAX_MESSAGE: usize = 128 << 20;
/// The largest chunk, in bytes: it has to fit in memory.
const MAX_CHUNK: u64 = 1 << 30;
/// Store paths that are listed at the most.
const MAX_LISTED: usize = 10_000_000;

/// The package names under which a server offers the protocol.
const PACKAGES: [&str; 2] = ["tvix", "snix"];
/// Not found out yet.
const UNKNOWN: u8 = u8::MAX;

/// A store behind a gRPC server.
#[derive(Debug)]
pub struct GrpcRemote {
    address: Arc<str>,
    connections: Connections,
    /// Where the token is; read again when the server does not take it any more.
    server: Server,
    /// The lock is held for a look only.
    token: RwLock<Option<MetadataValue<Ascii>>>,
    names_token: Option<MetadataValue<Ascii>>,
    /// The most time between two messages of an answer.
    idle: Duration,
    /// Position in [`PACKAGES`].
    package: AtomicU8,
    /// The same, where the address tells.
    told_package: Option<u8>,
    /// Whether it has castore's own service for chunks; found out when something is put.
    takes_chunks: OnceLock<bool>,
}

impl GrpcRemote {
    /// Connects at the first request. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When a file that the address names cannot be read or is not what it should be.
    pub fn new(server: &Server, policy: &Policy) -> Result<Self, String> {
        let package = PACKAGES
            .iter()
            .position(|package| Some(*package) == server.protocol.as_deref())
            .and_then(|position| u8::try_from(position).ok());
        Ok(Self {
            address: server.shown.as_str().into(),
            connections: Connections::new(server, policy.idle())?,
            server: server.clone(),
            token: RwLock::new(server.token()?),
            names_token: server.names_token()?,
            idle: policy.idle(),
            package: AtomicU8::new(package.unwrap_or(UNKNOWN)),
            told_package: package,
            takes_chunks: OnceLock::new(),
        })
    }

    fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        if let Some(token) = &*self.token.read().unwrap_or_else(PoisonError::into_inner) {
            request
                .metadata_mut()
                .insert("authorization", token.clone());
        }
        // Some of the time is the network's.
        let wait = u64::try_from(self.idle.as_millis() * 7 / 10).unwrap_or(u64::MAX);
        request.metadata_mut().insert(WAIT, wait.into());
        request
    }

    /// Reads the token again; true when it is another one by now.
    fn renew_token(&self) -> bool {
        let Ok(renewed) = self.server.token() else {
            return false;
        };
        let mut token = self.token.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = *token != renewed;
        *token = renewed;
        is_new
    }

    /// Sends a request to a service of the protocol, under the package name that the server knows.
    async fn call<Q, A>(
        &self,
        object: &Object,
        method: &str,
        message: Q,
        mark: impl Fn(&mut Request<Q>),
    ) -> Result<Answer<A>, RemoteError>
    where
        Q: prost::Message + Clone + 'static,
        A: codec::Answered,
    {
        let known = self.package.load(Ordering::Relaxed);
        let packages = match PACKAGES.get(usize::from(known)) {
            Some(package) => std::slice::from_ref(package),
            None => &PACKAGES[..],
        };
        let mut refused = None;
        for (at, package) in packages.iter().enumerate() {
            let mut request = self.request(message.clone());
            mark(&mut request);
            let path = format!("/{package}.{method}");
            let mut answer = self.send(object, &path, request).await;
            if let Err(status) = &answer
                && status.code() == Code::Unauthenticated
                && self.renew_token()
            {
                let mut request = self.request(message.clone());
                mark(&mut request);
                answer = self.send(object, &path, request).await;
            }
            match answer {
                Err(status) if status.code() == Code::Unimplemented => refused = Some(status),
                answer => {
                    // "Not found" and the like come from a service that is there.
                    let spoken = match &answer {
                        Ok(_) => true,
                        Err(status) => status::is_from_service(status),
                    };
                    if known == UNKNOWN && spoken {
                        let at = u8::try_from(at).unwrap_or(UNKNOWN);
                        self.package.store(at, Ordering::Relaxed);
                    }
                    return answer.map_err(|status| self.failed(object.clone(), &status));
                }
            }
        }
        let status = refused.unwrap_or_else(|| Status::unimplemented("no protocol"));
        if known != UNKNOWN && self.told_package.is_none() {
            // It may be another server by now; the next request finds out.
            self.package.store(UNKNOWN, Ordering::Relaxed);
        }
        Err(self.failed(object.clone(), &status))
    }

    /// Sends a request and waits for the first message, or for the end where there is none.
    async fn send<Q, A>(
        &self,
        object: &Object,
        path: &str,
        request: Request<Q>,
    ) -> Result<Answer<A>, Status>
    where
        Q: prost::Message + 'static,
        A: codec::Answered,
    {
        let path: PathAndQuery = path
            .parse()
            .map_err(|_| Status::invalid_argument("a bad method name"))?;
        let connection = self.connections.get();
        let mut client =
            tonic::client::Grpc::new(connection.channel()).max_decoding_message_size(MAX_MESSAGE);
        let first = async {
            client
                .ready()
                .await
                .map_err(|error| Status::unavailable(status::innermost(&error)))?;
            let answer = client
                .server_streaming(request, path, A::codec::<Q>())
                .await?;
            let mut stream: Streaming<A> = answer.into_inner();
            let first = stream.message().await?;
            Ok::<_, Status>((first, stream))
        };
        let Ok(answered) = tokio::time::timeout(self.idle, first).await else {
            connection.distrust();
            return Err(Status::unavailable(format!("no answer in {:?}", self.idle)));
        };
        let (first, stream) = answered?;
        Ok(Answer {
            first,
            stream,
            idle: self.idle,
            remote: Arc::clone(&self.address),
            object: object.clone(),
            connection,
        })
    }

    fn failed(&self, object: Object, status: &Status) -> RemoteError {
        status::read_failed(Arc::clone(&self.address), object, status)
    }

    fn corrupt(
        &self,
        object: Object,
        cause: impl std::error::Error + Send + Sync + 'static,
    ) -> RemoteError {
        RemoteError::Corrupt {
            remote: Arc::clone(&self.address),
            object,
            cause: Arc::new(cause),
        }
    }

    fn not_found(&self, object: Object) -> RemoteError {
        RemoteError::NotFound {
            remote: Arc::clone(&self.address),
            object,
        }
    }

    async fn stat(
        &self,
        blob: Digest,
        chunks: bool,
    ) -> Result<castore::StatBlobResponse, RemoteError> {
        let object = Object::Blob(blob);
        let message = castore::StatBlobRequest {
            digest: bytes(blob),
            send_chunks: chunks,
            send_bao: false,
        };
        let method = "castore.v1.BlobService/Stat";
        let answer: Answer<castore::StatBlobResponse> =
            self.call(&object, method, message, |_| ()).await?;
        answer.only().await
    }

    async fn read(
        &self,
        object: &Object,
        blob: Digest,
        size: Option<u64>,
        urgency: &Urgency,
    ) -> Result<Answer<castore::BlobChunk>, RemoteError> {
        let message = castore::ReadBlobRequest {
            digest: bytes(blob),
        };
        let mark = |request: &mut Request<_>| {
            if !urgency.is_reader() {
                let prefetch = MetadataValue::from_static(PREFETCH);
                request.metadata_mut().insert(PRIORITY, prefetch);
            }
            if let Some(size) = size {
                request.metadata_mut().insert(SIZE, size.into());
            }
        };
        self.call(object, "castore.v1.BlobService/Read", message, mark)
            .await
    }

    fn store_path(&self, info: store::PathInfo) -> Result<PathInfo, RemoteError> {
        let object = Object::StorePaths;
        let corrupt = |cause: String| self.corrupt(object.clone(), std::io::Error::other(cause));
        let node = info.node.ok_or_else(|| corrupt("no node".to_owned()))?;
        let (name, node) =
            proto::node_of(node).map_err(|error| self.corrupt(object.clone(), error))?;
        let path = StorePath::from_basename(name).map_err(|error| corrupt(error.to_string()))?;
        let references = info
            .references
            .iter()
            .map(|hash| OutputHash::try_from(&hash[..]))
            .collect::<Result<_, _>>()
            .map_err(|_| corrupt(format!("{path} has a reference that is no output hash")))?;
        Ok(PathInfo {
            path,
            node,
            references,
        })
    }
}

/// An answer that has begun. The connection counts as busy until it is dropped.
struct Answer<A> {
    first: Option<A>,
    stream: Streaming<A>,
    idle: Duration,
    remote: Arc<str>,
    object: Object,
    connection: connections::Connection,
}

impl<A: Send + 'static> Answer<A> {
    async fn next(&mut self) -> Option<Result<A, RemoteError>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let message =
            if let Ok(message) = tokio::time::timeout(self.idle, self.stream.message()).await {
                message.transpose()?
            } else {
                self.connection.distrust();
                let cause = format!("nothing came in {:?}", self.idle);
                Err(Status::unavailable(cause))
            };
        Some(message.map_err(|status| {
            status::read_failed(Arc::clone(&self.remote), self.object.clone(), &status)
        }))
    }

    /// The one message of an answer that has one.
    async fn only(mut self) -> Result<A, RemoteError> {
        let message = self.next().await.unwrap_or_else(|| {
            let status = Status::internal("an empty answer");
            Err(status::read_failed(
                Arc::clone(&self.remote),
                self.object.clone(),
                &status,
            ))
        })?;
        // The status comes after the message.
        while let Some(rest) = self.next().await {
            rest?;
        }
        Ok(message)
    }

    fn into_stream(self) -> impl Stream<Item = Result<A, RemoteError>> + Send + 'static {
        futures::stream::unfold(Some(self), |answer| async move {
            let mut answer = answer?;
            match answer.next().await? {
                Ok(message) => Some((Ok(message), Some(answer))),
                Err(error) => Some((Err(error), None)),
            }
        })
    }
}

fn bytes(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(digest.as_bytes())
}
