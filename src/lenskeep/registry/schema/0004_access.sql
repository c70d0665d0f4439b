-- Tokens: whom they stand for, which slots they change (empty = all), who made them, when they were last used.
ALTER TABLE token ADD COLUMN person TEXT NOT NULL DEFAULT '';
ALTER TABLE token ADD COLUMN slots TEXT NOT NULL DEFAULT '';
ALTER TABLE token ADD COLUMN added_by TEXT NOT NULL DEFAULT '';
ALTER TABLE token ADD COLUMN last_used_ms INTEGER;

-- Wishes that wait for the approval of people. What was asked for and what the slot demanded then never change.
CREATE TABLE approval (
    id TEXT PRIMARY KEY,
    slot TEXT NOT NULL,
    bundle_id TEXT NOT NULL REFERENCES bundle (id),
    digest TEXT NOT NULL,
    demand TEXT NOT NULL,
    request TEXT NOT NULL,
    asked_by TEXT NOT NULL,
    asker TEXT NOT NULL,
    asked_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL,
    operation TEXT NOT NULL,
    state TEXT NOT NULL,
    ended_ms INTEGER,
    ended_reason TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE UNIQUE INDEX approval_open ON approval (slot) WHERE state IN ('waiting', 'granted');
CREATE INDEX approval_asked ON approval (asked_ms);

-- One person signs one request once, whatever token or account is used.
CREATE TABLE approval_signature (
    approval_id TEXT NOT NULL REFERENCES approval (id),
    person TEXT NOT NULL,
    actor TEXT NOT NULL,
    role TEXT NOT NULL,
    meaning TEXT NOT NULL,
    reason TEXT NOT NULL,
    digest TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (approval_id, person)
) STRICT, WITHOUT ROWID;
