use super::Digest;

/// One chunk of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    pub digest: Digest,
    /// Where it begins in the blob, in bytes.
    pub offset: u64,
    /// Length in bytes, never 0.
    pub size: u64,
}

/// The part of a chunk that a range of its blob touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkSlice {
    /// Position in [`Manifest::chunks`].
    pub index: usize,
    /// Where the part begins within the chunk, in bytes.
    pub start: u64,
    /// Length of the part in bytes, never 0.
    pub len: u64,
}

/// A blob's chunk list: contiguous, in order, from 0 to the blob's size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Invariant: `chunks[0].offset == 0` and each next offset is the sum of the sizes before it.
    chunks: Box<[Chunk]>,
    size: u64,
}

/// Why a chunk list is no manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("chunk {0} of the blob is empty")]
    EmptyChunk(usize),
    #[error("the sizes of the chunks overflow")]
    Overflow,
}

impl Manifest {
    /// # Errors
    /// When a chunk is empty or the sizes do not fit a `u64`.
    pub fn new(chunks: impl IntoIterator<Item = (Digest, u64)>) -> Result<Self, ManifestError> {
        let mut offset = 0_u64;
        let chunks = chunks
            .into_iter()
            .enumerate()
            .map(|(index, (digest, size))| {
                if size == 0 {
                    return Err(ManifestError::EmptyChunk(index));
                }
                let chunk = Chunk {
                    digest,
                    offset,
                    size,
                };
                offset = offset.checked_add(size).ok_or(ManifestError::Overflow)?;
                Ok(chunk)
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            chunks,
            size: offset,
        })
    }

    /// The manifest of a blob that is not split: one chunk with the blob's own digest, or none for the empty blob.
    #[must_use]
    pub fn whole(blob: Digest, size: u64) -> Self {
        let chunk = Chunk {
            digest: blob,
            offset: 0,
            size,
        };
        Self {
            chunks: if size == 0 { [].into() } else { [chunk].into() },
            size,
        }
    }

    /// Whether it is that of a blob with this digest that is not split.
    #[must_use]
    pub fn is_whole(&self, blob: Digest) -> bool {
        match &*self.chunks {
            [] => true,
            [only] => only.digest == blob,
            _ => false,
        }
    }

    #[must_use]
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// The blob's size in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The parts of chunks that make up `len` bytes from `offset`, in order; what lies beyond the end is left out.
    pub fn slices(&self, offset: u64, len: u64) -> impl Iterator<Item = ChunkSlice> + '_ {
        let end = offset.saturating_add(len).min(self.size);
        let first = self
            .chunks
            .partition_point(|chunk| chunk.offset + chunk.size <= offset);
        self.chunks[first..]
            .iter()
            .enumerate()
            .take_while(move |(_, chunk)| chunk.offset < end && offset < end)
            .map(move |(index, chunk)| {
                let start = offset.max(chunk.offset) - chunk.offset;
                ChunkSlice {
                    index: first + index,
                    start,
                    len: (end - chunk.offset).min(chunk.size) - start,
                }
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(sizes: &[u64]) -> Manifest {
        let chunks = sizes
            .iter()
            .enumerate()
            .map(|(i, size)| (Digest::of(&i.to_le_bytes()), *size));
        Manifest::new(chunks).unwrap()
    }

    #[test]
    fn bad_lists_are_refused() {
        let digest = Digest::empty();
        assert_eq!(
            Manifest::new([(digest, 1), (digest, 0)]),
            Err(ManifestError::EmptyChunk(1))
        );
        assert_eq!(
            Manifest::new([(digest, u64::MAX), (digest, 1)]),
            Err(ManifestError::Overflow)
        );
        assert_eq!(Manifest::whole(digest, 0), Manifest::new([]).unwrap());
    }

    /// A range of no bytes in the middle of a chunk once gave a slice of no bytes.
    #[test]
    fn no_bytes_are_no_slices() {
        assert_eq!(manifest(&[10, 20]).slices(5, 0).next(), None);
        assert_eq!(manifest(&[10, 20]).slices(10, 0).next(), None);
        assert_eq!(manifest(&[10, 20]).slices(30, 5).next(), None);
    }

    proptest! {
        /// Joining the slices of any range gives that range of the blob.
        #[test]
        fn slices_cover_the_range(
            sizes in proptest::collection::vec(1_u64..50, 0..20),
            offset in 0_u64..600,
            len in 0_u64..600,
        ) {
            let manifest = manifest(&sizes);
            let blob: Vec<(usize, u64)> = sizes
                .iter()
                .enumerate()
                .flat_map(|(index, size)| (0..*size).map(move |at| (index, at)))
                .collect();
            let end = usize::try_from((offset + len).min(manifest.size())).unwrap();
            let want = blob.get(usize::try_from(offset).unwrap()..end).unwrap_or_default();
            let got: Vec<(usize, u64)> = manifest
                .slices(offset, len)
                .flat_map(|slice| {
                    assert!(slice.len > 0);
                    (slice.start..slice.start + slice.len).map(move |at| (slice.index, at))
                })
                .collect();
            prop_assert_eq!(got, want);
        }

        #[test]
        fn extreme_ranges_do_not_overflow(offset: u64, len: u64) {
            let manifest = manifest(&[10, 20, 30]);
            let sum: u64 = manifest.slices(offset, len).map(|slice| slice.len).sum();
            prop_assert_eq!(sum, 60_u64.saturating_sub(offset).min(len));
        }
    }
}
