-- Eviction by S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023), over chunks, with data files as the
-- places in its queues. What is here already is kept as if it had been used.
ALTER TABLE files ADD COLUMN queue INTEGER NOT NULL DEFAULT 1; -- 0: probation; 1: main.
ALTER TABLE files ADD COLUMN entered_at INTEGER NOT NULL DEFAULT 0; -- Nanoseconds since 1970 at which it came to the end of its queue.
UPDATE files SET entered_at = used_at * 1000000000;
DROP INDEX files_by_use;
CREATE INDEX files_by_queue ON files (queue, entered_at, number);

-- How often readers have come for the chunk, in as many as four passes; 0 where it was fetched ahead of them only.
ALTER TABLE chunks ADD COLUMN reads INTEGER NOT NULL DEFAULT 0;

-- What was evicted without a second reader, by the first eight bytes of a chunk's digest, or of the blob's whose file it was: what comes
-- again soon is wanted.
CREATE TABLE ghosts (
    key BLOB PRIMARY KEY,
    -- They go by generations.
    generation INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- `main_bytes`: as `data_bytes`, of files in the main queue.
INSERT INTO sums
    SELECT 'main_bytes', coalesce(sum(bytes + 4096), 0) FROM files;

CREATE TRIGGER main_file_inserted AFTER INSERT ON files WHEN new.queue = 1 BEGIN
    UPDATE sums SET value = value + new.bytes + 4096 WHERE key = 'main_bytes';
END;
CREATE TRIGGER main_file_grown AFTER UPDATE OF bytes ON files WHEN new.queue = 1 BEGIN
    UPDATE sums SET value = value + new.bytes - old.bytes WHERE key = 'main_bytes';
END;
CREATE TRIGGER file_changed_queue AFTER UPDATE OF queue ON files WHEN old.queue <> new.queue BEGIN
    UPDATE sums SET value = value + (new.queue - old.queue) * (new.bytes + 4096) WHERE key = 'main_bytes';
END;
CREATE TRIGGER main_file_deleted AFTER DELETE ON files WHEN old.queue = 1 BEGIN
    UPDATE sums SET value = value - old.bytes - 4096 WHERE key = 'main_bytes';
END;
