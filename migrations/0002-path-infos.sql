-- What store daemons said of Nix store paths, by output hash (20 raw bytes).
CREATE TABLE path_infos (
    hash BLOB PRIMARY KEY,
    -- The root's name, which is the store path's basename, and its node; as an encoded Node.
    node BLOB NOT NULL,
    -- Output hashes of the store paths that it refers to, one after the other.
    refs BLOB NOT NULL
) STRICT, WITHOUT ROWID;
