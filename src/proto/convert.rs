use bytes::Bytes;
use prost::Message;

use super::tvix::castore::v1 as wire;
use crate::model::{
    Digest, DigestError, Directory, Manifest, ManifestError, Name, NameError, Node, Target,
    TargetError,
};

/// Why bytes from outside are no node or manifest.
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

/// The message of a directory.
#[must_use]
pub fn directory_to_wire(directory: &Directory) -> wire::Directory {
    let mut message = wire::Directory::default();
    for entry in directory.entries() {
        let name = Bytes::copy_from_slice(entry.name);
        match node_to_wire(&entry.node.to_node(), name) {
            wire::node::Node::Directory(node) => message.directories.push(node),
            wire::node::Node::File(node) => message.files.push(node),
            wire::node::Node::Symlink(node) => message.symlinks.push(node),
        }
    }
    message
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
    use crate::model::{Entry, tests::any_node};

    /// What `prost` writes of a directory's message is its canonical encoding.
    #[test]
    fn a_directorys_message_encodes_as_the_directory() {
        let entry = |name: &'static str, node| Entry {
            name: Name::new(name).unwrap(),
            node,
        };
        let file = |executable| Node::File {
            digest: Digest::of(b"x"),
            size: 300,
            executable,
        };
        let directory = Directory::new(vec![
            entry("f", file(false)),
            entry("x", file(true)),
            entry(
                "l",
                Node::Symlink {
                    target: Target::new("f").unwrap(),
                },
            ),
            entry(
                "d",
                Node::Directory {
                    digest: Digest::empty(),
                    size: 0,
                },
            ),
        ])
        .unwrap();
        assert_eq!(
            directory_to_wire(&directory).encode_to_vec(),
            directory.encoded()
        );
        assert_eq!(
            decode_node(&Bytes::new()).unwrap_err(),
            DecodeError::EmptyNode
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
        fn nodes_read_back(node in any_node()) {
            let name = Name::new("name").unwrap();
            let bytes = encode_node(&name, &node);
            prop_assert_eq!(decode_node(&bytes.into()).unwrap(), (name, node));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let bytes = Bytes::from(bytes);
            let _ = decode_node(&bytes);
            let _ = decode_manifest(&bytes);
        }
    }
}
