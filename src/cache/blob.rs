use std::sync::{
    Arc, Mutex, PoisonError, RwLock,
    atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use rusqlite::Connection;

use super::{
    DataFile,
    arriving::Arriving,
    index::{self, Location},
    whole::Along,
};
use crate::model::{Chunk, Digest, Manifest};

/// A blob up to this size, in bytes, is asked for as one chunk before anybody asks for its manifest: chunking makes no
/// smaller chunks, so the answer is nearly always there.
pub const ONE_CHUNK: u64 = 128 << 10;

/// A blob: its manifest, and where on disk its chunks lie as far as this process knows.
#[derive(Debug)]
pub struct Blob {
    digest: Digest,
    manifest: Manifest,
    /// One for each chunk of the manifest. A place may be out of date: the file may have been evicted since.
    places: RwLock<Box<[Option<Location>]>>,
    /// Which chunks have not been there yet: once all were, the blob is verified as a whole. The lock is held for a look
    /// only.
    unseen: Mutex<Unseen>,
    /// The chunks, joined, have the blob's digest.
    proven: AtomicBool,
    /// They do not: the manifest lies.
    wrong: AtomicBool,
    /// Of a blob that may not all stay. The lock is held for a look only.
    along: Mutex<Along>,
    /// Held by who joins and hashes them while others wait for the result.
    pub(super) proving: tokio::sync::Mutex<()>,
    /// Where its parts come one by one, and their digests with them.
    arriving: Option<Arc<Arriving>>,
}

#[derive(Debug)]
struct Unseen {
    /// On disk when the blob was looked up, or asked for since.
    seen: Box<[bool]>,
    /// Number of those in `seen` that are not set.
    left: usize,
    /// Nothing is to be verified, or somebody does it.
    verified: bool,
}

impl Blob {
    pub(super) fn new(digest: Digest, manifest: Manifest, places: Vec<Option<Location>>) -> Self {
        debug_assert_eq!(places.len(), manifest.chunks().len());
        let seen: Box<[bool]> = places.iter().map(Option::is_some).collect();
        let left = seen.iter().filter(|seen| !**seen).count();
        Self {
            digest,
            places: RwLock::new(places.into()),
            unseen: Mutex::new(Unseen {
                // One chunk that has the blob's digest is the blob.
                verified: manifest.is_whole(digest),
                seen,
                left,
            }),
            proven: AtomicBool::new(manifest.is_whole(digest)),
            wrong: AtomicBool::new(false),
            along: Mutex::default(),
            proving: tokio::sync::Mutex::new(()),
            arriving: None,
            manifest,
        }
    }

    /// One whose parts are still to come. The digests in its manifest are not theirs.
    pub(super) fn arriving(digest: Digest, manifest: Manifest, arriving: Arc<Arriving>) -> Self {
        let places = vec![None; manifest.chunks().len()];
        Self {
            arriving: Some(arriving),
            ..Self::new(digest, manifest, places).unverified_by_chunks()
        }
    }

    pub(super) const fn as_arriving(&self) -> Option<&Arc<Arriving>> {
        self.arriving.as_ref()
    }

    /// One that was verified as a whole before.
    pub(super) fn verified(self) -> Self {
        self.set_proven();
        self.unverified_by_chunks()
    }

    /// One that is not to be verified by its chunks.
    fn unverified_by_chunks(self) -> Self {
        self.unseen().verified = true;
        self
    }

    /// Whether its bytes are known to be those of its digest, and not only those of its manifest's chunks.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.proven.load(Ordering::Relaxed)
    }

    pub(super) fn set_proven(&self) {
        self.proven.store(true, Ordering::Relaxed);
    }

    /// Notes that a chunk was at hand.
    pub(super) fn note_seen(&self, position: usize) {
        let mut unseen = self.unseen();
        if let Some(seen @ false) = unseen.seen.get_mut(position) {
            *seen = true;
            unseen.left -= 1;
        }
    }

    /// Whether all chunks were there and nobody has verified the blob as a whole.
    pub(super) fn is_due(&self) -> bool {
        let unseen = self.unseen();
        unseen.left == 0 && !unseen.verified
    }

    /// As [`Blob::is_due`], and true for one caller only, who does it.
    pub(super) fn take_due(&self) -> bool {
        let mut unseen = self.unseen();
        let due = unseen.left == 0 && !unseen.verified;
        unseen.verified |= due;
        due
    }

    /// After an attempt that failed.
    pub(super) fn set_due(&self) {
        self.unseen().verified = false;
    }

    /// Whether its chunks, joined, were found not to have its digest.
    #[must_use]
    pub fn is_wrong(&self) -> bool {
        self.wrong.load(Ordering::Relaxed)
    }

    pub(super) fn set_wrong(&self) {
        self.wrong.store(true, Ordering::Relaxed);
    }

    pub(super) fn along(&self) -> std::sync::MutexGuard<'_, Along> {
        self.along.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unseen(&self) -> std::sync::MutexGuard<'_, Unseen> {
        self.unseen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn chunk(&self, index: usize) -> Option<&Chunk> {
        self.manifest.chunks().get(index)
    }

    pub(super) fn place(&self, index: usize) -> Option<Location> {
        let places = self.places.read().unwrap_or_else(PoisonError::into_inner);
        places.get(index).copied().flatten()
    }

    pub(super) fn set_place(&self, index: usize, place: Option<Location>) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = places.get_mut(index) {
            *slot = place;
        }
    }

    /// A data file is gone, and with it all that was in it.
    pub(super) fn forget_file(&self, file: u64) {
        let mut places = self.places.write().unwrap_or_else(PoisonError::into_inner);
        for place in &mut *places {
            if place.is_some_and(|place| place.file == file) {
                *place = None;
            }
        }
    }

    /// Bytes of memory that it takes, about.
    pub(super) fn weight(&self) -> usize {
        let chunk = size_of::<Chunk>() + size_of::<Option<Location>>() + 1;
        self.manifest.chunks().len() * chunk + size_of::<Self>()
    }
}

