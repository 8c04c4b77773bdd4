use super::{
    Filesystem, FsError, Held, Miss, Outcome,
    inodes::InodeNode,
    root::{ROOT_ID, Root},
};
use crate::model::Digest;

const BLOB_DIGEST: &[u8] = b"user.tvix.castore.blob.digest";
const DIRECTORY_DIGEST: &[u8] = b"user.tvix.castore.directory.digest";
/// How much of a file is in the local cache, as `bytes/total`. Not listed.
pub const CACHED: &str = "user.castore.cached";
/// Number of a file's chunks. Not listed.
pub const CHUNKS: &str = "user.castore.chunks";

enum Subject {
    Directory(Digest),
    File { digest: Digest, size: u64 },
    None,
}

impl Filesystem {
    /// The value of an extended attribute. The caller compares it with the size of its buffer.
    pub fn getxattr(&self, id: u64, name: &[u8], held: &Held) -> Outcome<Vec<u8>> {
        if !self.options.xattr {
            return Outcome::Ready(Err(FsError::XattrOff));
        }
        let subject = match self.subject(id) {
            Ok(subject) => subject,
            Err(error) => return Outcome::Ready(Err(error)),
        };
        let text = |text: String| Outcome::Ready(Ok(text.into_bytes()));
        match subject {
            Subject::Directory(digest) if name == DIRECTORY_DIGEST => text(digest.to_string()),
            Subject::File { digest, .. } if name == BLOB_DIGEST => text(digest.to_string()),
            Subject::File { digest, size } if name == CACHED.as_bytes() => {
                match held.cached_bytes() {
                    Some(bytes) => text(format!("{bytes}/{size}")),
                    None => Outcome::Miss(Miss::CachedBytes { digest, size }),
                }
            }
            Subject::File { digest, size } if name == CHUNKS.as_bytes() => {
                let at_hand = || self.cache.blob_at_hand(digest, size);
                match held.blob().or_else(at_hand) {
                    Some(blob) => text(blob.manifest().chunks().len().to_string()),
                    None => Outcome::Miss(Miss::Blob {
                        inode: id,
                        digest,
                        size,
                    }),
                }
            }
            Subject::Directory(_) | Subject::File { .. } | Subject::None => {
                Outcome::Ready(Err(FsError::NoAttribute))
            }
        }
    }

    /// The names of an inode's attributes, each with a NUL byte after it.
    ///
    /// # Errors
    /// When attributes are off or the inode is unknown.
    pub fn listxattr(&self, id: u64) -> Result<Vec<u8>, FsError> {
        if !self.options.xattr {
            return Err(FsError::XattrOff);
        }
        let name = match self.subject(id)? {
            Subject::Directory(_) => DIRECTORY_DIGEST,
            Subject::File { .. } => BLOB_DIGEST,
            Subject::None => return Ok(Vec::new()),
        };
        Ok([name, &[0]].concat())
    }

    fn subject(&self, id: u64) -> Result<Subject, FsError> {
        if id == ROOT_ID && !matches!(*self.root(), Root::Directory { .. }) {
            return Ok(Subject::None);
        }
        Ok(match self.inodes.get(id)?.node {
            InodeNode::Directory { digest, .. } => Subject::Directory(digest),
            InodeNode::File { digest, size, .. } => Subject::File { digest, size },
            InodeNode::Symlink { .. } => Subject::None,
        })
    }
}
