use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status, async_trait};

use super::{Shared, status};
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
        let Some(ByWhat::ByOutputHash(hash)) = request.into_inner().by_what else {
            return Err(Status::invalid_argument("no output hash"));
        };
        let hash = OutputHash::try_from(&hash[..])
            .map_err(|_| Status::invalid_argument("an output hash has 20 bytes"))?;
        let info = self.0.cache.path_info(hash).await;
        let info = info.map_err(|error| status::of(&error))?;
        Ok(Response::new(message(&info)))
    }

    type ListStream = BoxStream<'static, Result<wire::PathInfo, Status>>;

    async fn list(
        &self,
        _: Request<ListPathInfoRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let infos = self.0.cache.path_infos().await;
        let infos = infos.map_err(|error| status::of(&error))?;
        let messages = futures::stream::iter(infos).map(|info| Ok(message(&info)));
        Ok(Response::new(messages.boxed()))
    }
}
