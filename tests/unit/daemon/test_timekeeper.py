"""The floor outlives the daemon, and a clock that lies is on record; history is not forgotten by a leap."""

from __future__ import annotations

from pathlib import Path

import pytest

from lenskeep.clock import BUILT_AT
from lenskeep.daemon.events import Events
from lenskeep.daemon.timekeeper import Timekeeper, clock_fault
from lenskeep.database import open_database
from lenskeep.registry import audit, journal, windows
from lenskeep.registry.windows import HOUR_S, Span, SpanKey
from tests.unit.test_clock import DAY_S, NOW, YEAR_2099_S, SetClock

REGISTRY, METRICS = "lenskeep.registry.schema", "lenskeep.registry.metrics_schema"


@pytest.mark.attack(91)
async def test_the_floor_is_kept_over_a_restart_and_never_sinks(tmp_path: Path) -> None:
    async with open_database(tmp_path / "r.sqlite", REGISTRY) as database:
        clock = SetClock(NOW)
        keeper = Timekeeper(database, clock, Events(clock, 0))
        await keeper.begin()
        clock.raise_floor(NOW - DAY_S)
        await keeper.look()
    async with open_database(tmp_path / "r.sqlite", REGISTRY) as database:
        clock = SetClock(BUILT_AT + DAY_S)  # the battery is empty: it shows the past
        await Timekeeper(database, clock, Events(clock, 0)).begin()
        assert clock.floor_s == NOW - DAY_S and clock.now_s() == NOW - DAY_S
        assert not clock.trusted()


@pytest.mark.attack(91)
async def test_a_leap_is_on_record_when_it_comes_and_when_it_is_over(tmp_path: Path) -> None:
    async with open_database(tmp_path / "r.sqlite", REGISTRY) as database:
        clock = SetClock(NOW)
        keeper = Timekeeper(database, clock, Events(clock, 0))
        await keeper.begin()
        await keeper.look()
        clock.wall = YEAR_2099_S
        await keeper.look()
        await keeper.look()
        fault = clock_fault(clock)
        assert fault is not None and fault.code == "LK-6001"
        clock.wall = NOW - 5 * DAY_S
        fault = clock_fault(clock)
        assert fault is not None and fault.code == "LK-6002"
        clock.wall = NOW
        await keeper.look()
        async with database.read() as tx:
            rows = await audit.page(tx, limit=9)
        assert [(row["after"], bool(row["clock_trusted"])) for row in rows if row["action"] == "clock"] == [
            ("trusted", True),
            ("untrusted", False),
        ]


@pytest.mark.attack(91)
async def test_retention_follows_the_clock_slowly_so_that_a_leap_wipes_nothing(tmp_path: Path) -> None:
    async with open_database(tmp_path / "m.sqlite", METRICS) as database, database.write() as tx:
        now_s = int(NOW)
        rows = [windows.row_of(SpanKey(HOUR_S, now_s - day * 86400, "main", "a@1"), Span()) for day in range(80)]
        await windows.save(tx, rows)
        keep = {"minutes_days": 1, "quarters_days": 7, "hours_days": 90}
        for shown_s in (now_s, now_s + 14 * 365 * 86400, now_s + 14 * 365 * 86400, 86400, now_s + 3600):
            horizon_s = await windows.move_horizon(tx, now_s=shown_s, by_s_max=7200)
            assert horizon_s <= now_s + 3 * 7200
            await windows.thin(tx, now_s=horizon_s, **keep)
        assert len(await windows.since(tx, None, 0)) == 80


async def test_answers_and_operations_are_forgotten_by_their_order_and_not_by_a_leaping_clock(tmp_path: Path) -> None:
    async with open_database(tmp_path / "r.sqlite", REGISTRY) as database, database.write() as tx:
        for number, at_ms in enumerate((1000, 4_083_955_200_000, 2000)):
            await journal.save_answer(
                tx, f"key {number}", body_sha256="", status=200, body=b"", at_ms=at_ms, clock_trusted=False
            )
        assert all([await journal.answer(tx, f"key {number}") for number in range(3)])
