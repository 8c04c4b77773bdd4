use std::{future::Future, sync::Arc, time::Instant};

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    Closure, Fault, Object, Outage, PathInfo, Pieces, Policy, Publish, PutWhole, Remote,
    RemoteError, Urgency, ask::delays, health::MAX_ASKED,
};
use crate::model::{Digest, Manifest, Name, Node, OutputHash};

/// A store over a network that is written to with deadlines, and tried again where that can help.
#[derive(Debug)]
pub(super) struct Steady {
    store: Arc<dyn Publish>,
    policy: Policy,
}

impl Steady {
    pub(super) fn new(store: Arc<dyn Publish>, policy: Policy) -> Self {
        Self { store, policy }
    }

    /// `bytes` are sent or received, about.
    async fn again<T, F>(
        &self,
        object: &Object,
        bytes: u64,
        ask: impl Fn() -> F + Send,
    ) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>> + Send,
    {
        let started = Instant::now();
        let deadline = self.policy.deadline(bytes);
        let patience = match self.policy.outage {
            Outage::Fail => self.policy.timeout,
            Outage::Wait(time) => time,
        };
        let mut delays = delays();
        loop {
            let result = tokio::time::timeout(deadline, ask()).await;
            let error = match result {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => error,
                Err(_) => RemoteError::Write {
                    remote: self.store.address().into(),
                    object: object.clone(),
                    fault: Fault::Unavailable,
                    cause: Arc::new(std::io::Error::other(format!("no answer in {deadline:?}"))),
                },
            };
            let wants = match error.fault() {
                Some(Fault::Unavailable | Fault::Upstream | Fault::Pending) => None,
                Some(Fault::Overload(wants) | Fault::Shed(wants)) => wants,
                Some(Fault::Refused) | None => return Err(error),
            };
            // Each request may use its whole deadline and is still tried once more.
            if started.elapsed() > patience + deadline {
                return Err(error);
            }
            tracing::debug!(%error, "trying again");
            let delay = wants
                .or_else(|| delays.next())
                .unwrap_or_default()
                .min(MAX_ASKED);
            tokio::time::sleep(delay).await;
        }
    }
}

#[async_trait]
impl Remote for Steady {
    fn address(&self) -> &str {
        self.store.address()
    }

    async fn ping(&self) -> Result<(), RemoteError> {
        self.store.ping().await
    }

    async fn manifest(&self, blob: Digest) -> Result<Option<Manifest>, RemoteError> {
        let object = Object::Blob(blob);
        self.again(&object, 0, || self.store.manifest(blob)).await
    }

    async fn chunk(
        &self,
        chunk: Digest,
        size: Option<u64>,
        urgency: &Urgency,
    ) -> Result<Bytes, RemoteError> {
        let object = Object::Chunk(chunk);
        let bytes = size.unwrap_or_default();
        self.again(&object, bytes, || self.store.chunk(chunk, size, urgency))
            .await
    }

    async fn pieces(&self, blob: Digest, size: Option<u64>) -> Result<Pieces, RemoteError> {
        let object = Object::Blob(blob);
        self.again(&object, 0, || self.store.pieces(blob, size))
            .await
    }

    fn has_parts_of_closures(&self) -> bool {
        self.store.has_parts_of_closures()
    }

    async fn closure(&self, root: Digest) -> Result<Closure, RemoteError> {
        let object = Object::Directory(root);
        self.again(&object, 0, || self.store.closure(root)).await
    }

    async fn root(&self, name: &Name) -> Result<Node, RemoteError> {
        let object = Object::Root(name.clone());
        self.again(&object, 0, || self.store.root(name)).await
    }

    async fn roots(&self) -> Result<Vec<(Name, Node)>, RemoteError> {
        self.again(&Object::Roots, 0, || self.store.roots()).await
    }

    async fn path_info(&self, hash: OutputHash) -> Result<PathInfo, RemoteError> {
        let object = Object::StorePath(hash);
        self.again(&object, 0, || self.store.path_info(hash)).await
    }

    async fn path_infos(&self) -> Result<Vec<PathInfo>, RemoteError> {
        self.again(&Object::StorePaths, 0, || self.store.path_infos())
            .await
    }
}

#[async_trait]
impl Publish for Steady {
    async fn has_blob(&self, blob: Digest) -> Result<bool, RemoteError> {
        let object = Object::Blob(blob);
        self.again(&object, 0, || self.store.has_blob(blob)).await
    }

    async fn has_chunk(&self, chunk: Digest) -> Result<bool, RemoteError> {
        let object = Object::Chunk(chunk);
        self.again(&object, 0, || self.store.has_chunk(chunk)).await
    }

    async fn has_closure(&self, root: Digest) -> Result<bool, RemoteError> {
        let object = Object::Directory(root);
        self.again(&object, 0, || self.store.has_closure(root))
            .await
    }

    async fn put_chunk(&self, chunk: Digest, bytes: Bytes) -> Result<(), RemoteError> {
        let object = Object::Chunk(chunk);
        self.again(&object, bytes.len() as u64, || {
            self.store.put_chunk(chunk, bytes.clone())
        })
        .await
    }

    async fn put_manifest(&self, blob: Digest, manifest: &Manifest) -> Result<(), RemoteError> {
        let object = Object::Blob(blob);
        self.again(&object, manifest.size(), || {
            self.store.put_manifest(blob, manifest)
        })
        .await
    }

    async fn put_closure(&self, root: Digest, directories: Vec<Bytes>) -> Result<(), RemoteError> {
        let object = Object::Directory(root);
        let bytes = directories.iter().map(|bytes| bytes.len() as u64).sum();
        self.again(&object, bytes, || {
            self.store.put_closure(root, directories.clone())
        })
        .await
    }

    async fn put_root(&self, name: &Name, node: &Node) -> Result<(), RemoteError> {
        let object = Object::Root(name.clone());
        self.again(&object, 0, || self.store.put_root(name, node))
            .await
    }

    async fn remove_root(&self, name: &Name) -> Result<bool, RemoteError> {
        let object = Object::Root(name.clone());
        self.again(&object, 0, || self.store.remove_root(name))
            .await
    }

    async fn sync(&self) -> Result<(), RemoteError> {
        self.again(&Object::Store, 0, || self.store.sync()).await
    }

    fn is_local(&self) -> bool {
        self.store.is_local()
    }

    fn verifies(&self) -> bool {
        self.store.verifies()
    }

    async fn as_whole(&self) -> Result<Option<&dyn PutWhole>, RemoteError> {
        // A stream cannot be sent again from here.
        self.again(&Object::Store, 0, || self.store.as_whole())
            .await
    }
}
