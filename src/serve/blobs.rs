use std::sync::Arc;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Shared, patience, status};
use crate::{
    cache::{Blob, ChunkData, Slice},
    import,
    model::Digest,
    proto::{
        self,
        tvix::castore::v1::{
            BlobChunk, PutBlobResponse, ReadBlobRequest, StatBlobRequest, StatBlobResponse,
            blob_service_server::BlobService,
        },
    },
    remote::{PREFETCH, PRIORITY, SIZE},
};

/// Bytes of a message. What waits for a slow client is about two of them, and what HTTP/2 has in its window.
const PIECE: u64 = 256 << 10;
/// Chunks of a blob that are brought while the one before is sent.
const AHEAD: usize = 4;
/// Pieces of a blob that is put which wait to be cut.
const PUT_AHEAD: usize = 4;

pub(super) struct Blobs(pub(super) Arc<Shared>);

#[async_trait]
impl BlobService for Blobs {
    async fn stat(
        &self,
        request: Request<StatBlobRequest>,
    ) -> Result<Response<StatBlobResponse>, Status> {
        let wait = patience::of_client(request.metadata());
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        let cache = Arc::clone(&self.0.cache);
        let found = patience::bring(wait, async move { cache.manifest_of(digest).await }).await;
        let manifest = match found {
            Ok(manifest) => manifest,
            Err(status) => {
                // What is only a chunk has no manifest in the object layout, and need not be put again.
                match &self.0.publish {
                    Some(publish)
                        if status.code() == tonic::Code::NotFound
                            && publish.has_chunk(digest).await.is_ok_and(|there| there) =>
                    {
                        None
                    }
                    _ => return Err(status),
                }
            }
        };
        let manifest = manifest.filter(|_| request.send_chunks);
        let response = manifest.as_ref().map(proto::manifest_message);
        Ok(Response::new(response.unwrap_or_default()))
    }

    type ReadStream = BoxStream<'static, Result<BlobChunk, Status>>;

    async fn read(
        &self,
        request: Request<ReadBlobRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let metadata = request.metadata();
        let is_reader = metadata
            .get(PRIORITY)
            .is_none_or(|priority| priority != PREFETCH);
        let size = metadata
            .get(SIZE)
            .and_then(|size| size.to_str().ok()?.parse().ok());
        let digest = digest(&request.get_ref().digest)?;
        let place = self.0.admission.enter(is_reader).await?;
        let cache = Arc::clone(&self.0.cache);
        let opened = async move { cache.open_digest(digest, size, is_reader).await };
        let (blob, first) = patience::bring(patience::of_client(metadata), opened).await?;
        let is_small = blob.manifest().size() <= PIECE;
        let pieces = pieces(Arc::clone(&self.0), blob, first, is_reader);
        Ok(Response::new(match is_small {
            // All of it is taken at once.
            true => pieces.inspect(move |_| drop_later(&place)).boxed(),
            false => patience::hand_on(pieces, place),
        }))
    }

    async fn put(
        &self,
        request: Request<Streaming<BlobChunk>>,
    ) -> Result<Response<PutBlobResponse>, Status> {
        let publish = Arc::clone(self.0.publish()?);
        let _place = self.0.admission.enter_put().await?;
        let mut pieces = request.into_inner();
        let (sender, receiver) = mpsc::channel(PUT_AHEAD);
        let import = import::import_blob(publish, import::Pipe::new(receiver));
        let feed = async move {
            while let Some(piece) = patience::next(&mut pieces).await? {
                if sender.send(Some(piece.data)).await.is_err() {
                    return Ok(()); // The import tells why it takes no more.
                }
            }
            let _ = sender.send(None).await;
            Ok::<_, Status>(())
        };
        let (imported, fully) = futures::join!(import, feed);
        fully?;
        let digest = imported.map_err(|error| match error {
            import::ImportError::Remote(error) => status::of_remote(&error),
            error => Status::internal(error.to_string()),
        })?;
        self.0.cache.forget_missing();
        let digest = Bytes::copy_from_slice(digest.as_bytes());
        Ok(Response::new(PutBlobResponse { digest }))
    }
}

/// Has a closure keep something until it is dropped.
fn drop_later<T>(_: &T) {}

pub(super) fn digest(bytes: &[u8]) -> Result<Digest, Status> {
    Digest::try_from(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

fn pieces(
    shared: Arc<Shared>,
    blob: Arc<Blob>,
    mut first: Option<ChunkData>,
    is_reader: bool,
) -> impl Stream<Item = Result<BlobChunk, Status>> + Send + 'static {
    let count = blob.manifest().chunks().len();
    futures::stream::iter(0..count)
        .map(move |position| {
            let (shared, blob) = (Arc::clone(&shared), Arc::clone(&blob));
            let first = first.take();
            async move {
                let size = blob.manifest().chunks()[position].size;
                let data = if let Some(data) = first {
                    data
                } else {
                    let chunk = shared.cache.chunk_for(&blob, position, is_reader).await;
                    chunk.map_err(|error| status::of(&error))?
                };
                let slices = (0..size.div_ceil(PIECE)).map(move |piece| Slice {
                    data: data.clone(),
                    start: piece * PIECE,
                    len: PIECE.min(size - piece * PIECE),
                });
                Ok::<_, Status>(futures::stream::iter(slices).map(Ok))
            }
        })
        .buffered(AHEAD)
        .try_flatten()
        .and_then(|slice| async move {
            let data = slice.load().await;
            let data = data.map_err(|error| Status::internal(error.to_string()))?;
            Ok(BlobChunk { data })
        })
}
