use bytes::Bytes;
use prost::Message;

use super::tvix::castore::v1 as wire;
use crate::model::{
    Digest, DigestError, Directory, DirectoryError, Entry, Manifest, ManifestError, Name,
    NameError, Node, Target, TargetError,
};

/// Why bytes from outside are no directory, node or manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("not a protobuf message of this type: {0}")]
    Protobuf(prost::DecodeError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("the entry {name:?} has {cause}")]
    Target { name: Name, cause: TargetError },
    #[error("the entry {name:?} has a bad digest: {cause}")]
    Digest { name: Name, cause: DigestError },
    #[error("the {list} are not sorted: {name:?} comes too late")]
    Unsorted { list: &'static str, name: Name },
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(
        "the encoding is not canonical: it has fields that are unknown, repeated or out of order"
    )]
    NotCanonical,
    #[error("a node that is neither a directory, a file nor a symlink")]
    EmptyNode,
    #[error("chunk {index} has a bad digest: {cause}")]
    ChunkDigest { index: usize, cause: DigestError },
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl From<prost::DecodeError> for DecodeError {
    fn from(cause: prost::DecodeError) -> Self {
        Self::Protobuf(cause)
    }
}

/// The canonical encoding of a directory; its digest names the directory.
#[must_use]
pub fn encode_directory(directory: &Directory) -> Vec<u8> {
    directory_to_wire(directory).encode_to_vec()
}

/// The message of a directory.
#[must_use]
pub fn directory_to_wire(directory: &Directory) -> wire::Directory {
    let mut message = wire::Directory::default();
    for entry in directory.entries() {
        let name = entry.name.as_bytes().clone();
        match node_to_wire(&entry.node, name) {
            wire::node::Node::Directory(node) => message.directories.push(node),
            wire::node::Node::File(node) => message.files.push(node),
            wire::node::Node::Symlink(node) => message.symlinks.push(node),
        }
    }
    message
}

/// # Errors
/// Whatever the model does not allow, and any encoding but the canonical one (it would have another digest once it is
/// written again).
pub fn decode_directory(bytes: &Bytes) -> Result<Directory, DecodeError> {
    let message = wire::Directory::decode(bytes.clone())?;
    if message.encoded_len() != bytes.len() || message.encode_to_vec() != bytes[..] {
        return Err(DecodeError::NotCanonical);
    }
    let mut entries = Vec::with_capacity(
        message.directories.len() + message.files.len() + message.symlinks.len(),
    );
    let nodes = message
        .directories
        .into_iter()
        .map(|node| ("directories", wire::node::Node::Directory(node)))
        .chain(
            message
                .files
                .into_iter()
                .map(|node| ("files", wire::node::Node::File(node))),
        )
        .chain(
            message
                .symlinks
                .into_iter()
                .map(|node| ("symlinks", wire::node::Node::Symlink(node))),
        );
    let mut last: Option<(&str, Name)> = None;
    for (list, node) in nodes {
        let (name, node) = node_from_wire(node)?;
        if let Some((last_list, last_name)) = &last
            && *last_list == list
            && *last_name > name
        {
            return Err(DecodeError::Unsorted { list, name });
        }
        last = Some((list, name.clone()));
        entries.push(Entry { name, node });
    }
    Ok(Directory::new(entries)?)
}

/// A root's name and node, as `roots/<name>` stores them.
#[must_use]
pub fn encode_node(name: &Name, node: &Node) -> Vec<u8> {
    node_message(name, node).encode_to_vec()
}

/// # Errors
/// When the bytes are no `Node` message, or the name or the node in it is not valid.
pub fn decode_node(bytes: &Bytes) -> Result<(Name, Node), DecodeError> {
    node_of(wire::Node::decode(bytes.clone())?)
}

/// The name and the node of a message.
///
/// # Errors
/// When the name or the node in it is not valid.
pub fn node_of(message: wire::Node) -> Result<(Name, Node), DecodeError> {
    node_from_wire(message.node.ok_or(DecodeError::EmptyNode)?)
}

/// The message of a root's name and node.
#[must_use]
pub fn node_message(name: &Name, node: &Node) -> wire::Node {
    wire::Node {
        node: Some(node_to_wire(node, name.as_bytes().clone())),
    }
}

/// The message of a directory that is encoded.
///
/// # Errors
/// When the bytes are no such message.
pub fn directory_message(bytes: Bytes) -> Result<wire::Directory, DecodeError> {
    Ok(wire::Directory::decode(bytes)?)
}

/// The `StatBlobResponse` that describes a blob; one chunk is written as none.
#[must_use]
pub fn encode_manifest(manifest: &Manifest) -> Vec<u8> {
    manifest_message(manifest).encode_to_vec()
}

/// The manifest in an encoded `StatBlobResponse`, `None` when the blob is not split.
///
/// # Errors
/// When the bytes are no such message or the chunk list is not valid.
pub fn decode_manifest(bytes: &[u8]) -> Result<Option<Manifest>, DecodeError> {
    manifest_of(&wire::StatBlobResponse::decode(bytes)?)
}

