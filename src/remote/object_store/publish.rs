use std::{collections::BTreeSet, path::Path as FsPath};

use async_trait::async_trait;
use bytes::Bytes;
use object_store::{ObjectStoreExt, path::Path};

use super::{ObjectStoreRemote, SYNCED_SINGLY, off_thread};
use crate::{
    model::{Digest, Manifest, Name, Node},
    proto,
    remote::{Object, Publish, PutWhole, RemoteError, layout},
};

#[async_trait]
impl Publish for ObjectStoreRemote {
    async fn has_blob(&self, blob: Digest) -> Result<bool, RemoteError> {
        let key = layout::blob_key(blob);
        // No bytes are the manifest of a blob that is one chunk, so an empty object says nothing without that chunk.
        let object = Object::Blob(blob);
        match self.store()?.head(&key).await {
            Ok(meta) if meta.size > 0 => Ok(true),
            Ok(_) => self.has_chunk(blob).await,
            Err(error) => match self.read_failed(object, error) {
                RemoteError::NotFound { .. } => Ok(false),
                error => Err(error),
            },
        }
    }

    async fn has_chunk(&self, chunk: Digest) -> Result<bool, RemoteError> {
        let key = layout::chunk_key(chunk);
        Ok(self.size(Object::Chunk(chunk), &key).await? > 0)
    }

    async fn has_closure(&self, root: Digest) -> Result<bool, RemoteError> {
        let key = layout::closure_key(root);
        Ok(self.size(Object::Directory(root), &key).await? > 0)
    }

    async fn put_chunk(&self, chunk: Digest, bytes: Bytes) -> Result<(), RemoteError> {
        let object = Object::Chunk(chunk);
        let frame = off_thread(move || layout::compress(&bytes))
            .await
            .map_err(|error| self.write_failed(object.clone(), error))?;
        self.put(object, &layout::chunk_key(chunk), frame).await
    }

    async fn put_manifest(&self, blob: Digest, manifest: &Manifest) -> Result<(), RemoteError> {
        let bytes = proto::encode_manifest(manifest);
        self.put(Object::Blob(blob), &layout::blob_key(blob), bytes)
            .await
    }

    async fn put_closure(&self, root: Digest, directories: Vec<Bytes>) -> Result<(), RemoteError> {
        let object = Object::Directory(root);
        let stream = off_thread(move || layout::compress_closure(&directories))
            .await
            .map_err(|error| self.write_failed(object.clone(), error))?;
        self.put(object, &layout::closure_key(root), stream).await
    }

    async fn put_root(&self, name: &Name, node: &Node) -> Result<(), RemoteError> {
        let key = self.root_key(name)?;
        let bytes = proto::encode_node(name, node);
        self.put(Object::Root(name.clone()), &key, bytes).await
    }

    async fn remove_root(&self, name: &Name) -> Result<bool, RemoteError> {
        let key = self.root_key(name)?;
        // S3 says of an object that was not there that it is gone.
        if self.size(Object::Root(name.clone()), &key).await? == 0 {
            return Ok(false);
        }
        match self.store()?.delete(&key).await {
            Ok(()) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(self.put_failed(Object::Root(name.clone()), error)),
        }
    }

    async fn sync(&self) -> Result<(), RemoteError> {
        let Some(directory) = self.directory.clone() else {
            // An object store answers a put when the object is safe.
            return Ok(());
        };
        let unsynced = std::mem::take(&mut *self.unsynced());
        off_thread(move || sync(&directory, &unsynced))
            .await
            .map_err(|error| self.write_failed(Object::Store, error))
    }

    fn is_local(&self) -> bool {
        self.directory.is_some()
    }

    fn verifies(&self) -> bool {
        false
    }

    async fn as_whole(&self) -> Result<Option<&dyn PutWhole>, RemoteError> {
        Ok(None)
    }
}

/// Syncs objects with the directories above them; many are synced together with their whole filesystem.
fn sync(store: &FsPath, objects: &[Path]) -> std::io::Result<()> {
    let open = |path: &FsPath| std::fs::File::open(path);
    if objects.len() > SYNCED_SINGLY {
        return Ok(rustix::fs::syncfs(open(store)?)?);
    }
    let mut directories = BTreeSet::new();
    for object in objects {
        let path = store.join(object.as_ref());
        open(&path)?.sync_all()?;
        let above = path.ancestors().skip(1);
        directories.extend(
            above
                .take_while(|path| path.starts_with(store))
                .map(FsPath::to_owned),
        );
    }
    for directory in directories.iter().rev() {
        open(directory)?.sync_all()?;
    }
    Ok(())
}
