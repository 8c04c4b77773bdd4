use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use tonic::{Code, Request, Status};

use super::{GrpcRemote, NAMES_TOKEN, codec::Answered, status};
use crate::{
    model::{Digest, Manifest, Name, Node},
    proto::{
        self,
        castore::v1::has_request::What,
        castore::v1::{
            HasRequest, HasResponse, PutManifestRequest, PutManifestResponse, PutRootResponse,
            RemoveRootRequest, RemoveRootResponse,
        },
        tvix::castore::v1 as castore,
    },
    remote::{Object, Pieces, Publish, PutWhole, Remote, RemoteError, Urgency},
};

/// Bytes of a message when a blob is sent; servers take 4 MiB.
const PIECE: usize = 1 << 20;

impl GrpcRemote {
    /// Sends a stream and gives the one answer.
    async fn put<Q, A>(
        &self,
        object: &Object,
        method: &str,
        messages: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<A, RemoteError>
    where
        Q: prost::Message + 'static,
        A: Answered,
    {
        // It has to be known which package the server speaks before anything is sent.
        if self.package.load(std::sync::atomic::Ordering::Relaxed) == super::UNKNOWN {
            let question = Digest::of(b"castore: which protocol?");
            match self.stat(question, false).await {
                Ok(_) | Err(RemoteError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let at = self.package.load(std::sync::atomic::Ordering::Relaxed);
        let package = super::PACKAGES
            .get(usize::from(at))
            .unwrap_or(&super::PACKAGES[0]);
        let path = format!("/{package}.{method}");
        let request = self.request(messages);
        self.send_stream(&path, request).await.map_err(|status| {
            status::write_failed(Arc::clone(&self.address), object.clone(), &status)
        })
    }

    async fn send_stream<Q, A>(
        &self,
        path: &str,
        request: Request<impl Stream<Item = Q> + Send + 'static>,
    ) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: Answered,
    {
        let path = path
            .parse()
            .map_err(|_| Status::invalid_argument("a bad method name"))?;
        let connection = self.connections.get();
        let mut client = tonic::client::Grpc::new(connection.channel());
        client
            .ready()
            .await
            .map_err(|error| Status::unavailable(status::innermost(&error)))?;
        let answer = client
            .client_streaming(request, path, A::codec::<Q>())
            .await?;
        Ok(answer.into_inner())
    }

    /// Sends a request with one message to castore's own service.
    async fn change_name<Q, A>(&self, method: &str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + 'static,
        A: Answered,
    {
        let path = format!("/castore.v1.RootService/{method}");
        let messages = futures::stream::once(std::future::ready(message));
        let mut request = self.request(messages);
        if let Some(token) = &self.names_token {
            request.metadata_mut().insert(NAMES_TOKEN, token.clone());
        }
        self.send_stream(&path, request).await
    }

    async fn put_blob(
        &self,
        object: &Object,
        blob: Digest,
        pieces: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<(), RemoteError> {
        let pieces = pieces.map(|data| castore::BlobChunk { data });
        let method = "castore.v1.BlobService/Put";
        let answer: castore::PutBlobResponse = self.put(object, method, pieces).await?;
        self.compare(object, blob, &answer.digest)
    }

    /// Whether the server has castore's own service for chunks.
    async fn takes_chunks(&self) -> Result<bool, RemoteError> {
        if let Some(takes) = self.takes_chunks.get() {
            return Ok(*takes);
        }
        // There is no such blob, which only says so who has the service.
        let none = Manifest::whole(Digest::empty(), 0);
        let takes = match self.put_chunk_list(Digest::empty(), &none).await {
            Err(status) if status.code() == Code::Unimplemented => false,
            Err(status) if status.code() == Code::InvalidArgument => true,
            Ok(()) => true,
            Err(status) => return Err(self.write_failed(&Object::Store, &status)),
        };
        Ok(*self.takes_chunks.get_or_init(|| takes))
    }

    /// Whether the store that the server puts into has something, whatever the server can get elsewhere.
    async fn store_has(&self, object: &Object, what: What) -> Result<bool, RemoteError> {
        let messages = futures::stream::once(std::future::ready(HasRequest { what: Some(what) }));
        let answer: Result<HasResponse, _> = self
            .send_stream("/castore.v1.ChunkService/Has", self.request(messages))
            .await;
        answer
            .map(|answer| answer.there)
            .map_err(|status| self.write_failed(object, &status))
    }

    async fn put_chunk_list(&self, blob: Digest, manifest: &Manifest) -> Result<(), Status> {
        let chunks = manifest.chunks().iter();
        let message = PutManifestRequest {
            digest: super::bytes(blob),
            chunks: chunks
                .map(|chunk| castore::stat_blob_response::ChunkMeta {
                    digest: super::bytes(chunk.digest),
                    size: chunk.size,
                })
                .collect(),
        };
        let messages = futures::stream::once(std::future::ready(message));
        let answer: Result<PutManifestResponse, _> = self
            .send_stream(
                "/castore.v1.ChunkService/PutManifest",
                self.request(messages),
            )
            .await;
        answer.map(drop)
    }

    fn write_failed(&self, object: &Object, status: &Status) -> RemoteError {
        status::write_failed(Arc::clone(&self.address), object.clone(), status)
    }

    fn compare(&self, object: &Object, digest: Digest, told: &[u8]) -> Result<(), RemoteError> {
        if told == digest.as_bytes() {
            return Ok(());
        }
        let status = Status::unavailable("it took other bytes than were sent");
        Err(status::write_failed(
            Arc::clone(&self.address),
            object.clone(),
            &status,
        ))
    }

    async fn has(&self, blob: Digest) -> Result<bool, RemoteError> {
        match self.stat(blob, false).await {
            Ok(_) => Ok(true),
            Err(RemoteError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn pieces(bytes: Bytes) -> impl Iterator<Item = Bytes> + Send + 'static {
    (0..bytes.len())
        .step_by(PIECE)
        .map(move |at| bytes.slice(at..(at + PIECE).min(bytes.len())))
}

/// The protocol of tvix and snix knows blobs only and lets the server cut them. Where the server has castore's own service
/// for chunks, they are put by that. Elsewhere chunks are put as blobs of their own, and a blob of several is read back
/// from the server and put as a whole: it costs its bytes twice more.
#[async_trait]
impl Publish for GrpcRemote {
    async fn has_blob(&self, blob: Digest) -> Result<bool, RemoteError> {
        if self.takes_chunks().await? {
            let what = What::Blob(super::bytes(blob));
            return self.store_has(&Object::Blob(blob), what).await;
        }
        self.has(blob).await
    }

    async fn has_chunk(&self, chunk: Digest) -> Result<bool, RemoteError> {
        if self.takes_chunks().await? {
            let what = What::Chunk(super::bytes(chunk));
            return self.store_has(&Object::Chunk(chunk), what).await;
        }
        self.has(chunk).await
    }

    async fn has_closure(&self, root: Digest) -> Result<bool, RemoteError> {
        if self.takes_chunks().await? {
            let what = What::Root(super::bytes(root));
            return self.store_has(&Object::Directory(root), what).await;
        }
        match self.closure(root).await {
            Ok(mut records) => {
                while let Some(record) = records.next().await {
                    record?;
                }
                Ok(true)
            }
            Err(RemoteError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn put_chunk(&self, chunk: Digest, bytes: Bytes) -> Result<(), RemoteError> {
        let object = Object::Chunk(chunk);
        let pieces = futures::stream::iter(pieces(bytes));
        if !self.takes_chunks().await? {
            return self.put_blob(&object, chunk, pieces).await;
        }
        let pieces = pieces.map(|data| castore::BlobChunk { data });
        let answer: Result<castore::PutBlobResponse, _> = self
            .send_stream("/castore.v1.ChunkService/Put", self.request(pieces))
            .await;
        let answer = answer.map_err(|status| self.write_failed(&object, &status))?;
        self.compare(&object, chunk, &answer.digest)
    }

    async fn put_manifest(&self, blob: Digest, manifest: &Manifest) -> Result<(), RemoteError> {
        let object = Object::Blob(blob);
        if self.takes_chunks().await? {
            let put = self.put_chunk_list(blob, manifest).await;
            return put.map_err(|status| self.write_failed(&object, &status));
        }
        if manifest.is_whole(blob) {
            return Ok(()); // The chunk is the blob.
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let sent = futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let read = async {
            for chunk in manifest.chunks() {
                let size = Some(chunk.size);
                let bytes = self.chunk(chunk.digest, size, &Urgency::reader()).await?;
                for piece in pieces(bytes) {
                    if sender.send(piece).await.is_err() {
                        return Ok(sender); // The other side tells why.
                    }
                }
            }
            Ok::<_, RemoteError>(sender)
        };
        let read = async { read.await.map(drop) };
        let (put, read) = futures::join!(self.put_blob(&object, blob, sent), read);
        read.and(put)
    }

    async fn put_closure(&self, root: Digest, directories: Vec<Bytes>) -> Result<(), RemoteError> {
        let object = Object::Directory(root);
        // The service wants leaves first.
        let messages = directories
            .into_iter()
            .rev()
            .map(proto::directory_message)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| self.corrupt(object.clone(), error))?;
        let method = "castore.v1.DirectoryService/Put";
        let answer: castore::PutDirectoryResponse = self
            .put(&object, method, futures::stream::iter(messages))
            .await?;
        self.compare(&object, root, &answer.root_digest)
    }

    async fn put_root(&self, name: &Name, node: &Node) -> Result<(), RemoteError> {
        let message = proto::node_message(name, node);
        let answer: Result<PutRootResponse, _> = self.change_name("Put", message).await;
        let object = Object::Root(name.clone());
        answer
            .map(|_| ())
            .map_err(|status| status::write_failed(Arc::clone(&self.address), object, &status))
    }

    async fn remove_root(&self, name: &Name) -> Result<bool, RemoteError> {
        let name_bytes = name.as_bytes().clone();
        let message = RemoveRootRequest { name: name_bytes };
        let answer: Result<RemoveRootResponse, _> = self.change_name("Remove", message).await;
        match answer {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound => Ok(false),
            Err(status) => Err(status::write_failed(
                Arc::clone(&self.address),
                Object::Root(name.clone()),
                &status,
            )),
        }
    }

    async fn sync(&self) -> Result<(), RemoteError> {
        // A server answers a put when it is safe.
        Ok(())
    }

    fn is_local(&self) -> bool {
        false
    }

    fn verifies(&self) -> bool {
        true
    }

    async fn as_whole(&self) -> Result<Option<&dyn PutWhole>, RemoteError> {
        Ok((!self.takes_chunks().await?).then_some(self))
    }
}

#[async_trait]
impl PutWhole for GrpcRemote {
    async fn put_whole(&self, blob: Digest, pieces: Pieces) -> Result<(), RemoteError> {
        let object = Object::Blob(blob);
        // A stream that breaks off must not look like one that ends.
        let broken = Arc::new(std::sync::OnceLock::new());
        let noted = Arc::clone(&broken);
        let sent = pieces
            .map(move |piece| piece.map_err(|error| drop(noted.set(error))).ok())
            .take_while(|piece| std::future::ready(piece.is_some()))
            .map(|piece| futures::stream::iter(self::pieces(piece.unwrap_or_default())))
            .flatten();
        let put = self.put_blob(&object, blob, sent).await;
        match broken.get() {
            Some(error) => Err(error.clone()),
            None => put,
        }
    }
}
