//! A server of the protocol that is not castore's: it has what it was given, cuts no blobs, and misbehaves as it is told.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bytes::Bytes;
use castore::{
    model::{Digest, Directory, Name, Node, StorePath},
    proto::{
        self,
        tvix::{
            castore::v1::{
                self as wire, BlobChunk, GetDirectoryRequest, PutBlobResponse,
                PutDirectoryResponse, ReadBlobRequest, StatBlobRequest, StatBlobResponse,
                blob_service_server::{BlobService, BlobServiceServer},
                directory_service_server::{DirectoryService, DirectoryServiceServer},
                get_directory_request::ByWhat,
            },
            store::v1::{
                GetPathInfoRequest, ListPathInfoRequest, PathInfo, get_path_info_request,
                path_info_service_server::{PathInfoService, PathInfoServiceServer},
            },
        },
    },
};
use futures::{StreamExt, stream::BoxStream};
use tokio::sync::oneshot;
use tonic::{
    Request, Response, Status, Streaming, async_trait,
    transport::{Server, server::TcpIncoming},
};

/// What it has, and how it behaves.
#[derive(Default)]
pub struct State {
    blobs: Mutex<HashMap<Digest, Bytes>>,
    directories: Mutex<HashMap<Digest, Bytes>>,
    infos: Mutex<HashMap<[u8; 20], PathInfo>>,
    /// Reads are broken off after so many bytes, once each time this is set. 0: not.
    pub break_after: AtomicU64,
    /// The last byte of each read is another one.
    pub lies: AtomicBool,
    /// The first byte of the next read that breaks off is another one.
    pub lies_before_it_breaks: AtomicBool,
    /// Milliseconds before each piece of a blob.
    pub slow: AtomicU64,
    pub reads: AtomicUsize,
    pub closures: AtomicUsize,
}

