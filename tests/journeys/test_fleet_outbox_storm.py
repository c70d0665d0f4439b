"""A real daemon, a real fleet, a bad network between them, and kill -9 on both sides: each record arrives once."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import threading
import time
from contextlib import closing

from lenskeep.daemon.outbox import KINDS
from tests.chaos.relay import FAIR, GONE, ROUGH, Relay
from tests.device import Device
from tests.fleetrig import FleetServer
from tests.journeys.test_fleet_membership import lenskeep
from tests.journeys.test_fleet_outbox import ID, device, fleet, heard, one
from tests.journeys.test_lying_clock import MOVED_CLOCK

__all__ = ["device", "fleet"]  # the fixtures of the calmer tests


class Line:
    """A relay that runs beside a test that blocks."""

    def __init__(self, port: int, seed: int) -> None:
        self.relay = Relay("127.0.0.1", port, seed)
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._up.wait()

    def _run(self) -> None:
        self._loop.run_until_complete(self._carry())

    async def _carry(self) -> None:
        self._over = asyncio.Event()
        async with self.relay.running():
            self._up.set()
            await self._over.wait()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()
        self._loop.close()


def test_each_record_arrives_once_through_a_bad_network_with_both_ends_killed(
    fleet: FleetServer, device: Device
) -> None:
    seed = int(os.environ.get("LENSKEEP_SEED") or time.time())
    print(f"seed {seed}")
    chance = random.Random(seed)
    line = Line(fleet.port, seed)
    ahead_s = (
        34 - time.time()
    ) % 60  # in the middle of a minute by its clock: the minute ends in the middle of the storm
    (device.folder / "sitecustomize.py").write_text(MOVED_CLOCK.format(path=str(device.folder / "clock")))
    (device.folder / "clock").write_text(str(ahead_s))
    device.environment = {"PYTHONPATH": str(device.folder)}
    try:
        device.start()
        lenskeep("enrol", f"https://127.0.0.1:{line.relay.port}", "--token", fleet.token(ID), device=device)
        device.trust()
        device.until(lambda: heard(device), "the fleet is heard")
        registry, metrics = device.folder / "state/registry.sqlite", device.folder / "state/metrics.sqlite"
        first = one(registry, "SELECT sequence FROM record WHERE action = 'enrol certificate'")
        device.settle("1.0.0")
        minute_ends_s = int(time.time() + ahead_s + 12) // 60 * 60 + 60
        kills = 0
        while time.time() + ahead_s < minute_ends_s + 4:  # its windows close meanwhile
            line.relay.weather = chance.choice([FAIR, ROUGH, ROUGH, GONE])
            what = chance.random()
            if what < 0.25:
                device.kill()
                device.start()
                kills += 1
            elif what < 0.45:
                fleet.kill()
                fleet.start()
                kills += 1
            else:
                device.client.hold("main", chance.random() < 0.5)
            time.sleep(chance.random())
        print(f"{kills} kills, relay {dict(line.relay.counts)}")
        line.relay.weather = FAIR
        still_open = f"SELECT COUNT(*) FROM outbox_window WHERE start_s < {minute_ends_s}"
        device.until(lambda: not one(metrics, still_open), "the windows of the minute that ended are closed")
        device.until(
            lambda: heard(device) and (view := device.client.status().fleet) and not view.waiting, "all is told"
        )
        device.kill()

        def merged() -> bool:
            return not one(fleet.database, "SELECT COUNT(*) FROM inbox")

        device.until(merged, "the fleet has merged what it took", 60)
        counted = one(metrics, "SELECT SUM(frames) FROM span")
        still_here = one(metrics, "SELECT SUM(frames) FROM outbox_window")
        arrived = one(fleet.database, "SELECT SUM(frames) FROM telemetry WHERE stage = ''")
        assert one(metrics, "SELECT COUNT(*) FROM outbox_record") == 0
        assert arrived > 0
        assert arrived + still_here == counted
        with closing(sqlite3.connect(registry)) as database, database:
            rows = database.execute(
                "SELECT action FROM record WHERE sequence > ? ORDER BY sequence", (first,)
            ).fetchall()
        with closing(sqlite3.connect(fleet.database)) as database, database:
            told = database.execute("SELECT text FROM happening WHERE text LIKE '% by %' ORDER BY id").fetchall()
        happened = [action for (action,) in rows if action in KINDS]
        assert [text.split(" by ")[0] for (text,) in told] == happened
        assert one(fleet.database, "SELECT COUNT(*) - COUNT(DISTINCT n) FROM happening") == 0
        assert not one(metrics, "SELECT dropped FROM outbox")
        assert one(fleet.database, "SELECT SUM(trials) FROM trial_sum") == one(registry, "SELECT COUNT(*) FROM trial")
        (trial,) = fleet.client.look_at(ID).trials
        assert (trial.bundle, trial.code, trial.golden_passed) == ("cap-inspect@1.0.0", "", trial.golden_total)
    finally:
        line.close()
