-- The time by which spans are old: it follows the clock slowly, so that one leap forgets nothing.
CREATE TABLE horizon (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    at_s INTEGER NOT NULL
) STRICT;
