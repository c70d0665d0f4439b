-- How far each outbox of a device was taken. `outbox` is the name that the device gave it: one made anew has another.
CREATE TABLE intake (
    device TEXT NOT NULL,
    outbox TEXT NOT NULL,
    taken BIGINT NOT NULL,
    changed_ms BIGINT NOT NULL,
    PRIMARY KEY (device, outbox)
);

-- Records as they were taken, a row for each call; they wait here to be merged, and go in the transaction that does it.
CREATE TABLE inbox (
    id INTEGER PRIMARY KEY,
    device TEXT NOT NULL,
    received_ms BIGINT NOT NULL,
    body BLOB NOT NULL
);

-- When a device was last heard, and where it dialled from. Written every few seconds for whoever called in between.
CREATE TABLE presence (
    device TEXT PRIMARY KEY,
    heard_ms BIGINT NOT NULL,
    address TEXT NOT NULL,
    seen_version BIGINT NOT NULL
);

-- Where each slot says that it stands with its assignment; what it runs is in the signed report.
CREATE TABLE slot_now (
    device TEXT NOT NULL,
    slot TEXT NOT NULL,
    generation BIGINT NOT NULL,
    state TEXT NOT NULL,
    code TEXT NOT NULL,
    reason TEXT NOT NULL,
    bundle TEXT NOT NULL,
    digest TEXT NOT NULL,
    busy INTEGER NOT NULL,
    since_ms BIGINT NOT NULL,
    PRIMARY KEY (device, slot)
);

-- What versions did, merged over the devices of a hardware class. `begin_s` is the first second of an hour, or of a day
-- once the hours are old (`span_s`). The stage '' holds the counts; every other stage holds a sketch.
CREATE TABLE telemetry (
    span_s INTEGER NOT NULL,
    begin_s BIGINT NOT NULL,
    bundle TEXT NOT NULL,
    digest TEXT NOT NULL,
    provider TEXT NOT NULL,
    hardware TEXT NOT NULL,
    stage TEXT NOT NULL,
    windows BIGINT NOT NULL,
    seconds BIGINT NOT NULL,
    frames BIGINT NOT NULL,
    misses BIGINT NOT NULL,
    outcomes TEXT NOT NULL,
    sketch BLOB NOT NULL,
    PRIMARY KEY (bundle, span_s, begin_s, digest, provider, hardware, stage)
);

-- The newest window of each slot of each device, as the device sent it.
CREATE TABLE recent (
    device TEXT NOT NULL,
    slot TEXT NOT NULL,
    received_ms BIGINT NOT NULL,
    body BLOB NOT NULL,
    PRIMARY KEY (device, slot)
);

-- The newest vitals of each device.
CREATE TABLE vitals (
    device TEXT PRIMARY KEY,
    received_ms BIGINT NOT NULL,
    hardware TEXT NOT NULL,
    version TEXT NOT NULL,
    body TEXT NOT NULL
);

CREATE TABLE happening (
    id INTEGER PRIMARY KEY,
    device TEXT NOT NULL,
    n BIGINT NOT NULL,
    kind TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    slot TEXT NOT NULL,
    bundle TEXT NOT NULL,
    code TEXT NOT NULL,
    text TEXT NOT NULL,
    count BIGINT NOT NULL
);
CREATE INDEX happening_device ON happening (device, id);
CREATE INDEX happening_bundle ON happening (bundle, id);

-- What operators ask of devices. It is told until the device says what became of it.
CREATE TABLE command (
    id TEXT PRIMARY KEY,
    device TEXT NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    made_ms BIGINT NOT NULL,
    made_by TEXT NOT NULL,
    state TEXT NOT NULL,
    code TEXT NOT NULL,
    answer TEXT NOT NULL,
    done_ms BIGINT
);
CREATE INDEX command_device ON command (device, state);
