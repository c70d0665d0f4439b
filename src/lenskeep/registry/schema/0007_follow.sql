-- An assignment has one more end: the version was taken back after it had been followed.
ALTER TABLE assignment RENAME TO assignment_before;
CREATE TABLE assignment (
    slot TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    target TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('new', 'staged', 'asked', 'followed', 'refused', 'rolled_back')),
    operation TEXT NOT NULL DEFAULT '',
    code TEXT NOT NULL DEFAULT '',
    reason TEXT NOT NULL DEFAULT ''
) STRICT;
INSERT INTO assignment SELECT slot, generation, target, sha256, state, operation, code, reason FROM assignment_before;
DROP TABLE assignment_before;