/// A blob whose manifest is known, with the places of its chunks. One that may be a single chunk is taken for one.
pub(super) fn known_blob(
    connection: &Connection,
    digest: Digest,
    size: u64,
) -> rusqlite::Result<Option<Blob>> {
    let (manifest, verified) = if size <= ONE_CHUNK {
        (Manifest::whole(digest, size), true)
    } else if let Some(known) = index::manifest(connection, digest)? {
        known
    } else if let Some((_, chunk_size)) = index::chunk(connection, digest)? {
        (Manifest::whole(digest, chunk_size), true)
    } else {
        return Ok(None);
    };
    if manifest.size() != size {
        return Ok(None);
    }
    let places = places(connection, &manifest)?;
    let blob = Blob::new(digest, manifest, places);
    Ok(Some(if verified { blob.verified() } else { blob }))
}

pub(super) fn places(
    connection: &Connection,
    manifest: &Manifest,
) -> rusqlite::Result<Vec<Option<Location>>> {
    manifest
        .chunks()
        .iter()
        .map(|chunk| {
            let found = index::chunk(connection, chunk.digest)?;
            Ok(found
                .filter(|(_, size)| *size == chunk.size)
                .map(|(location, _)| location))
        })
        .collect()
}

/// The bytes of one chunk, verified.
#[derive(Debug, Clone)]
pub enum ChunkData {
    Memory(Bytes),
    /// In a data file, at this offset.
    Disk(Arc<DataFile>, u64),
}

/// A part of a chunk, verified; or of several that lie one behind the other in a file.
#[derive(Debug, Clone)]
pub struct Slice {
    pub data: ChunkData,
    /// Where the part begins in the first chunk, in bytes.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Slice {
    /// The bytes, without blocking: those of a file are read on another thread.
    ///
    /// # Errors
    /// When the data file cannot be read.
    pub async fn load(self) -> std::io::Result<Bytes> {
        let invalid = |_| std::io::Error::from(std::io::ErrorKind::InvalidInput);
        if let ChunkData::Memory(bytes) = &self.data {
            let start = usize::try_from(self.start).map_err(invalid)?;
            let end = usize::try_from(self.start + self.len).map_err(invalid)?;
            if end <= bytes.len() {
                return Ok(bytes.slice(start..end));
            }
        }
        let read = tokio::task::spawn_blocking(move || {
            let mut bytes = Vec::new();
            self.append_to(&mut bytes).map(|()| bytes.into())
        });
        read.await.map_err(std::io::Error::other)?
    }

    /// Appends the bytes to `buffer`.
    ///
    /// # Errors
    /// When the data file cannot be read.
    pub fn append_to(&self, buffer: &mut Vec<u8>) -> std::io::Result<()> {
        let invalid = |_| std::io::Error::from(std::io::ErrorKind::InvalidInput);
        let len = usize::try_from(self.len).map_err(invalid)?;
        match &self.data {
            ChunkData::Memory(bytes) => {
                let start = usize::try_from(self.start).map_err(invalid)?;
                let part = start.checked_add(len).and_then(|end| bytes.get(start..end));
                let out_of_range = || std::io::Error::from(std::io::ErrorKind::InvalidInput);
                buffer.extend_from_slice(part.ok_or_else(out_of_range)?);
                Ok(())
            }
            ChunkData::Disk(file, offset) => {
                let at = buffer.len();
                buffer.resize(at + len, 0);
                file.read_exact_at(&mut buffer[at..], offset + self.start)
            }
        }
    }
}
