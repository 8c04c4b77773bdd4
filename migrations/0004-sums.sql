-- Whether a range of a file is taken is one step in this index, however many chunks the file has.
DROP INDEX chunks_by_file;
CREATE INDEX chunks_by_place ON chunks (file, offset, size);

-- The order in which files are evicted.
CREATE INDEX files_by_use ON files (used_at);

-- Sums over tables, kept by the triggers below: they are asked for at each reservation.
CREATE TABLE sums (
    -- `data_bytes`: those of all data files, and for each a block of the filesystem that may be filled in part.
    -- `chunks`, `files`, `directories`: rows.
    key TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO sums
    SELECT 'data_bytes', coalesce(sum(bytes + 4096), 0) FROM files
    UNION ALL SELECT 'files', count(*) FROM files
    UNION ALL SELECT 'chunks', count(*) FROM chunks
    UNION ALL SELECT 'directories', count(*) FROM directories;

CREATE TRIGGER file_inserted AFTER INSERT ON files BEGIN
    UPDATE sums SET value = value + new.bytes + 4096 WHERE key = 'data_bytes';
    UPDATE sums SET value = value + 1 WHERE key = 'files';
END;
CREATE TRIGGER file_grown AFTER UPDATE OF bytes ON files BEGIN
    UPDATE sums SET value = value + new.bytes - old.bytes WHERE key = 'data_bytes';
END;
CREATE TRIGGER file_deleted AFTER DELETE ON files BEGIN
    UPDATE sums SET value = value - old.bytes - 4096 WHERE key = 'data_bytes';
    UPDATE sums SET value = value - 1 WHERE key = 'files';
END;
CREATE TRIGGER chunk_inserted AFTER INSERT ON chunks BEGIN
    UPDATE sums SET value = value + 1 WHERE key = 'chunks';
END;
CREATE TRIGGER chunk_deleted AFTER DELETE ON chunks BEGIN
    UPDATE sums SET value = value - 1 WHERE key = 'chunks';
END;
CREATE TRIGGER directory_inserted AFTER INSERT ON directories BEGIN
    UPDATE sums SET value = value + 1 WHERE key = 'directories';
END;
CREATE TRIGGER directory_deleted AFTER DELETE ON directories BEGIN
    UPDATE sums SET value = value - 1 WHERE key = 'directories';
END;
