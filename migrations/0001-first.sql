-- Numbers are bytes unless said otherwise; digests are the 32 raw bytes.

-- Single values: the quota in force, and what else concerns the whole cache.
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value ANY
) STRICT, WITHOUT ROWID;

-- The data files. The number is the file's name and is never used again.
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    -- The blob whose natural offsets the file has; NULL for a segment.
    blob BLOB UNIQUE,
    -- Length, fixed when the file is made; the file is sparse.
    length INTEGER NOT NULL,
    -- Bytes written or reserved. In a segment, the next chunk goes here.
    bytes INTEGER NOT NULL,
    -- Last use, seconds since 1970.
    used_at INTEGER NOT NULL,
    -- The stamp (see src/cache/stamp.rs) under which every byte that `chunks` names is known to be right.
    stamp BLOB
) STRICT;

-- Where each chunk lies. A row is written after its bytes have been synced.
CREATE TABLE chunks (
    digest BLOB PRIMARY KEY,
    file INTEGER NOT NULL REFERENCES files (number) ON DELETE CASCADE,
    offset INTEGER NOT NULL,
    size INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX chunks_by_file ON chunks (file);

-- The chunk lists of blobs that have more than one chunk, as encoded StatBlobResponse.
CREATE TABLE blobs (
    digest BLOB PRIMARY KEY,
    manifest BLOB NOT NULL,
    -- 1 when the chunks, joined, were found to have the blob's digest.
    verified INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Directories in their canonical encoding.
CREATE TABLE directories (
    digest BLOB PRIMARY KEY,
    encoded BLOB NOT NULL
) STRICT;

-- What root names stood for when their remote was last asked; the names themselves live there.
CREATE TABLE names (
    remote TEXT NOT NULL,
    name BLOB NOT NULL,
    node BLOB NOT NULL,
    PRIMARY KEY (remote, name)
) STRICT, WITHOUT ROWID;

-- Sums over all processes that ever used this cache.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
