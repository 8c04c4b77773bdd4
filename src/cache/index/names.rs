//! Rows of `names` and `path_infos`: what changes.

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};

use crate::{
    model::{Name, Node, OutputHash, StorePath},
    proto,
    remote::PathInfo,
};

/// What a name stood for at a remote, or where `anywhere`, at another one.
pub(in crate::cache) fn name(
    connection: &Connection,
    remote: &str,
    name: &Name,
    anywhere: bool,
) -> rusqlite::Result<Option<Node>> {
    let bytes: Option<Vec<u8>> = connection
        .prepare_cached(
            "SELECT node FROM names WHERE name = ?2 AND (remote = ?1 OR ?3) \
             ORDER BY remote = ?1 DESC LIMIT 1",
        )?
        .query_row(params![remote, &name.as_bytes()[..], anywhere], |row| {
            row.get(0)
        })
        .optional()?;
    Ok(bytes.and_then(node_from).map(|(_, node)| node))
}

/// As [`name`], of all names.
pub(in crate::cache) fn names(
    connection: &Connection,
    remote: &str,
    anywhere: bool,
) -> rusqlite::Result<Vec<(Name, Node)>> {
    connection
        .prepare_cached(
            "SELECT node, MAX(remote = ?1) FROM names WHERE remote = ?1 OR ?2 GROUP BY name ORDER BY name",
        )?
        .query_map(params![remote, anywhere], |row| row.get(0))?
        .filter_map(|bytes| bytes.map(node_from).transpose())
        .collect()
}

/// Sorted by output hash.
pub(in crate::cache) fn path_infos(connection: &Connection) -> rusqlite::Result<Vec<PathInfo>> {
    connection
        .prepare_cached("SELECT node, refs FROM path_infos")?
        .query_map([], path_info_row)?
        .filter_map(Result::transpose)
        .collect()
}

pub(in crate::cache) fn path_info(
    connection: &Connection,
    hash: OutputHash,
) -> rusqlite::Result<Option<PathInfo>> {
    connection
        .prepare_cached("SELECT node, refs FROM path_infos WHERE hash = ?")?
        .query_row([&hash.as_bytes()[..]], path_info_row)
        .optional()
        .map(Option::flatten)
}

/// `None` when the row cannot be understood; it is asked for again.
fn path_info_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Option<PathInfo>> {
    let (node, refs): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
    Ok(node_from(node).and_then(|(name, node)| {
        let references = refs.chunks(OutputHash::LEN).map(OutputHash::try_from);
        Some(PathInfo {
            path: StorePath::from_basename(name).ok()?,
            node,
            references: references.collect::<Result<_, _>>().ok()?,
        })
    }))
}

pub(in crate::cache) fn insert_path_info(
    connection: &Connection,
    info: &PathInfo,
) -> rusqlite::Result<()> {
    let references = info.references.iter().flat_map(|hash| *hash.as_bytes());
    let references: Vec<u8> = references.collect();
    connection
        .prepare_cached("INSERT OR REPLACE INTO path_infos (hash, node, refs) VALUES (?, ?, ?)")?
        .execute(params![
            &info.path.hash().as_bytes()[..],
            proto::encode_node(info.path.basename(), &info.node),
            references
        ])?;
    Ok(())
}

fn node_from(bytes: Vec<u8>) -> Option<(Name, Node)> {
    proto::decode_node(&Bytes::from(bytes)).ok()
}

pub(in crate::cache) fn insert_name(
    connection: &Connection,
    remote: &str,
    name: &Name,
    node: &Node,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO names (remote, name, node) VALUES (?, ?, ?)")?
        .execute(params![
            remote,
            &name.as_bytes()[..],
            proto::encode_node(name, node)
        ])?;
    Ok(())
}

pub(in crate::cache) fn delete_name(
    connection: &Connection,
    remote: &str,
    name: &Name,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM names WHERE remote = ? AND name = ?")?
        .execute(params![remote, &name.as_bytes()[..]])?;
    Ok(())
}
