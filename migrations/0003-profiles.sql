-- What mounts have read, in order (src/prefetch/profile.rs); the latest for each tree.
CREATE TABLE profiles (
    -- The root's digest as text, or `all` or `nix` for a mount of that.
    tree TEXT PRIMARY KEY,
    -- The name it was mounted by, if it was by one: another tree under that name takes this profile at first.
    name TEXT,
    -- Seconds since 1970.
    recorded_at INTEGER NOT NULL,
    -- As text, compressed with zstd.
    profile BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX profiles_by_name ON profiles (name, recorded_at);
