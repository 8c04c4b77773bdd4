use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status, async_trait, metadata::MetadataMap};

use super::{Shared, patience, status};
use crate::{
    model::{Digest, Name, Node},
    proto::{
        self,
        castore::v1::{
            GetRootRequest, ListRootsRequest, PutRootResponse, RemoveRootRequest,
            RemoveRootResponse, root_service_server::RootService,
        },
        tvix::castore::v1 as wire,
    },
    remote::{NAMES_TOKEN, Publish},
};

pub(super) struct Roots(pub(super) Arc<Shared>);

impl Roots {
    /// Where names are changed, for a client that may.
    fn changeable(&self, metadata: &MetadataMap) -> Result<&Arc<dyn Publish>, Status> {
        let publish = self.0.publish()?;
        let Some(token) = &self.0.names_token else {
            return Err(Status::permission_denied(
                "names cannot be changed here; the server has no --names-token-file",
            ));
        };
        match metadata.get(NAMES_TOKEN) {
            Some(shown) if token.is(shown.as_bytes()) => Ok(publish),
            _ => Err(Status::permission_denied(
                "changing a name needs a token of its own: ?names-token-file=/path",
            )),
        }
    }
}

fn name(bytes: bytes::Bytes) -> Result<Name, Status> {
    Name::new(bytes).map_err(|error| Status::invalid_argument(error.to_string()))
}

#[async_trait]
impl RootService for Roots {
    async fn get(&self, request: Request<GetRootRequest>) -> Result<Response<wire::Node>, Status> {
        let wait = patience::of_client(request.metadata());
        let name = name(request.into_inner().name)?;
        let (cache, wanted) = (Arc::clone(&self.0.cache), name.clone());
        let node = patience::bring(wait, async move { cache.root(&wanted).await }).await?;
        Ok(Response::new(proto::node_message(&name, &node)))
    }

    type ListStream = BoxStream<'static, Result<wire::Node, Status>>;

    async fn list(
        &self,
        request: Request<ListRootsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let wait = patience::of_client(request.metadata());
        let cache = Arc::clone(&self.0.cache);
        let roots = patience::bring(wait, async move { cache.roots().await }).await?;
        let nodes = roots
            .into_iter()
            .map(|(name, node)| Ok(proto::node_message(&name, &node)));
        Ok(Response::new(futures::stream::iter(nodes).boxed()))
    }

    async fn put(&self, request: Request<wire::Node>) -> Result<Response<PutRootResponse>, Status> {
        let publish = self.changeable(request.metadata())?;
        let (name, node) = proto::node_of(request.into_inner())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let failed = |error| status::of_remote(&error);
        let is_there = match &node {
            Node::Directory { digest, .. } if *digest != Digest::empty() => {
                publish.has_closure(*digest).await.map_err(failed)?
            }
            Node::File { digest, size, .. } if *size > 0 => {
                publish.has_blob(*digest).await.map_err(failed)?
            }
            _ => true,
        };
        if !is_there {
            return Err(Status::failed_precondition(format!(
                "what the name {name:?} is to stand for is not here; put it first"
            )));
        }
        publish.put_root(&name, &node).await.map_err(failed)?;
        publish.sync().await.map_err(failed)?;
        tracing::info!(%name, "a name was changed");
        Ok(Response::new(PutRootResponse {}))
    }

    async fn remove(
        &self,
        request: Request<RemoveRootRequest>,
    ) -> Result<Response<RemoveRootResponse>, Status> {
        let publish = self.changeable(request.metadata())?;
        let name = name(request.get_ref().name.clone())?;
        let removed = publish.remove_root(&name).await;
        if !removed.map_err(|error| status::of_remote(&error))? {
            return Err(Status::not_found(format!("there is no name {name:?}")));
        }
        tracing::info!(%name, "a name was removed");
        Ok(Response::new(RemoveRootResponse {}))
    }
}
