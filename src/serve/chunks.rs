use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Shared, blobs::digest, patience, status};
use crate::{
    model::{Digest, Manifest},
    proto::{
        self,
        castore::v1::{
            HasRequest, HasResponse, PutManifestRequest, PutManifestResponse,
            chunk_service_server::ChunkService, has_request::What,
        },
        tvix::castore::v1::{BlobChunk, PutBlobResponse, StatBlobResponse},
    },
    remote::{Publish, RemoteError, Urgency},
};

/// The largest chunk that is taken, in bytes.
const MAX_CHUNK: usize = 16 << 20;
/// Chunks that are read at once to verify a blob.
const AHEAD: usize = 8;

pub(super) struct Chunks(pub(super) Arc<Shared>);

#[async_trait]
impl ChunkService for Chunks {
    async fn has(&self, request: Request<HasRequest>) -> Result<Response<HasResponse>, Status> {
        let publish = self.0.publish()?;
        let there = match request.into_inner().what {
            Some(What::Blob(blob)) => publish.has_blob(digest(&blob)?).await,
            Some(What::Chunk(chunk)) => publish.has_chunk(digest(&chunk)?).await,
            Some(What::Root(root)) => publish.has_closure(digest(&root)?).await,
            None => return Err(Status::invalid_argument("no digest")),
        };
        let there = there.map_err(|error| status::of_remote(&error))?;
        Ok(Response::new(HasResponse { there }))
    }

    async fn put(
        &self,
        request: Request<Streaming<BlobChunk>>,
    ) -> Result<Response<PutBlobResponse>, Status> {
        let publish = self.0.publish()?;
        let _place = self.0.admission.enter_put().await?;
        let mut pieces = request.into_inner();
        let mut chunk = Vec::new();
        while let Some(piece) = patience::next(&mut pieces).await? {
            if chunk.len() + piece.data.len() > MAX_CHUNK {
                return Err(Status::invalid_argument(format!(
                    "a chunk of more than {MAX_CHUNK} bytes; put it as a blob"
                )));
            }
            chunk.extend_from_slice(&piece.data);
        }
        let digest = Digest::of(&chunk);
        let put = publish.put_chunk(digest, chunk.into()).await;
        put.map_err(|error| status::of_remote(&error))?;
        let digest = Bytes::copy_from_slice(digest.as_bytes());
        Ok(Response::new(PutBlobResponse { digest }))
    }

    async fn put_manifest(
        &self,
        request: Request<PutManifestRequest>,
    ) -> Result<Response<PutManifestResponse>, Status> {
        let publish = self.0.publish()?;
        let PutManifestRequest {
            digest: blob,
            chunks,
        } = request.into_inner();
        let blob = digest(&blob)?;
        let bao = Bytes::new();
        let manifest = proto::manifest_of(&StatBlobResponse { chunks, bao })
            .map_err(|error| Status::invalid_argument(error.to_string()))?
            .ok_or_else(|| Status::invalid_argument("no chunks"))?;
        let _place = self.0.admission.enter_put().await?;
        let failed = |error| status::of_remote(&error);
        // A manifest must not outlast the chunks that it names.
        publish.sync().await.map_err(failed)?;
        verify(publish.as_ref(), blob, &manifest).await?;
        publish
            .put_manifest(blob, &manifest)
            .await
            .map_err(failed)?;
        self.0.cache.forget_missing();
        Ok(Response::new(PutManifestResponse {}))
    }
}

/// Reads the chunks of a blob and compares them with its digest.
async fn verify(publish: &dyn Publish, blob: Digest, manifest: &Manifest) -> Result<(), Status> {
    let mut hasher = blake3::Hasher::new();
    let mut chunks = futures::stream::iter(manifest.chunks().to_vec())
        .map(|chunk| async move {
            let urgency = Urgency::reader();
            publish
                .chunk(chunk.digest, Some(chunk.size), &urgency)
                .await
        })
        .buffered(AHEAD);
    while let Some(chunk) = chunks.next().await {
        let bytes = match chunk {
            Ok(bytes) => bytes,
            Err(error @ RemoteError::NotFound { .. }) => {
                return Err(Status::failed_precondition(error.to_string()));
            }
            Err(error) => return Err(status::of_remote(&error)),
        };
        let hashing = tokio::task::spawn_blocking(move || {
            hasher.update(&bytes);
            hasher
        });
        hasher = hashing.await.map_err(|_| Status::internal("not hashed"))?;
    }
    match Digest::from(hasher.finalize()) {
        actual if actual == blob => Ok(()),
        actual => Err(Status::invalid_argument(format!(
            "the chunks make up the blob {actual} and not {blob}"
        ))),
    }
}
