use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use super::{CacheError, Stats, Usage};
use crate::{
    model::{Digest, Manifest, Name, Node, OutputHash, StorePath},
    proto,
    remote::PathInfo,
};

/// Applied in order; the number of those applied is the schema version (`user_version`).
const MIGRATIONS: [&str; 3] = [
    include_str!("../../migrations/0001-first.sql"),
    include_str!("../../migrations/0002-remotes.sql"),
    include_str!("../../migrations/0003-profiles.sql"),
];
/// How long a process waits for another one's transaction.
const BUSY_TIMEOUT: Duration = Duration::from_secs(20);
/// Connections that are kept for the next reader.
const KEPT_READERS: usize = 8;

/// Where a chunk lies on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Location {
    /// The data file's number.
    pub(super) file: u64,
    /// Where in the file it begins, in bytes.
    pub(super) offset: u64,
}

/// A row of `files`.
#[derive(Debug, Clone)]
pub(super) struct FileRow {
    pub(super) number: u64,
    pub(super) length: u64,
    pub(super) bytes: u64,
    pub(super) stamp: Option<Vec<u8>>,
}

/// The cache's `SQLite` database.
#[derive(Debug)]
pub(super) struct Index {
    path: PathBuf,
    /// Idle connections. The lock is held to take or to return one only.
    readers: Mutex<Vec<Connection>>,
}