/// The message that lists a blob's chunks; one chunk is written as none.
#[must_use]
pub fn manifest_message(manifest: &Manifest) -> wire::StatBlobResponse {
    let chunks = match manifest.chunks() {
        [_] => &[][..],
        chunks => chunks,
    };
    let chunks = chunks
        .iter()
        .map(|chunk| wire::stat_blob_response::ChunkMeta {
            digest: Bytes::copy_from_slice(chunk.digest.as_bytes()),
            size: chunk.size,
        })
        .collect();
    wire::StatBlobResponse {
        chunks,
        bao: Bytes::new(),
    }
}

/// The manifest in a message, `None` when the blob is not split.
///
/// # Errors
/// When the chunk list is not valid.
pub fn manifest_of(message: &wire::StatBlobResponse) -> Result<Option<Manifest>, DecodeError> {
    let chunks = message
        .chunks
        .iter()
        .enumerate()
        .map(|(index, chunk)| {
            Digest::try_from(&chunk.digest[..])
                .map(|digest| (digest, chunk.size))
                .map_err(|cause| DecodeError::ChunkDigest { index, cause })
        })
        .collect::<Result<Vec<_>, _>>()?;
    if chunks.is_empty() {
        return Ok(None);
    }
    Ok(Some(Manifest::new(chunks)?))
}

fn node_to_wire(node: &Node, name: Bytes) -> wire::node::Node {
    let bytes = |digest: &Digest| Bytes::copy_from_slice(digest.as_bytes());
    match node {
        Node::Directory { digest, size } => wire::node::Node::Directory(wire::DirectoryNode {
            name,
            digest: bytes(digest),
            size: *size,
        }),
        Node::File {
            digest,
            size,
            executable,
        } => wire::node::Node::File(wire::FileNode {
            name,
            digest: bytes(digest),
            size: *size,
            executable: *executable,
        }),
        Node::Symlink { target } => wire::node::Node::Symlink(wire::SymlinkNode {
            name,
            target: target.as_bytes().clone(),
        }),
    }
}