/// The server, on a thread of its own. It ends when this is dropped.
pub struct Plain {
    pub state: Arc<State>,
    pub port: u16,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Plain {
    /// Speaks `tvix` or `snix`, not both.
    pub fn start(package: &'static str) -> Self {
        Self::with(package, Arc::default(), 0)
    }

    /// Starts with what another one had, perhaps at a port of its own choice.
    pub fn with(package: &'static str, state: Arc<State>, port: u16) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let (told, port_told) = std::sync::mpsc::channel();
        let shared = Service(Arc::clone(&state));
        let thread = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let address = SocketAddr::from(([127, 0, 0, 1], port));
                let incoming = TcpIncoming::bind(address).unwrap().with_nodelay(Some(true));
                told.send(incoming.local_addr().unwrap().port()).unwrap();
                // The generated services have one package name; any other is moved there or away.
                let rename = tower::util::MapRequestLayer::new(
                    move |mut request: http::Request<tonic::body::Body>| {
                        let path = request.uri().path().to_owned();
                        let path = match path.strip_prefix(&format!("/{package}.")) {
                            Some(rest) => format!("/tvix.{rest}"),
                            None => format!("/unknown{path}"),
                        };
                        *request.uri_mut() = path.parse().unwrap();
                        request
                    },
                );
                let server = Server::builder()
                    .layer(rename)
                    .add_service(BlobServiceServer::new(shared.clone()))
                    .add_service(DirectoryServiceServer::new(shared.clone()))
                    .add_service(PathInfoServiceServer::new(shared))
                    .serve_with_incoming(incoming);
                tokio::select! {
                    served = server => served.unwrap(),
                    _ = stopped => {}
                }
            });
            // Connections break off.
            runtime.shutdown_timeout(Duration::from_secs(1));
        });
        let port = port_told.recv_timeout(super::DEADLINE).unwrap();
        Self {
            state,
            port,
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    pub fn address(&self) -> String {
        format!("grpc+http://127.0.0.1:{}", self.port)
    }

    pub fn blob(&self, bytes: Vec<u8>) -> Node {
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        self.state
            .blobs
            .lock()
            .unwrap()
            .insert(digest, bytes.into());
        Node::File {
            digest,
            size,
            executable: true,
        }
    }

    pub fn directory(&self, directory: &Directory) -> Node {
        let bytes = Bytes::copy_from_slice(directory.encoded());
        let digest = Digest::of(&bytes);
        self.state.directories.lock().unwrap().insert(digest, bytes);
        Node::Directory {
            digest,
            size: directory.size(castore::model::SizeRule::Protocol),
        }
    }

    pub fn store_path(&self, path: &StorePath, node: &Node, references: &[&StorePath]) {
        let info = PathInfo {
            node: Some(proto::node_message(path.basename(), node)),
            references: references
                .iter()
                .map(|path| Bytes::copy_from_slice(path.hash().as_bytes()))
                .collect(),
            narinfo: Bytes::new(),
        };
        let mut infos = self.state.infos.lock().unwrap();
        infos.insert(*path.hash().as_bytes(), info);
    }

    /// A directory with these entries.
    pub fn tree(&self, entries: impl IntoIterator<Item = (&'static str, Node)>) -> Node {
        let entries = entries
            .into_iter()
            .map(|(name, node)| castore::model::Entry {
                name: Name::new(name).unwrap(),
                node,
            });
        self.directory(&Directory::new(entries.collect()).unwrap())
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[derive(Clone)]
struct Service(Arc<State>);

fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[async_trait]
impl BlobService for Service {
    async fn stat(
        &self,
        request: Request<StatBlobRequest>,
    ) -> Result<Response<StatBlobResponse>, Status> {
        let digest = digest(&request.get_ref().digest)?;
        match self.0.blobs.lock().unwrap().contains_key(&digest) {
            true => Ok(Response::new(StatBlobResponse::default())),
            false => Err(Status::not_found("no such blob")),
        }
    }

    type ReadStream = BoxStream<'static, Result<BlobChunk, Status>>;

    async fn read(
        &self,
        request: Request<ReadBlobRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let digest = digest(&request.get_ref().digest)?;
        let bytes = self.0.blobs.lock().unwrap().get(&digest).cloned();
        let mut bytes = bytes.ok_or_else(|| Status::not_found("no such blob"))?;
        self.0.reads.fetch_add(1, Ordering::SeqCst);
        if self.0.lies.load(Ordering::SeqCst)
            && let Some(last) = bytes.len().checked_sub(1)
        {
            let mut wrong = bytes.to_vec();
            wrong[last] ^= 1;
            bytes = wrong.into();
        }
        let broken = usize::try_from(self.0.break_after.swap(0, Ordering::SeqCst)).unwrap();
        let is_broken = broken > 0;
        if is_broken {
            bytes.truncate(broken);
            if self.0.lies_before_it_breaks.swap(false, Ordering::SeqCst) {
                let mut wrong = bytes.to_vec();
                wrong[0] ^= 1;
                bytes = wrong.into();
            }
        }
        let slow = Duration::from_millis(self.0.slow.load(Ordering::SeqCst));
        // Pieces of an odd size, and an empty one.
        let pieces = (0..bytes.len()).step_by(70_001).map(move |at| {
            let end = (at + 70_001).min(bytes.len());
            Ok(BlobChunk {
                data: bytes.slice(at..end),
            })
        });
        let end = is_broken.then(|| Err(Status::unavailable("broken off on purpose")));
        let empty = Ok(BlobChunk::default());
        let all = futures::stream::iter(std::iter::once(empty).chain(pieces).chain(end));
        let all = all.then(move |piece| async move {
            tokio::time::sleep(slow).await;
            piece
        });
        Ok(Response::new(all.boxed()))
    }

    async fn put(
        &self,
        _: Request<Streaming<BlobChunk>>,
    ) -> Result<Response<PutBlobResponse>, Status> {
        Err(Status::permission_denied("for reading"))
    }
}

#[async_trait]
impl DirectoryService for Service {
    type GetStream = BoxStream<'static, Result<wire::Directory, Status>>;

    async fn get(
        &self,
        request: Request<GetDirectoryRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let Some(ByWhat::Digest(root)) = &request.get_ref().by_what else {
            return Err(Status::invalid_argument("no digest"));
        };
        self.0.closures.fetch_add(1, Ordering::SeqCst);
        let known = self.0.directories.lock().unwrap();
        let (mut left, mut sent) = (vec![digest(root)?], Vec::new());
        let mut seen = std::collections::HashSet::new();
        while let Some(next) = left.pop() {
            if !seen.insert(next) {
                continue;
            }
            let bytes = known.get(&next).cloned();
            let bytes = bytes.ok_or_else(|| Status::not_found("no such directory"))?;
            let directory = Directory::decode(bytes).unwrap();
            left.extend(directory.directories().map(|(digest, _)| digest));
            sent.push(Ok(proto::directory_to_wire(&directory)));
        }
        Ok(Response::new(futures::stream::iter(sent).boxed()))
    }

    async fn put(
        &self,
        _: Request<Streaming<wire::Directory>>,
    ) -> Result<Response<PutDirectoryResponse>, Status> {
        Err(Status::permission_denied("for reading"))
    }
}

#[async_trait]
impl PathInfoService for Service {
    async fn get(
        &self,
        request: Request<GetPathInfoRequest>,
    ) -> Result<Response<PathInfo>, Status> {
        let Some(get_path_info_request::ByWhat::ByOutputHash(hash)) = &request.get_ref().by_what
        else {
            return Err(Status::invalid_argument("no hash"));
        };
        let infos = self.0.infos.lock().unwrap();
        let found = infos.get(&hash[..]).cloned();
        found
            .map(Response::new)
            .ok_or_else(|| Status::not_found("no such path"))
    }

    type ListStream = BoxStream<'static, Result<PathInfo, Status>>;

    async fn list(
        &self,
        _: Request<ListPathInfoRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let infos: Vec<_> = self
            .0
            .infos
            .lock()
            .unwrap()
            .values()
            .cloned()
            .map(Ok)
            .collect();
        Ok(Response::new(futures::stream::iter(infos).boxed()))
    }
}
