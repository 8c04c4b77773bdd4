//! Rows of `blobs` and `directories`.

use rusqlite::{Connection, OptionalExtension, params};

use super::chunk;
use crate::{
    model::{Digest, Manifest},
    proto,
};

/// A blob's manifest, and whether the blob was verified as a whole.
pub(in crate::cache) fn manifest(
    connection: &Connection,
    blob: Digest,
) -> rusqlite::Result<Option<(Manifest, bool)>> {
    let row: Option<(Vec<u8>, bool)> = connection
        .prepare_cached("SELECT manifest, verified FROM blobs WHERE digest = ?")?
        .query_row([blob.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    // One that cannot be decoded is fetched again.
    Ok(row.and_then(|(bytes, verified)| {
        let manifest = proto::decode_manifest(&bytes).ok().flatten()?;
        Some((manifest, verified))
    }))
}

/// Notes what was found when a blob was verified as a whole: a manifest that lies is forgotten.
pub(in crate::cache) fn judge_manifest(
    connection: &Connection,
    blob: Digest,
    manifest: &Manifest,
    right: bool,
) -> rusqlite::Result<()> {
    let change = match right {
        true => "UPDATE blobs SET verified = 1 WHERE digest = ? AND manifest = ?",
        false => "DELETE FROM blobs WHERE digest = ? AND manifest = ?",
    };
    connection
        .prepare_cached(change)?
        .execute(params![blob.as_bytes(), proto::encode_manifest(manifest)])?;
    Ok(())
}

pub(in crate::cache) fn insert_manifest(
    connection: &Connection,
    blob: Digest,
    manifest: &Manifest,
    cut_here: bool,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR REPLACE INTO blobs (digest, manifest, cut_here) VALUES (?, ?, ?)",
        )?
        .execute(params![
            blob.as_bytes(),
            proto::encode_manifest(manifest),
            cut_here
        ])?;
    Ok(())
}

/// How others are to read a blob.
pub(in crate::cache) enum Told {
    Chunks(Manifest),
    AsOne,
}

/// What may be told of a blob or chunk that is known.
pub(in crate::cache) fn told_manifest(
    connection: &Connection,
    digest: Digest,
) -> rusqlite::Result<Option<Told>> {
    let cut_here = connection
        .prepare_cached("SELECT cut_here FROM blobs WHERE digest = ?")?
        .query_row([digest.as_bytes()], |row| row.get(0))
        .optional()?;
    Ok(match cut_here {
        Some(true) => Some(Told::AsOne),
        Some(false) => manifest(connection, digest)?.map(|(manifest, _)| Told::Chunks(manifest)),
        None => chunk(connection, digest)?.map(|_| Told::AsOne),
    })
}

/// The size in bytes of a blob or chunk that is known.
pub(in crate::cache) fn size_of(
    connection: &Connection,
    digest: Digest,
) -> rusqlite::Result<Option<u64>> {
    if let Some((_, size)) = chunk(connection, digest)? {
        return Ok(Some(size));
    }
    Ok(manifest(connection, digest)?.map(|(manifest, _)| manifest.size()))
}

/// A directory's encoding, not verified.
/// The encoding of a directory, if it has at most `longest` bytes.
pub(in crate::cache) fn directory(
    connection: &Connection,
    digest: Digest,
    longest: u64,
) -> rusqlite::Result<Option<Vec<u8>>> {
    // The length of a blob is read without the blob.
    connection
        .prepare_cached(
            "SELECT encoded FROM directories WHERE digest = ?1 AND length(encoded) <= ?2",
        )?
        .query_row(
            params![
                digest.as_bytes(),
                i64::try_from(longest).unwrap_or(i64::MAX)
            ],
            |row| row.get(0),
        )
        .optional()
}

pub(in crate::cache) fn insert_directory(
    connection: &Connection,
    digest: Digest,
    encoded: &[u8],
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT INTO directories (digest, encoded) VALUES (?, ?) \
             ON CONFLICT (digest) DO UPDATE SET encoded = excluded.encoded",
        )?
        .execute(params![digest.as_bytes(), encoded])?;
    Ok(())
}
