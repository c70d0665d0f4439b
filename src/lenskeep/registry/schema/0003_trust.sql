-- The digest of the whole bundle file, which a repository lists; empty for what was stored before it was asked for.
ALTER TABLE bundle ADD COLUMN file_sha256 TEXT NOT NULL DEFAULT '';

-- The repository's metadata as it was verified, by file name. Written whole, in one transaction, after each look.
CREATE TABLE tuf (
    name TEXT PRIMARY KEY,
    version INTEGER NOT NULL,
    raw BLOB NOT NULL
) STRICT;

-- Its roles and delegations in the form that questions are answered from, and this device's assignment; one row.
CREATE TABLE repository (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    roles TEXT NOT NULL,
    delegations TEXT NOT NULL,
    assignment BLOB NOT NULL,
    issued_s REAL NOT NULL,
    checked_ms INTEGER NOT NULL
) STRICT;

-- What the roles list, as far as this device asked. A path that was asked for and is not listed has no sha256.
CREATE TABLE listing (
    path TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    length_bytes INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    keys TEXT NOT NULL,
    expires_s REAL NOT NULL
) STRICT;

-- What the director assigned to each slot, and what became of it.
CREATE TABLE assignment (
    slot TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    target TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('new', 'staged', 'asked', 'followed', 'refused')),
    operation TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT ''
) STRICT;
