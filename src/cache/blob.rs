use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;
use rusqlite::Connection;

use super::{
    DataFile,
    index::{self, Location},
};
use crate::model::{Chunk, Digest, Manifest};

/// A blob up to this size, in bytes, is asked for as one chunk before anybody asks for its manifest: chunking makes no
/// smaller chunks, so the answer is nearly always there.
pub(super) const ONE_CHUNK: u64 = 128 << 10;

/// A blob: its manifest, and where on disk its chunks lie as far as this process knows.
#[derive(Debug)]
pub struct Blob {
    digest: Digest,
    manifest: Manifest,
    /// One for each chunk of the manifest. A place may be out of date: the file may have been evicted since.
    places: RwLock<Box<[Option<Location>]>>,
}

impl Blob {
    pub(super) fn new(digest: Digest, manifest: Manifest, places: Vec<Option<Location>>) -> Self {
        debug_assert_eq!(places.len(), manifest.chunks().len());
        Self {
            digest,
            manifest,
            places: RwLock::new(places.into()),
        }
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

    /// Bytes of memory that it takes, about.
    pub(super) fn weight(&self) -> u32 {
        let chunk = size_of::<Chunk>() + size_of::<Option<Location>>();
        let weight = self.manifest.chunks().len() * chunk + 128;
        u32::try_from(weight).unwrap_or(u32::MAX)
    }
}

/// A blob's manifest and the places of its chunks, where the manifest is known. One that may be a single chunk is taken
/// for one.
pub(super) fn known_blob(
    connection: &Connection,
    digest: Digest,
    size: u64,
) -> rusqlite::Result<Option<(Manifest, Vec<Option<Location>>)>> {
    let manifest = if size <= ONE_CHUNK {
        Some(Manifest::whole(digest, size))
    } else if let Some(manifest) = index::manifest(connection, digest)? {
        Some(manifest)
    } else {
        index::chunk(connection, digest)?.map(|(_, chunk_size)| Manifest::whole(digest, chunk_size))
    };
    match manifest.filter(|manifest| manifest.size() == size) {
        Some(manifest) => places(connection, &manifest).map(|at| Some((manifest, at))),
        None => Ok(None),
    }
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

/// A part of a chunk, verified.
#[derive(Debug, Clone)]
pub struct Slice {
    pub data: ChunkData,
    /// Where the part begins in the chunk, in bytes.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Slice {
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
