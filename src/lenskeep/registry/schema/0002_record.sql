-- The record: every state change in a hash chain, as lenskeep/trust/chain.py describes it. Rows are only ever added.
-- What was written before there was a chain is carried over at the next start.
ALTER TABLE audit RENAME TO audit_unchained;

CREATE TABLE record (
    sequence INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    monotonic_ms INTEGER NOT NULL,
    boot TEXT NOT NULL,
    clock_trusted INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    reason TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL,
    hash TEXT NOT NULL
) STRICT;

-- These stop mistakes, not an attacker with the file in his hands; he is found by the chain.
CREATE TRIGGER record_is_not_changed BEFORE UPDATE ON record
BEGIN
    SELECT RAISE(ABORT, 'the record is only added to');
END;
CREATE TRIGGER record_is_not_removed BEFORE DELETE ON record
BEGIN
    SELECT RAISE(ABORT, 'the record is only added to');
END;

-- What the device signed: up to which entry the record went, and when. `witnessed_ms`: the fleet has it.
CREATE TABLE record_head (
    counter INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL,
    hash TEXT NOT NULL,
    key_id TEXT NOT NULL,
    envelope BLOB NOT NULL,
    witnessed_ms INTEGER
) STRICT;
CREATE INDEX record_head_sequence ON record_head (sequence);
