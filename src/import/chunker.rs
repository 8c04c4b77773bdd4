use std::io::{self, Read};

use bytes::Bytes;
use fastcdc::v2020::StreamCDC;

use crate::model::{Digest, Manifest, ManifestError};

/// Average chunk size in bytes; the smallest is half of it, the largest twice. What tvix and snix use.
const AVERAGE: usize = 256 << 10;

/// A blob that was cut.
pub(super) struct Cut {
    pub(super) digest: Digest,
    pub(super) manifest: Manifest,
}

/// Why a source could not be cut.
pub(super) enum CutError {
    Read(io::Error),
    Manifest(ManifestError),
    /// `publish` wants no more.
    Stopped,
}

/// Cuts what `source` gives into content-defined chunks (`FastCDC` 2020) and hands each to `publish`, which answers
/// whether it wants more. Memory: two chunks.
pub(super) fn cut(
    source: impl Read,
    mut publish: impl FnMut(Digest, Bytes) -> bool,
) -> Result<Cut, CutError> {
    let mut chunks = StreamCDC::new(source, AVERAGE / 2, AVERAGE, AVERAGE * 2);
    let mut next = || match chunks.next() {
        Some(Ok(chunk)) => Ok(Some(Bytes::from(chunk.data))),
        Some(Err(error)) => Err(CutError::Read(error.into())),
        None => Ok(None),
    };
    let mut emit = |digest, data: Bytes| match publish(digest, data) {
        true => Ok(()),
        false => Err(CutError::Stopped),
    };
    let Some(first) = next()? else {
        let digest = Digest::empty();
        let manifest = Manifest::whole(digest, 0);
        return Ok(Cut { digest, manifest });
    };
    let mut blob = blake3::Hasher::new();
    blob.update(&first);
    let mut next_chunk = next()?;
    if next_chunk.is_none() {
        let digest = Digest::from(blob.finalize());
        let manifest = Manifest::whole(digest, first.len() as u64);
        emit(digest, first)?;
        return Ok(Cut { digest, manifest });
    }
    let mut list = vec![(Digest::of(&first), first.len() as u64)];
    emit(list[0].0, first)?;
    while let Some(chunk) = next_chunk {
        blob.update(&chunk);
        let digest = Digest::of(&chunk);
        list.push((digest, chunk.len() as u64));
        emit(digest, chunk)?;
        next_chunk = next()?;
    }
    Ok(Cut {
        digest: blob.finalize().into(),
        manifest: Manifest::new(list).map_err(CutError::Manifest)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut_all(content: &[u8]) -> (Cut, Vec<u8>, Vec<usize>) {
        let (mut joined, mut sizes) = (Vec::new(), Vec::new());
        let cut = cut(content, |digest, bytes| {
            assert_eq!(Digest::of(&bytes), digest);
            joined.extend_from_slice(&bytes);
            sizes.push(bytes.len());
            true
        });
        (cut.ok().unwrap(), joined, sizes)
    }

    #[test]
    fn chunks_join_to_the_blob() {
        let mut random = 1_u32;
        let content: Vec<u8> = std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8
        })
        .take(3 << 20)
        .collect();
        for len in [0, 1, AVERAGE / 2, AVERAGE * 2 + 1, content.len()] {
            let (cut, joined, sizes) = cut_all(&content[..len]);
            assert_eq!(joined, &content[..len]);
            assert_eq!(cut.digest, Digest::of(&content[..len]));
            assert_eq!(cut.manifest.size(), len as u64);
            assert_eq!(cut.manifest.chunks().len(), sizes.len());
            let (last, full) = sizes.split_last().unwrap_or((&0, &[]));
            assert!(*last <= AVERAGE * 2);
            assert!(
                full.iter()
                    .all(|size| (AVERAGE / 2..=AVERAGE * 2).contains(size))
            );
        }
    }

    #[test]
    fn a_blob_that_is_one_chunk_has_its_digest() {
        let (cut, ..) = cut_all(b"Hello World");
        assert_eq!(cut.manifest, Manifest::whole(cut.digest, 11));
    }
}
