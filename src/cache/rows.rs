use std::sync::Arc;

use bytes::Bytes;
use rusqlite::Connection;

use super::{
    Blob,
    index::{self, Location},
    profiles::{self, NewProfile},
};
use crate::{
    model::{Digest, Manifest, Name, Node},
    remote::PathInfo,
};

/// A change of the index that goes with no data file.
pub(super) enum Row {
    Directories(Vec<(Digest, Bytes)>),
    Manifest(Digest, Manifest, bool),
    Judged(Arc<Blob>, bool),
    Name(Arc<str>, Name, Node),
    ForgetName(Arc<str>, Name),
    Damaged(Digest, Location),
    PathInfo(PathInfo),
    Profile(NewProfile),
}

impl Row {
    pub(super) fn write(&self, connection: &Connection) -> rusqlite::Result<()> {
        match self {
            Self::Directories(directories) => directories.iter().try_for_each(|(digest, bytes)| {
                index::insert_directory(connection, *digest, bytes)
            }),
            Self::Manifest(blob, manifest, cut_here) => {
                index::insert_manifest(connection, *blob, manifest, *cut_here)
            }
            Self::Judged(blob, right) => {
                index::judge_manifest(connection, blob.digest(), blob.manifest(), *right)
            }
            Self::Name(remote, name, node) => index::insert_name(connection, remote, name, node),
            Self::ForgetName(remote, name) => index::delete_name(connection, remote, name),
            Self::PathInfo(info) => index::insert_path_info(connection, info),
            Self::Profile(profile) => profiles::insert(connection, profile),
            Self::Damaged(digest, location) => {
                index::delete_chunk(connection, *digest, *location)?;
                index::retire(connection, location.file)
            }
        }
    }
}
