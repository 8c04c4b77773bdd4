use std::{collections::BTreeMap, future::Future, sync::Arc};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Closure, Object, Remote, RemoteError};
use crate::model::{Digest, Manifest, Name, Node};

/// One or several remotes in order of preference: what one does not have, cannot give or gives damaged, the next one is
/// asked for. Chunks that come out of a chain have been verified.
#[derive(Debug)]
pub struct Chain {
    remotes: Vec<Arc<dyn Remote>>,
    address: Arc<str>,
}

impl Chain {
    #[must_use]
    pub fn new(remotes: Vec<Arc<dyn Remote>>) -> Self {
        let addresses: Vec<_> = remotes.iter().map(|remote| remote.address()).collect();
        let address = addresses.join(", ").into();
        Self { remotes, address }
    }

    async fn first<'a, T, F>(
        &'a self,
        object: Object,
        ask: impl Fn(&'a dyn Remote) -> F,
    ) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, RemoteError>>,
    {
        let mut worst = None;
        for remote in &self.remotes {
            match ask(remote.as_ref()).await {
                Ok(value) => return Ok(value),
                // "Could not be read" tells more than "not found", so it is what the reader hears.
                Err(error) if error.is_not_found() => {}
                Err(error) => worst = worst.or(Some(error)),
            }
        }
        Err(worst.unwrap_or_else(|| RemoteError::NotFound {
            remote: Arc::clone(&self.address),
            object,
        }))
    }
}

/// Hashing more bytes than this goes to another thread: it would hold up what else runs on this one.
const HASH_HERE: usize = 1 << 20;

async fn verify(digest: Digest, bytes: Bytes) -> Result<Bytes, std::io::Error> {
    let actual = if bytes.len() > HASH_HERE {
        let bytes = bytes.clone();
        tokio::task::spawn_blocking(move || Digest::of(&bytes)).await?
    } else {
        Digest::of(&bytes)
    };
    if actual == digest {
        Ok(bytes)
    } else {
        Err(std::io::Error::other(format!(
            "its bytes have the digest {actual}"
        )))
    }
}

#[async_trait]
impl Remote for Chain {
    fn address(&self) -> &str {
        &self.address
    }

    async fn manifest(&self, blob: Digest, size: u64) -> Result<Manifest, RemoteError> {
        self.first(Object::Blob(blob), |remote| remote.manifest(blob, size))
            .await
    }

    async fn chunk(&self, chunk: Digest, size: u64) -> Result<Bytes, RemoteError> {
        self.first(Object::Chunk(chunk), |remote| async move {
            let bytes = remote.chunk(chunk, size).await?;
            verify(chunk, bytes)
                .await
                .map_err(|cause| RemoteError::Corrupt {
                    remote: remote.address().into(),
                    object: Object::Chunk(chunk),
                    cause: Arc::new(cause),
                })
        })
        .await
    }

    async fn closure(&self, root: Digest) -> Result<Closure, RemoteError> {
        self.first(Object::Directory(root), |remote| remote.closure(root))
            .await
    }

    async fn root(&self, name: &Name) -> Result<Node, RemoteError> {
        self.first(Object::Root(name.clone()), |remote| remote.root(name))
            .await
    }

    async fn roots(&self) -> Result<Vec<(Name, Node)>, RemoteError> {
        let mut all = BTreeMap::new();
        let mut failed = None;
        for remote in &self.remotes {
            match remote.roots().await {
                Ok(roots) => {
                    for (name, node) in roots {
                        all.entry(name).or_insert(node);
                    }
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        match failed {
            Some(error) if all.is_empty() => Err(error),
            Some(_) | None => Ok(all.into_iter().collect()),
        }
    }
}
