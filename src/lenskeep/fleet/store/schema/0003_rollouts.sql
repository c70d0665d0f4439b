-- What operators call devices by. `device_group`: selectors that have a name.
CREATE TABLE device_tag (
    device TEXT NOT NULL REFERENCES device (name),
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (device, key)
);

CREATE TABLE device_group (
    name TEXT PRIMARY KEY,
    selector TEXT NOT NULL
);

-- `plan`, `forgiven`, `gates`, `approvals` are JSON. `*_steady_ms` count only while a conductor is at work.
CREATE TABLE rollout (
    id BIGINT PRIMARY KEY,
    bundle TEXT NOT NULL,
    slot TEXT NOT NULL,
    plan TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    since_ms BIGINT NOT NULL,
    made_by TEXT NOT NULL,
    made_ms BIGINT NOT NULL,
    waves BIGINT NOT NULL,
    opened BIGINT NOT NULL DEFAULT 0,
    through_steady_ms BIGINT NOT NULL DEFAULT 0,
    forgiven TEXT NOT NULL DEFAULT '{}',
    gates TEXT NOT NULL DEFAULT '[]',
    approvals TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX rollout_state ON rollout (state);

-- What the director is to sign for a device is `want` and `activate`; `signed` = 1 when that was done.
CREATE TABLE rollout_member (
    rollout BIGINT NOT NULL REFERENCES rollout (id),
    device TEXT NOT NULL,
    slot TEXT NOT NULL,
    wave BIGINT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    code TEXT NOT NULL DEFAULT '',
    since_ms BIGINT NOT NULL,
    due_steady_ms BIGINT NOT NULL DEFAULT 0,
    attempts BIGINT NOT NULL DEFAULT 0,
    hardware TEXT NOT NULL DEFAULT '',
    before_bundle TEXT NOT NULL DEFAULT '',
    want TEXT NOT NULL DEFAULT '',
    activate TEXT NOT NULL DEFAULT 'attempt',
    signed BIGINT NOT NULL DEFAULT 1,
    renumber BIGINT NOT NULL DEFAULT 0,
    generation BIGINT NOT NULL DEFAULT 0,
    steps BIGINT NOT NULL DEFAULT 0,
    failed BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (rollout, device)
);
CREATE INDEX rollout_member_device ON rollout_member (device, slot, rollout);
CREATE INDEX rollout_member_unsigned ON rollout_member (signed, rollout);

-- The history of every device in every rollout.
CREATE TABLE rollout_step (
    rollout BIGINT NOT NULL,
    device TEXT NOT NULL,
    step BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    code TEXT NOT NULL,
    PRIMARY KEY (rollout, device, step)
);
CREATE INDEX rollout_step_device ON rollout_step (device, at_ms);

-- The conductor's own time: it passes only while one is at work.
CREATE TABLE conductor (
    id BIGINT PRIMARY KEY,
    owner TEXT NOT NULL,
    steady_ms BIGINT NOT NULL
);
