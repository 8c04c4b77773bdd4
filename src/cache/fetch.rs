use std::sync::{Arc, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Blob, Cache, CacheError, Check, ChunkData, Counter,
    blob::known_blob,
    index,
    memory::Share,
    shared_flights::Turn,
    store::{Command, IfSlow, NewChunk, Pending},
    stream_in::STREAMED,
};
use crate::{
    model::{Digest, Manifest},
    remote::{RemoteError, Urgency},
};

/// Somebody who waits looks this often whether a reader waits for the same, and whether the writer is stuck.
const LOOK: std::time::Duration = std::time::Duration::from_millis(10);

/// How a chunk was brought that no reader had asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefetched {
    /// It was in a tier, or somebody else had it on its way.
    Near,
    /// From a remote.
    Came {
        /// A reader has come to wait for it meanwhile.
        awaited: bool,
    },
}

impl Cache {
    /// A blob's manifest, and where its chunks lie.
    ///
    /// # Errors
    /// When it is neither in the index nor to be had from a remote.
    pub async fn blob(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<Arc<Blob>, CacheError> {
        if let Some(blob) = self.blob_at_hand(digest, size) {
            return Ok(blob);
        }
        let task = |_| {
            let cache = Arc::clone(self);
            async move {
                let blob = cache.find_blob(digest, size).await?;
                cache.verify_whole(&blob);
                cache.memory.keep_blob(digest, size, &blob);
                Ok(blob)
            }
        };
        self.blobs.join((digest, size), true, task).await
    }

    /// A chunk's bytes, verified.
    ///
    /// # Errors
    /// When it is not on disk, or damaged there, and not to be had from a remote.
    pub async fn chunk(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
    ) -> Result<ChunkData, CacheError> {
        self.chunk_for(blob, position, true).await
    }

    /// Brings a chunk that no reader waits for yet.
    ///
    /// # Errors
    /// As [`Cache::chunk`].
    pub async fn prefetch(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
    ) -> Result<Prefetched, CacheError> {
        let asked = Arc::new(OnceLock::new());
        self.join_chunk(blob, position, false, &asked).await?;
        Ok(match asked.get() {
            None => Prefetched::Near,
            Some(urgency) => Prefetched::Came {
                awaited: urgency.is_reader(),
            },
        })
    }

    /// As [`Cache::chunk`], where perhaps no reader waits.
    ///
    /// # Errors
    /// As [`Cache::chunk`].
    pub async fn chunk_for(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
        is_reader: bool,
    ) -> Result<ChunkData, CacheError> {
        let data = self
            .join_chunk(blob, position, is_reader, &Arc::default())
            .await?;
        if is_reader {
            self.note_reader(blob, position, false, index::now());
        }
        Ok(data)
    }

    /// `asked` is set where this has asked a remote, to how urgent that is.
    pub(super) async fn join_chunk(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
        is_reader: bool,
        asked: &Arc<OnceLock<Urgency>>,
    ) -> Result<ChunkData, CacheError> {
        let chunk = blob.chunk(position).ok_or(CacheError::Aborted)?;
        if let Some(arriving) = blob.as_arriving() {
            return self.arriving_part(arriving, position, chunk.size).await;
        }
        let key = (chunk.digest, chunk.size);
        let task = |urgency: Urgency| {
            let (cache, blob) = (Arc::clone(self), Arc::clone(blob));
            let asked = Arc::clone(asked);
            async move {
                if let Some(data) = cache.find_here(&blob, position).await? {
                    return Ok(data);
                }
                let _ = asked.set(urgency.clone());
                cache.fetch_chunk(&blob, position, &urgency).await
            }
        };
        let data = match self.chunks.join(key, is_reader, task).await {
            Err(CacheError::Recut { .. }) => {
                return self.by_other_manifest(blob, position, is_reader).await;
            }
            data => data?,
        };
        blob.note_seen(position);
        self.hash_along(blob, position);
        self.verify_whole(blob);
        Ok(data)
    }

    pub(super) fn mismatch(&self, digest: Digest) -> CacheError {
        CacheError::BlobMismatch {
            digest,
            remote: self.remote.address().to_owned(),
        }
    }

    pub(super) fn send(&self, command: Command) {
        // It fails only after `close`, when nothing is written any more.
        let _ = self.commands.send(command);
    }

    async fn find_blob(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
    ) -> Result<Arc<Blob>, CacheError> {
        if size == 0 {
            let blob = Blob::new(digest, Manifest::whole(digest, 0), Vec::new());
            return Ok(Arc::new(blob));
        }
        let known = self
            .look_up(move |connection| known_blob(connection, digest, size))
            .await?;
        // The index forgets a lie a moment after it was found out.
        let is_lie = self.is_lie(digest);
        if let Some(blob) = known.filter(|blob| !is_lie(blob.manifest())) {
            return Ok(Arc::new(blob));
        }
        let manifest = match self
            .remote
            .manifest(digest, Some(size), self.is_lie(digest))
            .await
        {
            Ok(Some(manifest)) => {
                self.keep_manifest(digest, &manifest)?;
                manifest
            }
            Ok(None) if size > STREAMED && self.trusts(digest, size) => {
                return self.open_arriving(digest, size);
            }
            Ok(None) if size > STREAMED => {
                let (manifest, _) = self.stream_in(digest, size, None).await?;
                let places = vec![None; manifest.chunks().len()];
                return Ok(Arc::new(Blob::new(digest, manifest, places).verified()));
            }
            Ok(None) => Manifest::whole(digest, size),
            Err(error) => return Err(self.failed(digest, error)),
        };
        let wanted = manifest.clone();
        let places = self.places(wanted).await?;
        Ok(Arc::new(Blob::new(digest, manifest, places)))
    }

    pub(super) async fn find_chunk(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
        urgency: &Urgency,
    ) -> Result<ChunkData, CacheError> {
        match self.find_here(blob, position).await? {
            Some(data) => Ok(data),
            None => self.fetch_chunk(blob, position, urgency).await,
        }
    }

    /// A chunk from either tier.
    pub(super) async fn find_here(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
    ) -> Result<Option<ChunkData>, CacheError> {
        let chunk = *blob.chunk(position).ok_or(CacheError::Aborted)?;
        if let Some(bytes) = self.memory.chunks.get(&chunk.digest)
            && bytes.len() as u64 == chunk.size
        {
            return Ok(Some(ChunkData::Memory(bytes)));
        }
        // One row of the index is read sooner than another thread is woken; verifying takes longer.
        if self.store.pending(chunk.digest).is_none() && self.store.locate(chunk.digest).is_none() {
            blob.set_place(position, None);
            return Ok(None);
        }
        let (cache, blob) = (Arc::clone(self), Arc::clone(blob));
        let find = move || match cache.check {
            Check::Stamp => cache.find_on_disk(&blob, position, Check::Stamp),
            Check::Always => cache.read_from_disk(&blob, position),
        };
        let on_disk = tokio::task::spawn_blocking(find);
        on_disk.await.map_err(|_| CacheError::Aborted)
    }

    async fn fetch_chunk(
        self: &Arc<Self>,
        blob: &Arc<Blob>,
        position: usize,
        urgency: &Urgency,
    ) -> Result<ChunkData, CacheError> {
        let chunk = *blob.chunk(position).ok_or(CacheError::Aborted)?;
        // Who thinks ahead waits in a line of its own, so that a reader never waits behind.
        let ahead = match urgency.is_reader() {
            true => None,
            false => self.in_line(chunk.size, urgency).await,
        };
        let mut share = self.share(chunk.size, ahead, urgency).await;
        let size = Some(chunk.size);
        self.throttle.pass(chunk.size, urgency, self.opened).await;
        share.flight = match self.turn(blob, position, urgency).await? {
            Turn::Here(data) => return Ok(data),
            Turn::Fetch(flight) => flight,
        };
        let begun = self.pace().begin(self.opened.elapsed());
        let bytes = match self.remote.chunk(chunk.digest, size, urgency).await {
            Ok(bytes) => bytes,
            Err(error) if error.is_not_found() => {
                drop(share);
                return self.find_elsewhere(blob, position, error).await;
            }
            Err(error) => return Err(self.failed(chunk.digest, error)),
        };
        if urgency.is_reader() {
            self.stats().add(Counter::Misses, 1);
        }
        let now = self.opened.elapsed();
        self.pace().done(begun, now, bytes.len() as u64);
        Ok(self.take_in(blob, position, chunk.digest, bytes, share, IfSlow::LeaveOut))
    }

    /// Waits for a place in the line of those for whom no reader waits, until one does.
    async fn in_line(&self, bytes: u64, urgency: &Urgency) -> Option<OwnedSemaphorePermit> {
        let raised = async {
            while !urgency.is_reader() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            place = self.memory.stand_in_line(bytes) => place,
            () = raised => None,
        }
    }

    /// Waits until bytes may be in flight. A reader waits for no writer that is stuck, which does not take what is fetched then.
    async fn share(
        &self,
        bytes: u64,
        ahead: Option<OwnedSemaphorePermit>,
        urgency: &Urgency,
    ) -> Share {
        let stuck = async {
            loop {
                tokio::time::sleep(LOOK).await;
                if urgency.is_reader() && self.writer_is_stuck() {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            share = self.memory.reserve(bytes, ahead) => share,
            () = stuck => Share::default(),
        }
    }

    fn writer_is_stuck(&self) -> bool {
        !self.store.keeps && self.store.backlog.is_stuck(self.most_queued())
    }

    /// Waits while the writer is stuck.
    pub(super) async fn writer_gets_on(&self) {
        while self.writer_is_stuck() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Bytes that may wait for a writer that is stuck.
    pub(super) fn most_queued(&self) -> u64 {
        self.memory.in_flight_bytes() / 4
    }

    /// Puts verified bytes into both tiers: into that on disk if it takes them in time.
    pub(super) fn take_in(
        &self,
        blob: &Arc<Blob>,
        position: usize,
        digest: Digest,
        bytes: Bytes,
        share: Share,
        if_slow: IfSlow,
    ) -> ChunkData {
        self.stats().add(Counter::FetchedBytes, bytes.len() as u64);
        self.memory.chunks.insert(digest, bytes.clone());
        let if_slow = match self.store.keeps {
            true => IfSlow::Wait,
            false => if_slow,
        };
        let limit = match if_slow {
            IfSlow::Wait => u64::MAX,
            IfSlow::LeaveOut => self.most_queued(),
        };
        let Some(queued) = self.store.backlog.add(bytes.len() as u64, limit) else {
            self.stats().add(Counter::Unwritten, 1);
            return ChunkData::Memory(bytes);
        };
        self.store
            .set_pending(digest, Pending::Queued(bytes.clone()));
        self.send(Command::Chunk(NewChunk {
            digest,
            bytes: bytes.clone(),
            blob: Arc::clone(blob),
            position,
            share,
            queued: Some(queued),
            if_slow,
            stays: None,
        }));
        ChunkData::Memory(bytes)
    }

    /// Counts what a person may want to know of a failure.
    pub(super) fn failed(&self, digest: Digest, error: RemoteError) -> CacheError {
        match &error {
            RemoteError::Corrupt { .. } => self.stats().add(Counter::RejectedObjects, 1),
            RemoteError::Offline { .. } => {
                self.stats().add(Counter::OfflineMisses, 1);
                let new = self
                    .told
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(digest);
                if new {
                    tracing::warn!(%digest, "not in the cache, and --offline asks no remote");
                }
            }
            RemoteError::NotFound { .. } | RemoteError::Read { .. } | RemoteError::Write { .. } => {
            }
        }
        error.into()
    }
}
