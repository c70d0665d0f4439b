-- The newest trial of each version on each device, as the device told it. Scores are millionths, times microseconds.
CREATE TABLE trial (
    device TEXT NOT NULL,
    bundle TEXT NOT NULL,
    n BIGINT NOT NULL,
    at_ms BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    digest TEXT NOT NULL,
    provider TEXT NOT NULL,
    hardware TEXT NOT NULL,
    code TEXT NOT NULL,
    golden_passed BIGINT NOT NULL,
    golden_total BIGINT NOT NULL,
    score_ppm BIGINT NOT NULL,
    p50_us BIGINT NOT NULL,
    p99_us BIGINT NOT NULL,
    memory_mb BIGINT NOT NULL,
    PRIMARY KEY (device, bundle)
);
CREATE INDEX trial_bundle ON trial (bundle, hardware);

-- Every trial that was ever told, added up. `scored`: those that came to the golden pictures; `timed`: to the timing.
CREATE TABLE trial_sum (
    bundle TEXT NOT NULL,
    digest TEXT NOT NULL,
    hardware TEXT NOT NULL,
    provider TEXT NOT NULL,
    last_ms BIGINT NOT NULL,
    trials BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    scored BIGINT NOT NULL,
    score_sum_ppm BIGINT NOT NULL,
    score_worst_ppm BIGINT NOT NULL,
    timed BIGINT NOT NULL,
    p99_sum_us BIGINT NOT NULL,
    p99_worst_us BIGINT NOT NULL,
    memory_worst_mb BIGINT NOT NULL,
    PRIMARY KEY (bundle, digest, hardware, provider)
);