impl Index {
    /// Opens the index in `dir` and brings its schema up to date.
    pub(super) fn open(dir: &Path) -> Result<Self, CacheError> {
        let index = Self {
            path: dir.join("index.sqlite"),
            readers: Mutex::default(),
        };
        // Going over to a write-ahead log is the one step at which SQLite does not wait for another process.
        let lock = std::fs::File::open(dir).map_err(|error| CacheError::io(dir, error))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|error| CacheError::io(dir, error.into()))?;
        let mut connection = index.connect()?;
        index.migrate(&mut connection)?;
        drop(lock);
        index.keep(connection);
        Ok(index)
    }

    pub(super) fn connect(&self) -> Result<Connection, CacheError> {
        let open = || {
            let connection = Connection::open(&self.path)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
            connection.pragma_update(None, "journal_mode", "WAL")?;
            // Without a sync per commit, a crash of the machine may lose the last commits but never breaks the index.
            connection.pragma_update(None, "synchronous", "NORMAL")?;
            connection.pragma_update(None, "foreign_keys", "ON")?;
            connection.pragma_update(None, "journal_size_limit", 4 << 20)?;
            connection.set_prepared_statement_cache_capacity(64);
            Ok(connection)
        };
        open().map_err(|error| self.error(error))
    }

    fn migrate(&self, connection: &mut Connection) -> Result<(), CacheError> {
        let version = |connection: &Connection| {
            connection.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        };
        let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
        let found = version(connection).map_err(|error| self.error(error))?;
        if found > known {
            return Err(CacheError::NewerSchema {
                path: self.path.clone(),
                found,
                known,
            });
        }
        if found == known {
            return Ok(());
        }
        let mut apply = || {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            // Another process may have been first.
            let found = usize::try_from(version(&transaction)?).unwrap_or_default();
            for migration in MIGRATIONS.iter().skip(found) {
                transaction.execute_batch(migration)?;
            }
            transaction.pragma_update(None, "user_version", known)?;
            transaction.commit()
        };
        apply().map_err(|error| self.error(error))
    }

    /// Runs a query on a connection of its own. Blocks for as long as the disk does.
    pub(super) fn read<T>(
        &self,
        query: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CacheError> {
        let idle = self
            .readers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        let connection = match idle {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let result = query(&connection).map_err(|error| self.error(error));
        self.keep(connection);
        result
    }

    /// Runs `change` in a transaction that has the write lock from its start.
    pub(super) fn write<T>(
        &self,
        connection: &mut Connection,
        change: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, CacheError> {
        let run = || {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let result = change(&transaction)?;
            transaction.commit()?;
            Ok(result)
        };
        run().map_err(|error| self.error(error))
    }

    fn keep(&self, connection: Connection) {
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < KEPT_READERS {
            readers.push(connection);
        }
    }

    fn error(&self, cause: rusqlite::Error) -> CacheError {
        CacheError::Index {
            path: self.path.clone(),
            cause: Arc::new(cause),
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// `SQLite` has signed integers only; what does not fit is refused as if the disk were full.
pub(super) fn signed(number: u64) -> rusqlite::Result<i64> {
    i64::try_from(number).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))
}

fn unsigned(row: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    let number = row.get::<_, i64>(column)?;
    u64::try_from(number).map_err(|_| rusqlite::Error::IntegralValueOutOfRange(column, number))
}

/// Where a chunk lies, and its size.
pub(super) fn chunk(
    connection: &Connection,
    digest: Digest,
) -> rusqlite::Result<Option<(Location, u64)>> {
    connection
        .prepare_cached("SELECT file, offset, size FROM chunks WHERE digest = ?")?
        .query_row([digest.as_bytes()], |row| {
            let location = Location {
                file: unsigned(row, 0)?,
                offset: unsigned(row, 1)?,
            };
            Ok((location, unsigned(row, 2)?))
        })
        .optional()
}

pub(super) fn insert_chunk(
    connection: &Connection,
    digest: Digest,
    location: Location,
    size: u64,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO chunks (digest, file, offset, size) VALUES (?, ?, ?, ?)",
        )?
        .execute(params![
            digest.as_bytes(),
            signed(location.file)?,
            signed(location.offset)?,
            signed(size)?
        ])?;
    Ok(())
}

/// Forgets a chunk that was found damaged, unless it has moved since.
pub(super) fn delete_chunk(
    connection: &Connection,
    digest: Digest,
    location: Location,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM chunks WHERE digest = ? AND file = ? AND offset = ?")?
        .execute(params![
            digest.as_bytes(),
            signed(location.file)?,
            signed(location.offset)?
        ])?;
    Ok(())
}

pub(super) fn file(connection: &Connection, number: u64) -> rusqlite::Result<Option<FileRow>> {
    connection
        .prepare_cached("SELECT number, length, bytes, stamp FROM files WHERE number = ?")?
        .query_row([signed(number)?], file_row)
        .optional()
}

/// The file that has a blob's natural offsets.
pub(super) fn blob_file(
    connection: &Connection,
    blob: Digest,
) -> rusqlite::Result<Option<FileRow>> {
    connection
        .prepare_cached("SELECT number, length, bytes, stamp FROM files WHERE blob = ?")?
        .query_row([blob.as_bytes()], file_row)
        .optional()
}

/// Segments that have at least `room` bytes left, the fullest first.
pub(super) fn open_segments(connection: &Connection, room: u64) -> rusqlite::Result<Vec<FileRow>> {
    connection
        .prepare_cached(
            "SELECT number, length, bytes, stamp FROM files \
             WHERE blob IS NULL AND length - bytes >= ? ORDER BY bytes DESC LIMIT 8",
        )?
        .query_map([signed(room)?], file_row)?
        .collect()
}

fn file_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<FileRow> {
    Ok(FileRow {
        number: unsigned(row, 0)?,
        length: unsigned(row, 1)?,
        bytes: unsigned(row, 2)?,
        stamp: row.get(3)?,
    })
}

/// Offset and size of each committed chunk in a file.
pub(super) fn chunks_in(connection: &Connection, number: u64) -> rusqlite::Result<Vec<(u64, u64)>> {
    connection
        .prepare_cached("SELECT offset, size FROM chunks WHERE file = ?")?
        .query_map([signed(number)?], |row| {
            Ok((unsigned(row, 0)?, unsigned(row, 1)?))
        })?
        .collect()
}

/// Whether a committed chunk lies in a range of a file.
pub(super) fn is_taken(
    connection: &Connection,
    number: u64,
    offset: u64,
    size: u64,
) -> rusqlite::Result<bool> {
    connection
        .prepare_cached(
            "SELECT 1 FROM chunks WHERE file = ?1 AND offset < ?2 + ?3 AND offset + size > ?2",
        )?
        .exists(params![signed(number)?, signed(offset)?, signed(size)?])
}

/// Takes care that nothing is written to a file any more: what takes the place of a damaged chunk goes elsewhere.
pub(super) fn retire(connection: &Connection, number: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached(
            "UPDATE files SET blob = NULL, bytes = max(bytes, length), stamp = NULL WHERE number = ?",
        )?
        .execute([signed(number)?])?;
    Ok(())
}

/// A blob's manifest, and whether the blob was verified as a whole.
pub(super) fn manifest(
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
pub(super) fn judge_manifest(
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

pub(super) fn insert_manifest(
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
pub(super) enum Told {
    Chunks(Manifest),
    AsOne,
}

/// What may be told of a blob or chunk that is known.
pub(super) fn told_manifest(
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
pub(super) fn size_of(connection: &Connection, digest: Digest) -> rusqlite::Result<Option<u64>> {
    if let Some((_, size)) = chunk(connection, digest)? {
        return Ok(Some(size));
    }
    Ok(manifest(connection, digest)?.map(|(manifest, _)| manifest.size()))
}

/// A directory's encoding, not verified.
/// The encoding of a directory, if it has at most `longest` bytes.
pub(super) fn directory(
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

pub(super) fn insert_directory(
    connection: &Connection,
    digest: Digest,
    encoded: &[u8],
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO directories (digest, encoded) VALUES (?, ?)")?
        .execute(params![digest.as_bytes(), encoded])?;
    Ok(())
}

/// What a name stood for at a remote, or where `anywhere`, at another one.
pub(super) fn name(
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
pub(super) fn names(
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
pub(super) fn path_infos(connection: &Connection) -> rusqlite::Result<Vec<PathInfo>> {
    connection
        .prepare_cached("SELECT node, refs FROM path_infos")?
        .query_map([], path_info_row)?
        .filter_map(Result::transpose)
        .collect()
}

pub(super) fn path_info(
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

pub(super) fn insert_path_info(connection: &Connection, info: &PathInfo) -> rusqlite::Result<()> {
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

pub(super) fn insert_name(
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

pub(super) fn delete_name(
    connection: &Connection,
    remote: &str,
    name: &Name,
) -> rusqlite::Result<()> {
    connection
        .prepare_cached("DELETE FROM names WHERE remote = ? AND name = ?")?
        .execute(params![remote, &name.as_bytes()[..]])?;
    Ok(())
}

pub(super) fn meta(connection: &Connection, key: &str) -> rusqlite::Result<Option<u64>> {
    connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?")?
        .query_row([key], |row| unsigned(row, 0))
        .optional()
}

pub(super) fn set_meta(connection: &Connection, key: &str, value: u64) -> rusqlite::Result<()> {
    connection
        .prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)")?
        .execute(params![key, signed(value)?])?;
    Ok(())
}

/// Bytes of all data files, written or reserved; for each, a block of the filesystem that may be filled in part.
pub(super) fn data_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    connection
        .prepare_cached("SELECT coalesce(sum(bytes + 4096), 0) FROM files")?
        .query_row([], |row| unsigned(row, 0))
}

/// As [`data_bytes`], of files that were last used before a time.
pub(super) fn data_bytes_before(connection: &Connection, used_at: u64) -> rusqlite::Result<u64> {
    let used_at = i64::try_from(used_at).unwrap_or(i64::MAX);
    connection
        .prepare_cached("SELECT coalesce(sum(bytes + 4096), 0) FROM files WHERE used_at < ?")?
        .query_row([used_at], |row| unsigned(row, 0))
}

/// Adds what was counted since `last`, which is brought up to date.
pub(super) fn add_counters(
    connection: &Connection,
    stats: &Stats,
    last: &mut [u64],
) -> rusqlite::Result<()> {
    for ((name, value), last) in stats.iter().zip(last) {
        let new = value.saturating_sub(*last);
        if new > 0 {
            connection
                .prepare_cached(
                    "INSERT INTO counters (name, value) VALUES (?, ?) \
                     ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                )?
                .execute(params![name, signed(new)?])?;
            *last = value;
        }
    }
    Ok(())
}

/// Sums over all processes that ever used the cache.
pub(super) fn counters(connection: &Connection) -> rusqlite::Result<Vec<(String, u64)>> {
    connection
        .prepare_cached("SELECT name, value FROM counters ORDER BY name")?
        .query_map([], |row| Ok((row.get(0)?, unsigned(row, 1)?)))?
        .collect()
}

/// Bytes of the database's pages that hold something.
pub(super) fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let get = |pragma| connection.pragma_query_value(None, pragma, |row| unsigned(row, 0));
    let pages = get("page_count")?.saturating_sub(get("freelist_count")?);
    Ok(pages.saturating_mul(get("page_size")?))
}

/// Gives free pages back to the filesystem, some at a time.
pub(super) fn vacuum(connection: &Connection) -> rusqlite::Result<()> {
    // Each step of the statement frees one page.
    let mut statement = connection.prepare("PRAGMA incremental_vacuum(4096)")?;
    let mut steps = statement.query([])?;
    while steps.next()?.is_some() {}
    Ok(())
}

/// What the index itself knows of [`Usage`].
pub(super) fn usage(connection: &Connection) -> rusqlite::Result<Usage> {
    let count = |table: &str| {
        connection.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| {
            unsigned(row, 0)
        })
    };
    Ok(Usage {
        data_bytes: data_bytes(connection)?,
        files: count("files")?,
        chunks: count("chunks")?,
        directories: count("directories")?,
        ..Usage::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_schema_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        index
            .read(|connection| connection.pragma_update(None, "user_version", 99))
            .unwrap();
        drop(index);
        let error = Index::open(dir.path()).unwrap_err();
        assert!(matches!(error, CacheError::NewerSchema { found: 99, .. }));
        assert!(error.to_string().contains("upgrade castore"));
    }

    #[test]
    fn what_is_no_database_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("index.sqlite"), vec![b'x'; 8192]).unwrap();
        assert!(matches!(
            Index::open(dir.path()),
            Err(CacheError::Index { .. })
        ));
    }

    #[test]
    fn rows_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(dir.path()).unwrap();
        let mut writer = index.connect().unwrap();
        let blob = Digest::of(b"blob");
        let manifest = Manifest::new([(Digest::of(b"a"), 1), (Digest::of(b"b"), 2)]).unwrap();
        let name_a = Name::new(vec![0xff, b'a']).unwrap();
        let node = Node::File {
            digest: blob,
            size: 3,
            executable: true,
        };
        index
            .write(&mut writer, |connection| {
                insert_manifest(connection, blob, &manifest, false)?;
                insert_name(connection, "here", &name_a, &node)?;
                set_meta(connection, "quota", 5)
            })
            .unwrap();
        let got = index.read(|connection| super::manifest(connection, blob));
        assert_eq!(got.unwrap(), Some((manifest.clone(), false)));
        for right in [true, false] {
            index
                .write(&mut writer, |c| judge_manifest(c, blob, &manifest, right))
                .unwrap();
            let got = index.read(|connection| super::manifest(connection, blob));
            assert_eq!(got.unwrap(), right.then(|| (manifest.clone(), true)));
        }
        let names_at = |remote: &str| {
            index
                .read(|connection| names(connection, remote, false))
                .unwrap()
        };
        assert_eq!(names_at("here"), [(name_a, node)]);
        assert_eq!(names_at("elsewhere"), []);
        let quota = index.read(|connection| meta(connection, "quota"));
        assert_eq!(quota.unwrap(), Some(5));
    }
}
