use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, stream::BoxStream};
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::{Shared, blobs::digest, patience, status};
use crate::{
    model::{Digest, Directory, SizeRule},
    proto::{
        self,
        tvix::castore::v1::{
            self as wire, GetDirectoryRequest, PutDirectoryResponse,
            directory_service_server::DirectoryService, get_directory_request::ByWhat,
        },
    },
};

/// The largest closure that is taken, in encoded bytes.
const MAX_CLOSURE: usize = 512 << 20;

pub(super) struct Directories(pub(super) Arc<Shared>);

#[async_trait]
impl DirectoryService for Directories {
    type GetStream = BoxStream<'static, Result<wire::Directory, Status>>;

    async fn get(
        &self,
        request: Request<GetDirectoryRequest>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let wait = patience::of_client(request.metadata());
        let request = request.into_inner();
        let Some(ByWhat::Digest(root)) = request.by_what else {
            return Err(Status::invalid_argument("no digest"));
        };
        let root = digest(&root)?;
        // That it is not there is the answer's status, not something in the middle of a stream.
        let cache = Arc::clone(&self.0.cache);
        let first = patience::bring(wait, async move { cache.directory(root, root).await }).await?;
        if !request.recursive {
            let only = Ok(proto::directory_to_wire(&first));
            return Ok(Response::new(futures::stream::iter([only]).boxed()));
        }
        Ok(Response::new(closure(Arc::clone(&self.0), root)))
    }

    async fn put(
        &self,
        request: Request<Streaming<wire::Directory>>,
    ) -> Result<Response<PutDirectoryResponse>, Status> {
        let publish = self.0.publish()?;
        let _place = self.0.admission.enter_put().await?;
        let mut messages = request.into_inner();
        let mut put = Closure::default();
        while let Some(message) = patience::next(&mut messages).await? {
            put.add(&message).map_err(Status::invalid_argument)?;
        }
        let (root, directories) = put.finish().map_err(Status::invalid_argument)?;
        let failed = |error| status::of_remote(&error);
        if root != Digest::empty() && !publish.has_closure(root).await.map_err(failed)? {
            publish.sync().await.map_err(failed)?;
            publish
                .put_closure(root, directories)
                .await
                .map_err(failed)?;
            publish.sync().await.map_err(failed)?;
        }
        self.0.cache.forget_missing();
        let root_digest = Bytes::copy_from_slice(root.as_bytes());
        Ok(Response::new(PutDirectoryResponse { root_digest }))
    }
}

/// The directories at and below a root, each once, breadth first: none before the one by which it is reached.
fn closure(
    shared: Arc<Shared>,
    root: Digest,
) -> BoxStream<'static, Result<wire::Directory, Status>> {
    let state = (shared, VecDeque::from([root]), HashSet::from([root]));
    futures::stream::unfold(state, move |(shared, mut left, mut seen)| async move {
        let next = left.pop_front()?;
        let message = match shared.cache.directory(next, root).await {
            Ok(directory) => {
                let children = directory.directories().map(|(child, _)| child);
                left.extend(children.filter(|child| seen.insert(*child)));
                Ok(proto::directory_to_wire(&directory))
            }
            Err(error) => {
                left.clear();
                Err(status::of(&error))
            }
        };
        Some((message, (shared, left, seen)))
    })
    .boxed()
}

/// Directories that are put: leaves first, the root last.
#[derive(Default)]
struct Closure {
    /// In the order in which they came, with their digests.
    directories: Vec<(Digest, Bytes)>,
    /// Their sizes.
    known: HashMap<Digest, u64>,
    /// Those that another one refers to.
    referred: HashSet<Digest>,
    bytes: usize,
}

impl Closure {
    fn add(&mut self, message: &wire::Directory) -> Result<(), String> {
        let bytes = Bytes::from(prost::Message::encode_to_vec(message));
        self.bytes += bytes.len();
        if self.bytes > MAX_CLOSURE {
            return Err(format!("more than {MAX_CLOSURE} bytes of directories"));
        }
        let directory = Directory::decode(&bytes[..]).map_err(|error| error.to_string())?;
        for (child, size) in directory.directories() {
            let actual = match self.known.get(&child) {
                Some(actual) => *actual,
                None if child == Digest::empty() => 0,
                None => return Err(format!("the directory {child} comes after one that has it")),
            };
            if size < actual {
                return Err(format!(
                    "the directory {child} is said to have {size} entries and has {actual}"
                ));
            }
            self.referred.insert(child);
        }
        let digest = Digest::of(&bytes);
        if self
            .known
            .insert(digest, directory.size(SizeRule::Protocol))
            .is_none()
        {
            self.directories.push((digest, bytes));
        }
        Ok(())
    }

    /// The root and its closure, the root first.
    fn finish(self) -> Result<(Digest, Vec<Bytes>), String> {
        let root = self.directories.last().map(|(digest, _)| *digest);
        let root = root.ok_or("no directory")?;
        let loose = self.directories.iter().map(|(digest, _)| digest);
        let mut loose = loose.filter(|digest| **digest != root && !self.referred.contains(digest));
        if let Some(loose) = loose.next() {
            return Err(format!("nothing refers to the directory {loose}"));
        }
        let directories = self.directories.into_iter().rev().map(|(_, bytes)| bytes);
        Ok((root, directories.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Entry, Name, Node};

    fn directory(children: &[(&'static str, &wire::Directory, u64)]) -> wire::Directory {
        let entries = children.iter().map(|(name, child, size)| Entry {
            name: Name::new(*name).unwrap(),
            node: Node::Directory {
                digest: Digest::of(&prost::Message::encode_to_vec(*child)),
                size: *size,
            },
        });
        proto::directory_to_wire(&Directory::new(entries.collect()).unwrap())
    }

    #[test]
    fn a_closure_comes_leaves_first_and_as_a_whole() {
        let leaf = directory(&[]);
        let middle = directory(&[("leaf", &leaf, 0)]);
        let root = directory(&[("again", &leaf, 0), ("middle", &middle, 1)]);
        let put = |messages: &[&wire::Directory]| {
            let mut closure = Closure::default();
            for message in messages {
                closure.add(message)?;
            }
            closure.finish()
        };
        let (digest, directories) = put(&[&leaf, &middle, &root]).unwrap();
        assert_eq!(digest, Digest::of(&directories[0]));
        assert_eq!(directories.len(), 3);
        assert!(put(&[&root, &middle, &leaf]).unwrap_err().contains("after"));
        assert!(put(&[&leaf, &root]).unwrap_err().contains("after"));
        assert!(put(&[&middle, &leaf]).unwrap_err().contains("refers"));
        assert!(put(&[]).is_err());
        let liar = directory(&[("middle", &middle, 0)]);
        assert!(
            put(&[&leaf, &middle, &liar])
                .unwrap_err()
                .contains("entries")
        );
    }
}
