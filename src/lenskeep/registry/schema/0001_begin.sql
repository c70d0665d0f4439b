-- Facts about stored versions. A released version never changes: (name, version) has one digest for ever.
CREATE TABLE bundle (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    version TEXT NOT NULL,
    digest TEXT NOT NULL UNIQUE,
    model_sha256 TEXT NOT NULL,
    manifest BLOB NOT NULL,
    signature BLOB NOT NULL,
    key_id TEXT NOT NULL,
    signer TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('imported', 'qualified', 'rejected', 'retired')),
    parent TEXT NOT NULL,
    pinned INTEGER NOT NULL DEFAULT 0,
    imported_ms INTEGER NOT NULL,
    imported_by TEXT NOT NULL,
    UNIQUE (name, version)
) STRICT;

CREATE TABLE bundle_file (
    bundle_id TEXT NOT NULL REFERENCES bundle (id),
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (bundle_id, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX bundle_file_sha256 ON bundle_file (sha256);

CREATE TABLE bundle_metric (
    bundle_id TEXT NOT NULL REFERENCES bundle (id),
    name TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (bundle_id, name)
) STRICT, WITHOUT ROWID;

-- Every trial on this device, with its report; the newest decides.
CREATE TABLE trial (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    bundle_id TEXT NOT NULL REFERENCES bundle (id),
    at_ms INTEGER NOT NULL,
    asked_by TEXT NOT NULL,
    passed INTEGER NOT NULL,
    provider TEXT NOT NULL,
    runtime_key TEXT NOT NULL,
    prepared_file TEXT NOT NULL,
    prepared_sha256 TEXT NOT NULL,
    report TEXT NOT NULL
) STRICT;
CREATE INDEX trial_bundle ON trial (bundle_id, sequence);

CREATE TABLE slot (
    name TEXT PRIMARY KEY,
    state TEXT NOT NULL,
    wanted_id TEXT REFERENCES bundle (id),
    active_id TEXT REFERENCES bundle (id),
    previous_id TEXT REFERENCES bundle (id),
    since_ms INTEGER NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    asked_by TEXT NOT NULL DEFAULT '',
    trial_s REAL,
    accept_risks TEXT NOT NULL DEFAULT '',
    operation TEXT NOT NULL DEFAULT '',
    held INTEGER NOT NULL DEFAULT 0,
    generation INTEGER NOT NULL DEFAULT 1
) STRICT;

-- What ran where, from when to when, why and by whom.
CREATE TABLE deployment (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    slot TEXT NOT NULL,
    bundle_id TEXT NOT NULL REFERENCES bundle (id),
    started_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    asked_by TEXT NOT NULL,
    reason TEXT NOT NULL,
    outcome TEXT NOT NULL
) STRICT;
CREATE INDEX deployment_slot ON deployment (slot, sequence);

CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    monotonic_s REAL NOT NULL,
    clock_trusted INTEGER NOT NULL,
    actor TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    reason TEXT NOT NULL,
    before TEXT NOT NULL,
    after TEXT NOT NULL
) STRICT;

CREATE TABLE trusted_key (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    pem TEXT NOT NULL,
    patterns TEXT NOT NULL,
    not_before_s REAL,
    not_after_s REAL,
    added_ms INTEGER NOT NULL,
    added_by TEXT NOT NULL,
    revoked_ms INTEGER,
    revoked_reason TEXT NOT NULL DEFAULT ''
) STRICT;

-- Bearer tokens by the hash of their secret; the secret itself is shown once and never stored.
CREATE TABLE token (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    role TEXT NOT NULL,
    secret_sha256 TEXT NOT NULL UNIQUE,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE operation (
    id TEXT PRIMARY KEY,
    started_ms INTEGER NOT NULL,
    state TEXT NOT NULL,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX operation_started ON operation (started_ms);

CREATE TABLE idempotency (
    key TEXT PRIMARY KEY,
    body_sha256 TEXT NOT NULL,
    status INTEGER NOT NULL,
    body BLOB NOT NULL,
    at_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
