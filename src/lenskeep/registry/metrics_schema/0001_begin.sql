-- Counts and latency sketches of one version in one slot over one time span; spans merge into longer ones with age.
CREATE TABLE span (
    seconds INTEGER NOT NULL,
    start_s INTEGER NOT NULL,
    slot TEXT NOT NULL,
    bundle TEXT NOT NULL,
    frames INTEGER NOT NULL,
    misses INTEGER NOT NULL,
    outcomes TEXT NOT NULL,
    sketches BLOB NOT NULL,
    PRIMARY KEY (seconds, start_s, slot, bundle)
) STRICT, WITHOUT ROWID;

-- Up to which result of which runner's run the spans above are complete.
CREATE TABLE position (
    slot TEXT PRIMARY KEY,
    run TEXT NOT NULL,
    sequence INTEGER NOT NULL
) STRICT;