fn node_from_wire(node: wire::node::Node) -> Result<(Name, Node), DecodeError> {
    let digest = |name: &Name, bytes: &Bytes| {
        Digest::try_from(&bytes[..]).map_err(|cause| DecodeError::Digest {
            name: name.clone(),
            cause,
        })
    };
    match node {
        wire::node::Node::Directory(node) => {
            let name = Name::new(node.name)?;
            let digest = digest(&name, &node.digest)?;
            let size = node.size;
            Ok((name, Node::Directory { digest, size }))
        }
        wire::node::Node::File(node) => {
            let name = Name::new(node.name)?;
            let digest = digest(&name, &node.digest)?;
            let node = Node::File {
                digest,
                size: node.size,
                executable: node.executable,
            };
            Ok((name, node))
        }
        wire::node::Node::Symlink(node) => {
            let name = Name::new(node.name)?;
            match Target::new(node.target) {
                Ok(target) => Ok((name, Node::Symlink { target })),
                Err(cause) => Err(DecodeError::Target { name, cause }),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(name: &'static str, content: &[u8]) -> wire::FileNode {
        wire::FileNode {
            name: name.into(),
            digest: Bytes::copy_from_slice(Digest::of(content).as_bytes()),
            size: content.len() as u64,
            executable: false,
        }
    }

    fn symlink(name: &'static str, target: &'static str) -> wire::SymlinkNode {
        wire::SymlinkNode {
            name: name.into(),
            target: target.into(),
        }
    }

    fn decode(message: &wire::Directory) -> Result<Directory, DecodeError> {
        decode_directory(&message.encode_to_vec().into())
    }

    fn any_node() -> impl Strategy<Value = Node> {
        prop_oneof![
            (any::<[u8; 32]>(), 0..1_u64 << 40).prop_map(|(digest, size)| Node::Directory {
                digest: Digest::of(&digest),
                size,
            }),
            (any::<[u8; 32]>(), any::<u64>(), any::<bool>()).prop_map(
                |(digest, size, executable)| Node::File {
                    digest: Digest::of(&digest),
                    size,
                    executable,
                }
            ),
            proptest::collection::vec(1..=255_u8, 1..100).prop_map(|target| Node::Symlink {
                target: Target::new(target).unwrap(),
            }),
        ]
    }

    fn any_directory() -> impl Strategy<Value = Directory> {
        let name = proptest::collection::vec(1..=255_u8, 1..12)
            .prop_filter_map("not a name", |bytes| Name::new(bytes).ok());
        proptest::collection::btree_map(name, any_node(), 0..20).prop_map(|entries| {
            let entries = entries
                .into_iter()
                .map(|(name, node)| Entry { name, node })
                .collect();
            Directory::new(entries).unwrap()
        })
    }

    /// The bytes are written out by hand from the field numbers; the digests are what `b3sum` prints for them.
    #[test]
    fn golden_directory() {
        // A file "a" of one byte "x", and a symlink "l" to "a".
        let x = Digest::of(b"x");
        let mut bytes = vec![0x12, 39, 0x0a, 1, b'a', 0x12, 32];
        bytes.extend_from_slice(x.as_bytes());
        bytes.extend_from_slice(&[0x18, 1]);
        bytes.extend_from_slice(&[0x1a, 6, 0x0a, 1, b'l', 0x12, 1, b'a']);
        let directory = decode_directory(&bytes.clone().into()).unwrap();
        assert_eq!(directory.entries().len(), 2);
        assert_eq!(encode_directory(&directory), bytes);
        assert_eq!(encode_directory(&Directory::default()), b"");
        assert_eq!(
            x.to_hex(),
            "3ae7d805f6789a6402acb70ad4096a85a56bf6804eaf25c0493ac697548d30b5"
        );
        assert_eq!(
            Digest::of(&bytes).to_hex(),
            "c2b95e6129f4e7ebb8b9a37ee818788ef2398acf68d77acc4f9238a0c017ccd5"
        );
    }

    #[test]
    fn every_rejection() {
        let unsorted = wire::Directory {
            files: vec![file("b", b""), file("a", b"")],
            ..Default::default()
        };
        assert!(matches!(
            decode(&unsorted),
            Err(DecodeError::Unsorted { list: "files", .. })
        ));
        let duplicate = wire::Directory {
            files: vec![file("a", b"")],
            symlinks: vec![symlink("a", "b")],
            ..Default::default()
        };
        assert!(matches!(
            decode(&duplicate),
            Err(DecodeError::Directory(DirectoryError::Duplicate(_)))
        ));
        let twice = wire::Directory {
            files: vec![file("a", b""), file("a", b"")],
            ..Default::default()
        };
        assert!(matches!(
            decode(&twice),
            Err(DecodeError::Directory(DirectoryError::Duplicate(_)))
        ));
        for name in ["", ".", "..", "a/b", "a\0b"] {
            let named = wire::Directory {
                files: vec![file(name, b"")],
                ..Default::default()
            };
            assert!(
                matches!(decode(&named), Err(DecodeError::Name(_))),
                "{name:?}"
            );
        }
        for target in ["", "a\0b"] {
            let bad = wire::Directory {
                symlinks: vec![symlink("l", target)],
                ..Default::default()
            };
            let error = decode(&bad).unwrap_err();
            assert!(error.to_string().contains("\"l\""), "{error}");
        }
        let mut short = file("short", b"");
        short.digest.truncate(31);
        let bad = wire::Directory {
            files: vec![short],
            ..Default::default()
        };
        assert!(decode(&bad).unwrap_err().to_string().contains("\"short\""));
        let over = wire::Directory {
            directories: ["a", "b"]
                .map(|name| wire::DirectoryNode {
                    name: name.into(),
                    digest: file("", b"").digest,
                    size: u64::MAX / 2 + 1,
                })
                .to_vec(),
            ..Default::default()
        };
        assert!(matches!(
            decode(&over),
            Err(DecodeError::Directory(DirectoryError::SizeOverflow(_)))
        ));
        assert_eq!(
            decode_node(&Bytes::new()).unwrap_err(),
            DecodeError::EmptyNode
        );
    }

    #[test]
    fn what_is_not_canonical_is_refused() {
        let mut bytes = wire::Directory {
            symlinks: vec![symlink("l", "a")],
            ..Default::default()
        }
        .encode_to_vec();
        // An unknown field, number 4.
        bytes.extend_from_slice(&[0x20, 1]);
        assert_eq!(
            decode_directory(&bytes.into()).unwrap_err(),
            DecodeError::NotCanonical
        );
        // A default value that is written out: executable = false.
        let bytes = vec![0x12, 5, 0x0a, 1, b'a', 0x20, 0];
        assert_eq!(
            decode_directory(&bytes.into()).unwrap_err(),
            DecodeError::NotCanonical
        );
    }

    #[test]
    fn manifests_read_back() {
        let one = Manifest::whole(Digest::of(b"x"), 1);
        assert_eq!(encode_manifest(&one), b"");
        assert_eq!(decode_manifest(b""), Ok(None));
        let two = Manifest::new([(Digest::of(b"x"), 1), (Digest::of(b"y"), 2)]).unwrap();
        assert_eq!(decode_manifest(&encode_manifest(&two)), Ok(Some(two)));
        assert!(decode_manifest(&[0x12, 4, 0x0a, 2, 1, 2]).is_err());
    }

    proptest! {
        #[test]
        fn directories_read_back(directory in any_directory()) {
            let bytes = encode_directory(&directory);
            prop_assert_eq!(decode_directory(&bytes.into()).unwrap(), directory);
        }

        #[test]
        fn nodes_read_back(node in any_node()) {
            let name = Name::new("name").unwrap();
            let bytes = encode_node(&name, &node);
            prop_assert_eq!(decode_node(&bytes.into()).unwrap(), (name, node));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            if let Ok(directory) = decode_directory(&bytes) {
                prop_assert_eq!(&encode_directory(&directory)[..], &bytes[..]);
            }
            let _ = decode_node(&bytes);
            let _ = decode_manifest(&bytes);
        }
    }
}
