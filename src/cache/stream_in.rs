use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use super::{
    Blob, Cache, CacheError, Counter,
    arriving::Arriving,
    store::{Command, IfSlow},
};
use crate::{
    model::{Digest, Manifest},
    remote::{Fault, Object, RemoteError, Urgency},
};

/// A blob above this size, in bytes, that its remote does not cut is taken in as a stream and cut here: it may be larger
/// than memory, and a part of it can be verified and evicted only when the part has a digest.
pub const STREAMED: u64 = 4 << 20;
/// Length of the parts, in bytes.
const PART: u64 = 1 << 20;
/// And where they go into segments, each on its own: a chunk of a MiB would have a file to itself.
const SMALL_PART: u64 = 512 << 10;
/// A stream that breaks off is begun again so many times without getting any further.
const ATTEMPTS: u32 = 5;
/// The largest blob that is taken as a stream, in bytes.
const MAX_STREAM: u64 = 1 << 40;
/// A larger one, in bytes, has no file of its own, so that what is planned for a size that somebody has made up stays small.
pub(super) const PLANNED: u64 = 16 << 30;

/// A stream that is taken in.
pub(super) struct Intake {
    digest: Digest,
    /// In bytes, where known before.
    size: Option<u64>,
    /// Where the parts will be in the blob's file, where the size is known: before their digests are.
    file: Option<Arc<Blob>>,
    /// Length of its parts, in bytes.
    part: usize,
    /// Digest and size of what was taken in so far.
    parts: Vec<(Digest, u64)>,
    /// A part to hand out in any case, however little the tiers can hold.
    wanted: Option<Digest>,
    kept: Arc<Mutex<Option<Bytes>>>,
    /// A part came in two ways.
    differed: bool,
    /// Told of each part, where readers do not wait for the whole.
    pub(super) arriving: Option<Arc<Arriving>>,
}

impl Intake {
    pub(super) fn new(digest: Digest, size: Option<u64>) -> Result<Self, CacheError> {
        if size.is_some_and(|size| size > MAX_STREAM) {
            return Err(CacheError::Remote(RemoteError::Corrupt {
                remote: "its directory".into(),
                object: Object::Blob(digest),
                cause: Arc::new(std::io::Error::other(format!(
                    "a blob that is not split and has more than {MAX_STREAM} bytes"
                ))),
            }));
        }
        let file = match size.filter(|size| *size <= PLANNED) {
            None => None,
            Some(size) => {
                let manifest = planned(digest, size)?;
                let places = vec![None; manifest.chunks().len()];
                Some(Arc::new(Blob::new(digest, manifest, places)))
            }
        };
        Ok(Self {
            digest,
            size,
            part: usize::try_from(if file.is_some() { PART } else { SMALL_PART })
                .unwrap_or(usize::MAX),
            file,
            parts: Vec::new(),
            wanted: None,
            kept: Arc::default(),
            differed: false,
            arriving: None,
        })
    }

    /// The blob and the position in it under which a part is written.
    fn place(&self, position: usize, part: Digest, size: u64) -> (Arc<Blob>, usize) {
        if let Some(file) = &self.file {
            return (Arc::clone(file), position);
        }
        let blob = Blob::new(part, Manifest::whole(part, size), vec![None]);
        (Arc::new(blob), 0)
    }
}

/// The parts of a blob before their digests are known: each goes by the blob's.
pub(super) fn planned(digest: Digest, size: u64) -> Result<Manifest, CacheError> {
    let parts = (0..size.div_ceil(PART)).map(|part| (digest, PART.min(size - part * PART)));
    Manifest::new(parts).map_err(|_| CacheError::Aborted)
}

