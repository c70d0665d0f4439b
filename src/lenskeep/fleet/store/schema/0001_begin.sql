-- Devices by name. What is let in is `device_key`: no row there, no entry, whatever a certificate says.
CREATE TABLE device (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN ('invited', 'enrolled', 'revoked')),
    enrolled_ms BIGINT,
    revoked_ms BIGINT,
    revoked_reason TEXT NOT NULL DEFAULT '',
    chain INTEGER NOT NULL DEFAULT 0
);

-- `next`: certified at a renewal with a new key; its first use makes it `current` and removes the one before.
CREATE TABLE device_key (
    key_id TEXT PRIMARY KEY,
    device TEXT NOT NULL REFERENCES device (name),
    pem TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('current', 'next')),
    certificate TEXT NOT NULL,
    ends_s BIGINT NOT NULL,
    added_ms BIGINT NOT NULL
);
CREATE INDEX device_key_device ON device_key (device);

-- A revoked key never comes back, whoever invites its device again.
CREATE TABLE revoked_key (
    key_id TEXT PRIMARY KEY,
    device TEXT NOT NULL,
    at_ms BIGINT NOT NULL
);

-- Tokens by their handle; the secret's hash alone is kept. A used one gives the same key the same answer again.
CREATE TABLE invitation (
    handle TEXT PRIMARY KEY,
    device TEXT NOT NULL REFERENCES device (name),
    secret_sha256 TEXT NOT NULL,
    made_ms BIGINT NOT NULL,
    made_by TEXT NOT NULL,
    expires_ms BIGINT NOT NULL,
    used_key_id TEXT NOT NULL DEFAULT '',
    certificate TEXT NOT NULL DEFAULT ''
);

-- Reports as they were signed. What is current of a device is its row in `standing`.
CREATE TABLE report (
    key_id TEXT NOT NULL,
    counter BIGINT NOT NULL,
    device TEXT NOT NULL,
    payload_sha256 TEXT NOT NULL,
    received_ms BIGINT NOT NULL,
    envelope TEXT NOT NULL,
    PRIMARY KEY (key_id, counter)
);

CREATE TABLE standing (
    device TEXT PRIMARY KEY,
    key_id TEXT NOT NULL,
    counter BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    report TEXT NOT NULL
);

-- Heads of devices' records, as their keys signed them. `chain` counts how often an operator accepted that a record
-- began anew; what was witnessed before stays.
CREATE TABLE witness (
    device TEXT NOT NULL,
    chain INTEGER NOT NULL,
    sequence BIGINT NOT NULL,
    hash TEXT NOT NULL,
    envelope TEXT NOT NULL,
    received_ms BIGINT NOT NULL,
    PRIMARY KEY (device, chain, sequence)
);

CREATE TABLE alarm (
    id INTEGER PRIMARY KEY,
    device TEXT NOT NULL,
    code TEXT NOT NULL,
    text TEXT NOT NULL,
    first_ms BIGINT NOT NULL,
    last_ms BIGINT NOT NULL,
    count BIGINT NOT NULL,
    UNIQUE (device, code)
);

CREATE TABLE operator_token (
    name TEXT PRIMARY KEY,
    role TEXT NOT NULL,
    secret_sha256 TEXT NOT NULL UNIQUE,
    expires_ms BIGINT NOT NULL
);

-- What operators did.
CREATE TABLE deed (
    sequence INTEGER PRIMARY KEY,
    at_ms BIGINT NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    reason TEXT NOT NULL
);
