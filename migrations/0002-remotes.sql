-- What store daemons said of Nix store paths, by output hash (20 raw bytes).
CREATE TABLE path_infos (
    hash BLOB PRIMARY KEY,
    -- The root's name, which is the store path's basename, and its node; as an encoded Node.
    node BLOB NOT NULL,
    -- Output hashes of the store paths that it refers to, one after the other.
    refs BLOB NOT NULL
) STRICT, WITHOUT ROWID;

-- 1 when the blob's remote does not split it, and the chunks are parts that no remote knows.
ALTER TABLE blobs ADD COLUMN cut_here INTEGER NOT NULL DEFAULT 0;
