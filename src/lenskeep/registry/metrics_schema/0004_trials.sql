-- Trials of versions are told as records of their own kind.
-- `outbox.trial`: up to which trial of the registry they were taken; -1 = from those that count now.
ALTER TABLE outbox ADD COLUMN trial INTEGER NOT NULL DEFAULT -1;

CREATE TABLE outbox_record_with_trials (
    n INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('window', 'event', 'vitals', 'lost', 'trial')),
    at_ms INTEGER NOT NULL,
    seconds INTEGER NOT NULL,         -- of a window; else 0
    bytes INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
INSERT INTO outbox_record_with_trials SELECT n, kind, at_ms, seconds, bytes, body FROM outbox_record;
DROP TABLE outbox_record;
ALTER TABLE outbox_record_with_trials RENAME TO outbox_record;
CREATE INDEX outbox_kind ON outbox_record (kind, seconds, n);
