"""A process to be killed: counts results, adds to the record and tells a fleet, sixty times faster than time goes.

The parts are the daemon's own; the fleet is a database that takes each number once, behind a line that loses calls,
doubles them and loses answers.
"""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
import time
from pathlib import Path

from lenskeep.clock import BUILT_AT, Clock
from lenskeep.config import MetricsRetention
from lenskeep.daemon.events import Events
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.outbox import Outbox
from lenskeep.database import Database, open_database
from lenskeep.messages.runner import Result, Results, TrialReport
from lenskeep.messages.sync import KINDS, Happening, Record, Trial, Vitals, Window
from lenskeep.registry import audit, bundles

SPEED = 60.0
BUNDLE = "cap@1.0.0"


class FastClock(Clock):
    """A minute lasts a second."""

    def wall_s(self) -> float:
        return BUILT_AT + time.clock_gettime(time.CLOCK_BOOTTIME) * SPEED

    def boot_s(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME) * SPEED


class ToyFleet:
    """What a fleet promises: each number once, durable before the answer."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(path, isolation_level=None)
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("CREATE TABLE IF NOT EXISTS record (box TEXT, n INTEGER, frames INTEGER, what TEXT)")

    def take(self, box: str, records: list[Record]) -> int:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        taken = int(database.execute("SELECT COALESCE(MAX(n), -1) FROM record WHERE box = ?", (box,)).fetchone()[0])
        for one in records:
            if one.n > taken:
                frames = one.frames if isinstance(one, Window) else 0
                what = one.text if isinstance(one, Happening) else type(one).__name__
                what += f" {one.memory_mb}" if isinstance(one, Trial) else ""
                database.execute("INSERT INTO record VALUES (?, ?, ?, ?)", (box, one.n, frames, what))
                taken = one.n
        database.execute("COMMIT")
        return taken


def result(sequence: int, now_ms: int) -> Result:
    return Result(
        sequence=sequence, camera="c", frame=sequence, captured_ms=now_ms, outcome="OK", label="good", score=1.0,
        margin=0.5, detections=[], bundle=BUNDLE, digest="d" * 64, wait_us=10, preprocess_us=20, inference_us=3000,
        decode_us=5, total_us=3035,
    )  # fmt: skip


async def _work(metrics: Metrics, registry: Database, clock: Clock, chance: random.Random) -> None:
    """Count and record until killed; what was not durable is counted again, as a runner sends it again."""
    sequence = metrics.position("main")[1]
    while True:
        batch = [result(sequence + number, clock.now_ms()) for number in range(1, chance.randint(2, 20))]
        sequence = batch[-1].sequence
        metrics.take("main", Results(run="r", results=batch, lost=0))
        await metrics.flush()
        if chance.random() < 0.3:
            async with registry.write() as tx:
                await audit.add(tx, clock, by="test", action="hold", subject="slot main", reason=str(sequence))
        if chance.random() < 0.2:
            report = TrialReport(passed=True, code="", message="", checks=[], memory_mb=sequence)
            async with registry.write() as tx:
                await bundles.record_trial(
                    tx, BUNDLE, report, at_ms=clock.now_ms(), by="test", runtime_key="r", prepared_file=""
                )
        await asyncio.sleep(chance.random() * 0.02)


async def _tell(outbox: Outbox, fleet: ToyFleet, chance: random.Random, *, fair: bool) -> bool:
    """Make one call through a bad line; say whether nothing was left to tell."""
    await outbox.collect()
    name, _, records = await outbox.batch()
    if not fair and chance.random() < 0.2:
        return False
    taken = fleet.take(name, records)
    if not fair and chance.random() < 0.3:
        fleet.take(name, records)
    if not fair and chance.random() < 0.3:
        return False
    await outbox.taken(name, taken, None)
    return not records


async def main(folder: Path, seed: int, last: bool) -> None:
    clock, chance = FastClock(), random.Random(seed)
    async with (
        open_database(folder / "metrics.sqlite", "lenskeep.registry.metrics_schema") as windows,
        open_database(folder / "registry.sqlite", "lenskeep.registry.schema") as registry,
    ):
        metrics = Metrics(windows, Events(clock, 0), clock, MetricsRetention())
        await metrics.load(["main"])
        async with registry.write() as tx:
            await audit.add(tx, clock, by="device", action="start", subject="device")
            await tx.run(
                "INSERT OR IGNORE INTO bundle (id, name, version, digest, model_sha256, manifest, signature, key_id,"
                " signer, size_bytes, state, parent, imported_ms, imported_by, file_sha256, import_order)"
                " VALUES (?, 'cap', '1.0.0', 'd', 'd', x'', x'', '', '', 1, 'qualified', '', 1, '', '', 1)",
                BUNDLE,
            )
            if await audit.last_of(tx, "enrol certificate") is None:
                await audit.add(tx, clock, by="test", action="enrol certificate", subject="device")

        async def vitals() -> Vitals:
            return Vitals(n=0, at_ms=clock.now_ms())

        box = Outbox(windows, registry, metrics, clock, 32, lambda: True, lambda: {"main": "CPU"}, vitals)
        await box.begin()
        box.kinds = frozenset(KINDS)
        fleet = ToyFleet(folder / "fleet.sqlite")
        if last:
            idle = 0
            while idle < 4:
                idle = idle + 1 if await _tell(box, fleet, chance, fair=True) else 0
                await asyncio.sleep(0.5)  # half a minute: open windows close
            return
        work = asyncio.create_task(_work(metrics, registry, clock, chance))
        while not work.done():
            await _tell(box, fleet, chance, fair=False)
            await asyncio.sleep(chance.random() * 0.1)
        await work


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "last"))