impl Cache {
    /// Takes in a blob that its remote does not cut, and gives the manifest that it was cut by. Nothing of it is served
    /// before its whole was verified: only then a manifest names its parts. `wanted` is a part to hand out in any case,
    /// however little the tiers can hold.
    ///
    /// # Errors
    /// When the remote does not send it, or sends something else.
    pub(super) async fn stream_in(
        self: &Arc<Self>,
        digest: Digest,
        size: u64,
        wanted: Option<Digest>,
    ) -> Result<(Manifest, Option<Bytes>), CacheError> {
        let intake = || Intake::new(digest, Some(size));
        let mut first = intake()?;
        first.wanted = wanted;
        let kept = Arc::clone(&first.kept);
        let task = |_| {
            let cache = Arc::clone(self);
            async move { cache.take_stream(first).await }
        };
        let manifest = self.streams.join((digest, size), true, task).await?;
        let take = |kept: &Mutex<Option<Bytes>>| {
            kept.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        let mut found = take(&kept);
        if let Some(part) = wanted.filter(|_| found.is_none()) {
            // Somebody else's stream went by.
            found = self.memory.chunks.get(&part);
            if found.is_none() {
                let mut again = intake()?;
                again.wanted = wanted;
                let kept = Arc::clone(&again.kept);
                self.take_stream(again).await?;
                found = take(&kept);
            }
        }
        Ok((manifest, found))
    }

    /// As [`Cache::stream_in`], for a blob whose size nobody knows.
    ///
    /// # Errors
    /// When the remote does not send it, or sends something else.
    pub(super) async fn stream_in_unsized(
        self: &Arc<Self>,
        digest: Digest,
    ) -> Result<Manifest, CacheError> {
        let intake = Intake::new(digest, None)?;
        let task = |_| {
            let cache = Arc::clone(self);
            async move { cache.take_stream(intake).await }
        };
        self.streams.join((digest, u64::MAX), true, task).await
    }

    pub(super) async fn take_stream(
        self: &Arc<Self>,
        mut intake: Intake,
    ) -> Result<Manifest, CacheError> {
        let digest = intake.digest;
        let (mut attempts, mut wrong) = (0, 0);
        loop {
            let before = intake.parts.len();
            // What was damaged on its way, perhaps, is asked for once more before the next remote is.
            let skip = wrong / 2;
            let error = match self.take_stream_once(&mut intake, skip).await {
                Ok(()) => break,
                Err(error) => error,
            };
            attempts = if intake.parts.len() > before {
                0
            } else {
                attempts + 1
            };
            let is_corrupt = matches!(error, RemoteError::Corrupt { .. });
            if is_corrupt {
                wrong += 1;
                // Readers may have been shown what it was.
                if intake.arriving.is_some() {
                    return Err(self.failed(digest, error));
                }
                self.stats().add(Counter::RejectedObjects, 1);
            }
            let exhausted = is_corrupt && wrong / 2 >= self.remote.len();
            if attempts >= ATTEMPTS || exhausted || !(error.is_transient() || is_corrupt) {
                return Err(self.failed(digest, error));
            }
            tracing::info!(%error, "a blob breaks off; reading it again");
        }
        if intake.differed {
            // Who read the wrong one meanwhile may have given it to the kernel since.
            let cause = std::io::Error::other("it came in two ways");
            self.was_wrong(digest, &cause);
        }
        let manifest = Manifest::new(intake.parts).map_err(|_| CacheError::Aborted)?;
        if !manifest.is_whole(digest) {
            self.send(Command::Manifest {
                blob: digest,
                manifest: manifest.clone(),
                cut_here: true,
            });
            let places = vec![None; manifest.chunks().len()];
            let whole = Arc::new(Blob::new(digest, manifest.clone(), places));
            self.send(Command::Judged(whole, true));
        }
        Ok(manifest)
    }

    /// Reads the stream once, from its beginning: what came before it broke off is compared, not trusted.
    async fn take_stream_once(
        self: &Arc<Self>,
        intake: &mut Intake,
        skip: usize,
    ) -> Result<(), RemoteError> {
        let (digest, size) = (intake.digest, intake.size);
        let most = size.unwrap_or(MAX_STREAM);
        let corrupt = |cause: String| RemoteError::Corrupt {
            remote: self.remote.address().into(),
            object: Object::Blob(digest),
            cause: Arc::new(std::io::Error::other(cause)),
        };
        let mut pieces = self.remote.pieces(digest, size, skip).await?;
        let mut hasher = blake3::Hasher::new();
        let mut part = BytesMut::new();
        let (mut received, mut position) = (0, 0);
        loop {
            let piece = pieces.next().await.transpose()?;
            let ended = piece.is_none();
            if ended && size.is_some_and(|size| size != received) {
                return Err(RemoteError::Read {
                    remote: self.remote.address().into(),
                    object: Object::Blob(digest),
                    fault: Fault::Unavailable,
                    cause: Arc::new(std::io::Error::other(format!(
                        "{received} of {most} bytes came"
                    ))),
                });
            }
            let mut piece = piece.unwrap_or_default();
            received += piece.len() as u64;
            if received > most {
                return Err(corrupt(format!("it has more than {most} bytes")));
            }
            let is_last = ended || size == Some(received);
            loop {
                let room = intake.part - part.len();
                part.extend_from_slice(&piece.split_to(piece.len().min(room)));
                let rest = is_last && piece.is_empty() && !part.is_empty();
                if part.len() < intake.part && !rest {
                    break;
                }
                let bytes = part.split().freeze();
                let hashing = {
                    let bytes = bytes.clone();
                    tokio::task::spawn_blocking(move || {
                        hasher.update(&bytes);
                        (Digest::of(&bytes), hasher)
                    })
                };
                let (part_digest, so_far) = hashing
                    .await
                    .map_err(|_| corrupt("not hashed".to_owned()))?;
                hasher = so_far;
                // What comes was asked for already: the next part is, later.
                self.throttle
                    .pass(bytes.len() as u64, &Urgency::reader(), self.opened)
                    .await;
                self.take_part(intake, position, part_digest, bytes).await;
                position += 1;
            }
            if is_last {
                break;
            }
        }
        let actual = Digest::from(hasher.finalize());
        if actual != digest {
            return Err(corrupt(format!("its bytes have the digest {actual}")));
        }
        intake.parts.truncate(position);
        Ok(())
    }

    async fn take_part(&self, intake: &mut Intake, position: usize, part: Digest, bytes: Bytes) {
        if intake.wanted == Some(part) {
            *intake.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes.clone());
        }
        if intake.parts.get(position).map(|known| known.0) == Some(part) {
            return;
        }
        let size = bytes.len() as u64;
        let differs = intake.parts.len() > position;
        intake.parts.truncate(position);
        intake.parts.push((part, size));
        let (blob, at) = intake.place(position, part, size);
        // It cannot be fetched alone, so it is not left out. Before it takes a share, which readers want too.
        self.writer_gets_on().await;
        let share = self.memory.reserve(size, None).await;
        self.take_in(&blob, at, part, bytes, share, IfSlow::Wait);
        if let Some(arriving) = &intake.arriving {
            arriving.arrived(position, part);
            if differs {
                // One of the two was wrong, and the other one may have been shown.
                intake.differed = true;
                self.was_wrong(intake.digest, &std::io::Error::other("it came in two ways"));
            }
        }
    }
}
