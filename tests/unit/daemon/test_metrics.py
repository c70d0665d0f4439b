"""Counting: every result once, durably, whatever is delivered twice and whenever the daemon dies."""

from __future__ import annotations

import random
from pathlib import Path

from lenskeep.clock import Clock
from lenskeep.config import MetricsRetention
from lenskeep.daemon.events import Events
from lenskeep.daemon.metrics import Metrics
from lenskeep.database import Database, open_database
from lenskeep.messages.runner import Result, Results
from lenskeep.registry import windows

SCHEMA = "lenskeep.registry.metrics_schema"


def result(sequence: int, outcome: str = "OK") -> Result:
    return Result(
        sequence=sequence, camera="cam-1", frame=sequence, captured_ms=1_800_000_000_000 + sequence * 10,
        outcome=outcome, label="good", score=0.9, margin=0.3, detections=[], bundle="a@1.0.0", digest="d", wait_us=10,
        preprocess_us=500, inference_us=4000, decode_us=50, total_us=4600,
    )  # type: ignore[arg-type]  # fmt: skip


async def metrics_on(database: Database) -> Metrics:
    clock = Clock()
    metrics = Metrics(database, Events(clock, 0), clock, MetricsRetention())
    await metrics.load(["main"])
    return metrics


async def counted(database: Database) -> int:
    async with database.read() as tx:
        return sum(span.frames for _, span in await windows.since(tx, "main", 0))


async def test_results_delivered_twice_are_counted_once(tmp_path: Path) -> None:
    async with open_database(tmp_path / "m.sqlite", SCHEMA) as database:
        metrics = await metrics_on(database)
        metrics.take("main", Results(run="r1", results=[result(n) for n in range(1, 101)]))
        metrics.take("main", Results(run="r1", results=[result(n) for n in range(50, 151)]))
        await metrics.flush()
        assert await counted(database) == 150
        assert metrics.durable == {"main": ("r1", 150)}


async def test_a_daemon_that_dies_between_flushes_neither_loses_nor_doubles_a_result(tmp_path: Path) -> None:
    seed = 20261120
    print(f"seed {seed}")
    dice = random.Random(seed)
    async with open_database(tmp_path / "m.sqlite", SCHEMA) as database:
        produced = durable = 0
        for _ in range(20):
            metrics = await metrics_on(database)  # a new daemon; the old one's memory is gone
            assert metrics.position("main")[1] == durable
            produced += dice.randrange(0, 200)
            # the runner delivers everything that was not acknowledged, and perhaps more than that
            first = max(1, durable + 1 - dice.randrange(0, 5))
            metrics.take("main", Results(run="r1", results=[result(n) for n in range(first, produced + 1)]))
            if dice.random() < 0.6:
                await metrics.flush()
                durable = produced
        metrics = await metrics_on(database)
        metrics.take("main", Results(run="r1", results=[result(n) for n in range(durable + 1, produced + 1)]))
        await metrics.flush()
        assert await counted(database) == produced


async def test_a_new_run_of_the_runner_begins_again_at_one(tmp_path: Path) -> None:
    async with open_database(tmp_path / "m.sqlite", SCHEMA) as database:
        metrics = await metrics_on(database)
        metrics.take("main", Results(run="r1", results=[result(n) for n in range(1, 11)]))
        metrics.take("main", Results(run="r2", results=[result(n) for n in range(1, 6)]))
        await metrics.flush()
        assert await counted(database) == 15
        assert metrics.durable == {"main": ("r2", 5)}


async def test_a_frame_over_the_budget_is_a_miss(tmp_path: Path) -> None:
    async with open_database(tmp_path / "m.sqlite", SCHEMA) as database:
        metrics = await metrics_on(database)
        metrics.set_budget("a@1.0.0", 4.0)
        metrics.take("main", Results(run="r1", results=[result(1)]))
        await metrics.flush()
        assert metrics.live("main").misses == 1


async def test_the_newest_results_come_first_and_no_more_are_unpacked_than_taken(tmp_path: Path) -> None:
    async with open_database(tmp_path / "m.sqlite", SCHEMA) as database:
        metrics = await metrics_on(database)
        metrics.take("main", Results(run="r1", results=[result(n) for n in range(1, 1101)]))
        metrics.take("main", Results(run="r2", results=[result(1)]))
        newest = metrics.recent("main")
        assert [next(newest).sequence for _ in range(3)] == [1, 1100, 1099]
        assert len(list(newest)) == 997
