-- How far the slow reading of all stored files has come. One row; `cursor` is the last file that was read.
CREATE TABLE scrub (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    pass INTEGER NOT NULL,
    cursor TEXT NOT NULL,
    files_done INTEGER NOT NULL,
    bytes_done INTEGER NOT NULL,
    up_s INTEGER NOT NULL,          -- how long the device was up since the last whole pass
    finished_ms INTEGER,            -- when that ended, by a clock that may have lied
    finished_trusted INTEGER NOT NULL
) STRICT;

-- Stored files that no longer had their digest. They were set aside; a row goes when the file is whole again.
CREATE TABLE damage (
    file TEXT PRIMARY KEY,          -- a blob's digest, or a prepared model's name
    kind TEXT NOT NULL CHECK (kind IN ('blob', 'prepared')),
    sha256 TEXT NOT NULL,
    what TEXT NOT NULL,
    found_ms INTEGER NOT NULL,
    found_by TEXT NOT NULL
) STRICT;

-- In which order versions came, because the clock does not tell.
ALTER TABLE bundle ADD COLUMN import_order INTEGER NOT NULL DEFAULT 0;
UPDATE bundle SET import_order = (
    SELECT COUNT(*) FROM bundle AS earlier
    WHERE (earlier.imported_ms, earlier.rowid) <= (bundle.imported_ms, bundle.rowid)
);
