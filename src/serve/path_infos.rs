use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status, async_trait};

use super::{Shared, patience};
use crate::{
    model::OutputHash,
    proto::{
        self,
        tvix::store::v1::{
            self as wire, GetPathInfoRequest, ListPathInfoRequest, get_path_info_request::ByWhat,
            path_info_service_server::PathInfoService,
        },
    },
    remote::PathInfo,
};

/// What remotes say of Nix store paths, for castore's own clients: without NAR information, which castore does not keep.
pub(super) struct PathInfos(pub(super) Arc<Shared>);

fn message(info: &PathInfo) -> wire::PathInfo {
    let references = info.references.iter();
    wire::PathInfo {
        node: Some(proto::node_message(info.path.basename(), &info.node)),
        references: references
            .map(|hash| Bytes::copy_from_slice(hash.as_bytes()))
            .collect(),
        narinfo: Bytes::new(),
    }
}

#[async_trait]
impl PathInfoService for PathInfos {
    async fn get(
        &self,
        request: Request<GetPathInfoRequest>,
    ) -> Result<Response<wire::PathInfo>, Status> {
        let wait = patience::of_client(request.metadata());
        let Some(ByWhat::ByOutputHash(hash)) = request.into_inner().by_what else {
            return Err(Status::invalid_argument("no output hash"));
        };
        let hash = OutputHash::try_from(&hash[..])
            .map_err(|_| Status::invalid_argument("an output hash has 20 bytes"))?;
        let cache = Arc::clone(&self.0.cache);
        let info = patience::bring(wait, async move { cache.path_info(hash).await }).await?;
        Ok(Response::new(message(&info)))
    }

    type ListStream = BoxStream<'static, Result<wire::PathInfo, Status>>;

    async fn list(
        &self,
        request: Request<ListPathInfoRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let wait = patience::of_client(request.metadata());
        let _place = self.0.admission.enter(true).await?;
        let cache = Arc::clone(&self.0.cache);
        let infos = patience::bring(wait, async move { cache.path_infos().await }).await?;
        let messages = futures::stream::iter(infos).map(|info| Ok(message(&info)));
        Ok(Response::new(messages.boxed()))
    }
}
