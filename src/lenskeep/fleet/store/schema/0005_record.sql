-- Copies of devices' records. `copy`: a record that began anew at its device is another one, and none that was signed
-- ever goes. Entries up to `head_sequence` are signed; those above it follow from the others and wait for their head.
-- `chain` as in `witness`. `key_id`, `public_key`: what the head was verified with.
CREATE TABLE record_copy (
    device TEXT NOT NULL,
    copy BIGINT NOT NULL,
    chain BIGINT NOT NULL,
    sequence BIGINT NOT NULL,
    hash TEXT NOT NULL,
    named TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    head_sequence BIGINT NOT NULL,
    head_hash TEXT NOT NULL,
    head_named TEXT NOT NULL,
    head TEXT NOT NULL,
    key_id TEXT NOT NULL,
    public_key TEXT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (device, copy)
);

-- The lines of a copy, compressed, in the pieces that they came in.
CREATE TABLE record_piece (
    device TEXT NOT NULL,
    copy BIGINT NOT NULL,
    first_entry BIGINT NOT NULL,
    last_entry BIGINT NOT NULL,
    hash TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (device, copy, first_entry)
);
CREATE INDEX record_piece_last ON record_piece (device, copy, last_entry);
