-- What the fleet has not acknowledged yet. It lies beside the spans, so that a result is counted into both or neither.
-- `sent`: the newest number that was ever put on the wire; what is above it may still be merged.
-- `entry`: up to which entry of the registry's record events were taken; -1 = from now on.
CREATE TABLE outbox (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    name TEXT NOT NULL,
    next_n INTEGER NOT NULL,
    sent INTEGER NOT NULL,
    entry INTEGER NOT NULL,
    dropped INTEGER NOT NULL          -- ever
) STRICT;

CREATE TABLE outbox_record (
    n INTEGER PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('window', 'event', 'vitals', 'lost')),
    at_ms INTEGER NOT NULL,
    seconds INTEGER NOT NULL,         -- of a window; else 0
    bytes INTEGER NOT NULL,
    body BLOB NOT NULL
) STRICT;
CREATE INDEX outbox_kind ON outbox_record (kind, seconds, n);

-- Windows that results still come into. What comes after one was closed begins another of the same minute.
CREATE TABLE outbox_window (
    start_s INTEGER NOT NULL,
    slot TEXT NOT NULL,
    bundle TEXT NOT NULL,
    digest TEXT NOT NULL,
    frames INTEGER NOT NULL,
    misses INTEGER NOT NULL,
    outcomes TEXT NOT NULL,
    sketches BLOB NOT NULL,
    PRIMARY KEY (start_s, slot, bundle)
) STRICT, WITHOUT ROWID;
