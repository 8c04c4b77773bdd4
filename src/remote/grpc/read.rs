use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use tonic::Code;

use super::{Answer, GrpcRemote, MAX_CHUNK, MAX_LISTED, bytes, codec::Raw, status};
use crate::{
    model::{Digest, Manifest, Name, Node, OutputHash},
    proto::{
        self,
        castore::v1::{GetRootRequest, ListRootsRequest},
        tvix::{
            castore::v1::{self as castore, get_directory_request},
            store::v1::{self as store, get_path_info_request},
        },
    },
    remote::{Closure, Object, PathInfo, Pieces, Remote, RemoteError, Urgency},
};

#[async_trait]
impl Remote for GrpcRemote {
    fn address(&self) -> &str {
        &self.address
    }

    async fn ping(&self) -> Result<(), RemoteError> {
        // A hub knows the empty blob without asking anybody.
        match self.stat(Digest::empty(), false).await {
            Ok(_) | Err(RemoteError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn manifest(&self, blob: Digest) -> Result<Option<Manifest>, RemoteError> {
        let stat = self.stat(blob, true).await?;
        proto::manifest_of(&stat).map_err(|error| self.corrupt(Object::Blob(blob), error))
    }

    async fn chunk(
        &self,
        chunk: Digest,
        size: Option<u64>,
        urgency: &Urgency,
    ) -> Result<Bytes, RemoteError> {
        let object = Object::Chunk(chunk);
        let max = size.unwrap_or(MAX_CHUNK).min(MAX_CHUNK);
        let mut answer = self.read(&object, chunk, size, urgency).await?;
        let mut pieces = Vec::new();
        let mut received = 0;
        while let Some(piece) = answer.next().await {
            let data = piece?.data;
            received += data.len() as u64;
            if received > max {
                let error = std::io::Error::other(format!("it has more than {max} bytes"));
                return Err(self.corrupt(object, error));
            }
            pieces.push(data);
        }
        // Most answers are one message, which is handed on as it is.
        let bytes = match &mut pieces[..] {
            [only] => std::mem::take(only),
            pieces => pieces.concat().into(),
        };
        self.complete(bytes, size, object)
    }

    async fn pieces(&self, blob: Digest, size: Option<u64>) -> Result<Pieces, RemoteError> {
        let object = Object::Blob(blob);
        let answer = self.read(&object, blob, size, &Urgency::reader()).await?;
        let pieces = answer.into_stream();
        Ok(pieces.map(|piece| piece.map(|piece| piece.data)).boxed())
    }

    fn has_parts_of_closures(&self) -> bool {
        true
    }

    async fn closure(&self, root: Digest) -> Result<Closure, RemoteError> {
        if root == Digest::empty() {
            return Ok(futures::stream::iter([Ok(Bytes::new())]).boxed());
        }
        let object = Object::Directory(root);
        let message = castore::GetDirectoryRequest {
            by_what: Some(get_directory_request::ByWhat::Digest(bytes(root))),
            recursive: true,
        };
        let method = "castore.v1.DirectoryService/Get";
        let answer: Answer<Raw> = self.call(&object, method, message, |_| ()).await?;
        if answer.first.is_none() {
            return Err(self.not_found(object));
        }
        Ok(answer.into_stream().map(|raw| raw.map(|raw| raw.0)).boxed())
    }

    async fn root(&self, name: &Name) -> Result<Node, RemoteError> {
        let object = Object::Root(name.clone());
        let message = GetRootRequest {
            name: name.as_bytes().clone(),
        };
        let request = self.request(message);
        let path = "/castore.v1.RootService/Get";
        let answer: Answer<castore::Node> = match self.send(&object, path, request).await {
            Ok(answer) => answer,
            // A server without names is a server that has none.
            Err(status) if status.code() == Code::Unimplemented => {
                return Err(self.not_found(object));
            }
            Err(status) => return Err(self.failed(object, &status)),
        };
        let (found, node) = proto::node_of(answer.only().await?)
            .map_err(|error| self.corrupt(object.clone(), error))?;
        if found == *name {
            return Ok(node);
        }
        let error = std::io::Error::other(format!("the answer is about {found:?}"));
        Err(self.corrupt(object, error))
    }

    async fn roots(&self) -> Result<Vec<(Name, Node)>, RemoteError> {
        let request = self.request(ListRootsRequest {});
        let path = "/castore.v1.RootService/List";
        let mut answer: Answer<castore::Node> = match self.send(&Object::Roots, path, request).await
        {
            Ok(answer) => answer,
            Err(status) if status.code() == Code::Unimplemented => return Ok(Vec::new()),
            Err(status) => return Err(self.failed(Object::Roots, &status)),
        };
        let mut roots = Vec::new();
        while let Some(node) = answer.next().await {
            match proto::node_of(node?) {
                Ok(root) => roots.push(root),
                Err(error) => {
                    tracing::warn!(remote = &*self.address, %error, "root name left out");
                }
            }
        }
        roots.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(roots)
    }

    async fn path_info(&self, hash: OutputHash) -> Result<PathInfo, RemoteError> {
        let object = Object::StorePath(hash);
        let output_hash = Bytes::copy_from_slice(hash.as_bytes());
        let message = store::GetPathInfoRequest {
            by_what: Some(get_path_info_request::ByWhat::ByOutputHash(output_hash)),
        };
        let method = "store.v1.PathInfoService/Get";
        let answer: Result<Answer<store::PathInfo>, _> =
            self.call(&object, method, message, |_| ()).await;
        let info = match answer {
            Ok(answer) => self.store_path(answer.only().await?)?,
            Err(error) if status::is_unimplemented(&error) => return Err(self.not_found(object)),
            Err(error) => return Err(error),
        };
        if info.path.hash() != hash {
            return Err(self.not_found(object));
        }
        Ok(info)
    }

    async fn path_infos(&self) -> Result<Vec<PathInfo>, RemoteError> {
        let method = "store.v1.PathInfoService/List";
        let message = store::ListPathInfoRequest {};
        let mut answer: Answer<store::PathInfo> = self
            .call(&Object::StorePaths, method, message, |_| ())
            .await?;
        let mut infos = Vec::new();
        while let Some(info) = answer.next().await {
            match self.store_path(info?) {
                Ok(info) => infos.push(info),
                Err(error) => tracing::warn!(%error, "store path left out"),
            }
            if infos.len() > MAX_LISTED {
                let error = std::io::Error::other(format!("more than {MAX_LISTED} store paths"));
                return Err(self.corrupt(Object::StorePaths, error));
            }
        }
        Ok(infos)
    }
}

impl GrpcRemote {
    /// The bytes of an answer, which must be as many as were announced.
    fn complete(
        &self,
        bytes: Bytes,
        size: Option<u64>,
        object: Object,
    ) -> Result<Bytes, RemoteError> {
        match size {
            // The answer has ended well, so this is all there is.
            Some(size) if size != bytes.len() as u64 => {
                let cause = format!("it has {} bytes instead of {size}", bytes.len());
                Err(self.corrupt(object, std::io::Error::other(cause)))
            }
            _ => Ok(bytes),
        }
    }
}
