"""Windows: merging with age keeps every count and every quantile."""

from __future__ import annotations

import random
from pathlib import Path

from lenskeep.database import open_database
from lenskeep.registry import windows
from lenskeep.registry.windows import HOUR_S, MINUTE_S, QUARTER_S, Span, SpanKey

SCHEMA = "lenskeep.registry.metrics_schema"
DAY_S = 86400


def span_of(values_us: list[float]) -> Span:
    span = Span()
    for value in values_us:
        span.frames += 1
        span.outcomes["OK"] = span.outcomes.get("OK", 0) + 1
        span.sketches["total"].add(value)
    return span


async def test_thinning_merges_minutes_into_quarters_and_hours_and_loses_no_count(tmp_path: Path) -> None:
    dice, now_s = random.Random(7), 400 * DAY_S
    values: list[float] = []
    async with open_database(tmp_path / "m.sqlite", SCHEMA) as database:
        for minute in range(0, 10 * 24 * 60, 37):
            some = [dice.lognormvariate(9, 0.5) for _ in range(20)]
            values += some
            key = SpanKey(MINUTE_S, now_s - 10 * DAY_S + minute * 60, "main", "a@1.0.0")
            async with database.write() as tx:
                await windows.save(tx, [windows.row_of(key, span_of(some))])
        for _ in range(3):
            async with database.write() as tx:
                await windows.thin(tx, now_s=now_s, minutes_days=1, quarters_days=7, hours_days=90)
        async with database.read() as tx:
            found = await windows.since(tx, None, 0)
    everything = Span()
    for _, span in found:
        everything.merge(span)
    assert everything.frames == len(values)
    assert {key.seconds for key, _ in found} == {MINUTE_S, QUARTER_S, HOUR_S}
    exact = sorted(values)[int(0.99 * (len(values) - 1))]
    assert abs(everything.sketches["total"].quantile_us(0.99) / exact - 1) < 0.01


async def test_hours_older_than_their_time_are_forgotten(tmp_path: Path) -> None:
    async with open_database(tmp_path / "m.sqlite", SCHEMA) as database, database.write() as tx:
        await windows.save(tx, [windows.row_of(SpanKey(HOUR_S, 0, "main", "a@1.0.0"), span_of([5.0]))])
        await windows.thin(tx, now_s=91 * DAY_S, minutes_days=1, quarters_days=7, hours_days=90)
        assert await windows.since(tx, None, 0) == []
