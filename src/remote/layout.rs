//! The object store layout that tvix and snix write: keys, compression and framing. Sources: the object store
//! implementations of `tvix-castore` and `snix-castore`; root names are castore's own addition.

use std::io::{self, Read};

use bytes::Bytes;
use object_store::path::Path;

use crate::model::{Digest, Name, NameError};

/// zstd's own default.
const COMPRESSION_LEVEL: i32 = 3;
/// The largest encoded directory that is accepted, in bytes: about a million entries.
const MAX_DIRECTORY: u32 = 128 << 20;

pub(super) fn blob_key(blob: Digest) -> Path {
    key("blobs", blob)
}

pub(super) fn chunk_key(chunk: Digest) -> Path {
    key("chunks", chunk)
}

pub(super) fn closure_key(root: Digest) -> Path {
    key("dirs", root)
}

fn key(kind: &str, digest: Digest) -> Path {
    let hex = digest.to_hex();
    Path::from_iter([kind, "b3", &hex[..4], &hex])
}

pub(super) fn roots_prefix() -> Path {
    Path::from("roots")
}

/// `roots/<name>`. Bytes that a key cannot hold are written as `%` and two hexadecimal digits.
pub(super) fn root_key(name: &Name) -> Result<Path, object_store::path::Error> {
    let mut text = String::from("roots/");
    for part in name.as_bytes().utf8_chunks() {
        for char in part.valid().chars() {
            if char.is_control() || " \\{}^%`[]\"<>~#|?*:".contains(char) {
                escape(&mut text, char.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(char);
            }
        }
        escape(&mut text, part.invalid());
    }
    Path::parse(text)
}

fn escape(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push('%');
        text.push_str(&data_encoding::HEXUPPER.encode(&[*byte]));
    }
}

/// The name that a key of [`root_key`] stands for.
pub(super) fn root_name(file_name: &str) -> Result<Name, NameError> {
    let bytes = file_name.as_bytes();
    let mut name = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let escaped = (*byte == b'%')
            .then(|| bytes.get(at + 1..at + 3))
            .flatten()
            .and_then(|hex| data_encoding::HEXUPPER.decode(hex).ok());
        if let Some(escaped) = escaped {
            name.extend(escaped);
            at += 3;
        } else {
            name.push(*byte);
            at += 1;
        }
    }
    Name::new(name)
}

/// One zstd frame.
pub(super) fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    zstd::bulk::compress(bytes, COMPRESSION_LEVEL)
}

/// The content of a zstd frame that must be exactly `size` bytes long, or at the most where not `exact`.
pub(super) fn decompress(frame: &[u8], size: u64, exact: bool) -> io::Result<Vec<u8>> {
    let capacity = usize::try_from(size).map_err(io::Error::other)?;
    // The content is read in steps and the bound holds at each, so that a lying frame or a lying size costs no memory.
    let mut bytes = Vec::with_capacity(capacity.min(16 << 20));
    zstd::stream::read::Decoder::new(frame)?
        .take(size.saturating_add(1))
        .read_to_end(&mut bytes)?;
    match bytes.len().cmp(&capacity) {
        std::cmp::Ordering::Equal => Ok(bytes),
        std::cmp::Ordering::Less if !exact => Ok(bytes),
        std::cmp::Ordering::Less => Err(io::Error::other(format!(
            "it has {} bytes instead of {size}",
            bytes.len()
        ))),
        std::cmp::Ordering::Greater => Err(io::Error::other(format!(
            "it decompresses to more than the {size} bytes announced"
        ))),
    }
}

/// The zstd stream of a closure: each record a big-endian length and that many bytes.
pub(super) fn compress_closure(directories: &[Bytes]) -> io::Result<Vec<u8>> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), COMPRESSION_LEVEL)?;
    for directory in directories {
        let len = u32::try_from(directory.len()).map_err(io::Error::other)?;
        io::Write::write_all(&mut encoder, &len.to_be_bytes())?;
        io::Write::write_all(&mut encoder, directory)?;
    }
    encoder.finish()
}

/// Reads the records of [`compress_closure`] one by one.
pub(super) struct ClosureReader<R: io::BufRead> {
    decoder: zstd::stream::read::Decoder<'static, R>,
}

impl<'a> ClosureReader<&'a [u8]> {
    pub(super) fn new(stream: &'a [u8]) -> io::Result<Self> {
        let decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
        Ok(Self { decoder })
    }

    /// The next record, `None` after the last.
    pub(super) fn next(&mut self) -> io::Result<Option<Bytes>> {
        let mut len = [0; 4];
        let mut have = 0;
        while have < len.len() {
            match self.decoder.read(&mut len[have..])? {
                0 if have == 0 => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => have += read,
            }
        }
        let len = u32::from_be_bytes(len);
        if len > MAX_DIRECTORY {
            return Err(io::Error::other(format!(
                "a directory of {len} bytes; at most {MAX_DIRECTORY} are accepted"
            )));
        }
        let mut record = Vec::with_capacity(len.min(1 << 20) as usize);
        let mut taken = (&mut self.decoder).take(len.into());
        if taken.read_to_end(&mut record)? < len as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Some(record.into()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_published_example_key() {
        assert_eq!(
            blob_key(Digest::of(b"Hello World")).to_string(),
            "blobs/b3/41f8/41f8394111eb713a22165c46c90ab8f0fd9399c92028fd6d288944b23ff5bf76"
        );
    }

    #[test]
    fn decompression_is_bounded() {
        let frame = compress(&vec![0; 1 << 20]).unwrap();
        assert_eq!(decompress(&frame, 1 << 20, true).unwrap().len(), 1 << 20);
        let more = decompress(&frame, 1000, true).unwrap_err().to_string();
        assert!(more.contains("more than the 1000 bytes"), "{more}");
        let less = decompress(&frame, (1 << 20) + 1, true)
            .unwrap_err()
            .to_string();
        assert!(less.contains("instead of"), "{less}");
        assert!(decompress(&frame[..frame.len() - 1], 1 << 20, true).is_err());
        assert!(decompress(b"not zstd", 5, true).is_err());
        assert!(decompress(&frame, u64::MAX, true).is_err());
    }

    #[test]
    fn a_truncated_closure_is_an_error() {
        let stream = compress_closure(&[Bytes::from_static(b"one"), Bytes::new()]).unwrap();
        let mut reader = ClosureReader::new(&stream).unwrap();
        assert_eq!(reader.next().unwrap().unwrap(), "one");
        assert_eq!(reader.next().unwrap().unwrap(), "");
        assert_eq!(reader.next().unwrap(), None);
        let mut reader = ClosureReader::new(&stream[..stream.len() - 2]).unwrap();
        let failed = std::iter::from_fn(|| reader.next().transpose()).any(|record| record.is_err());
        assert!(failed);
        let lying = zstd::bulk::compress(&u32::MAX.to_be_bytes(), 1).unwrap();
        assert!(ClosureReader::new(&lying).unwrap().next().is_err());
    }

    proptest! {
        #[test]
        fn root_names_read_back(bytes in proptest::collection::vec(1..=255_u8, 1..60)) {
            if let Ok(name) = Name::new(bytes) {
                let key = root_key(&name).unwrap();
                prop_assert_eq!(root_name(key.filename().unwrap()).unwrap(), name);
            }
        }

        #[test]
        fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decompress(&bytes, 50, true);
            if let Ok(mut reader) = ClosureReader::new(&bytes) {
                while let Ok(Some(_)) = reader.next() {}
            }
        }
    }
}
