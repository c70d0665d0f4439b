"""When an assigned version may touch the line."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from lenskeep.config import Fleet, MetricsRetention
from lenskeep.daemon.events import Events
from lenskeep.daemon.maintenance import Maintenance, is_in
from lenskeep.daemon.metrics import Metrics
from lenskeep.database import open_database
from tests.fleetrig import LyingClock

NOON_S = time.mktime((2026, 11, 20, 12, 0, 0, 0, 0, -1))


@pytest.mark.parametrize(
    ("span", "minute", "inside"),
    [
        ("22:00-05:00", 22 * 60, True), ("22:00-05:00", 4 * 60 + 59, True), ("22:00-05:00", 5 * 60, False),
        ("22:00-05:00", 12 * 60, False), ("08:00-09:00", 8 * 60, True), ("08:00-09:00", 9 * 60, False),
        ("00:00-00:00", 777, True),
    ],
)  # fmt: skip
def test_a_span_begins_with_its_first_minute_and_may_go_over_midnight(span: str, minute: int, inside: bool) -> None:
    assert is_in(span, minute) is inside


async def test_a_wish_waits_for_the_devices_hours_unless_it_is_forced(tmp_path: Path) -> None:
    clock = LyingClock(NOON_S)
    async with open_database(tmp_path / "m.sqlite", "lenskeep.registry.metrics_schema") as database:
        metrics = Metrics(database, Events(clock, 0), clock, MetricsRetention())
        await metrics.load(["main"])
        night = Maintenance(Fleet(activate_when=["22:00-05:00"]), metrics, clock)
        assert "22:00-05:00" in night.why_not("main", "attempt")
        assert night.why_not("main", "forced") == ""
        assert night.why_not("main", "skip")
        day = Maintenance(Fleet(activate_when=["22:00-05:00", "11:00-13:00"]), metrics, clock)
        assert day.why_not("main", "attempt") == ""
        clock.shown_s = 0.0
        assert "clock" in day.why_not("main", "attempt"), "a wrong clock does not know the hour"
        idle = Maintenance(Fleet(only_when_idle=True), metrics, clock)
        assert idle.why_not("main", "attempt") == "", "no result came for long"
