"""Trials on their way from the registry into the outbox: each once, whatever was put back from a copy."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lenskeep.clock import Clock
from lenskeep.config import MetricsRetention
from lenskeep.daemon.events import Events
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.outbox import Outbox
from lenskeep.database import Database, open_database
from lenskeep.messages.runner import TrialReport
from lenskeep.messages.sync import KINDS, Trial, Vitals
from lenskeep.registry import bundles

VERSIONS = ("1.0.0", "1.1.0")


class Box:
    """An outbox in one start of its daemon, and a fleet that has everything up to `taken`."""

    def __init__(self, outbox: Outbox, registry: Database) -> None:
        self.outbox = outbox
        self.registry = registry
        self.newer = True  # the fleet knows of trials

    async def tried(self, version: str, score: float) -> None:
        report = TrialReport(
            passed=score > 0.9, code="" if score > 0.9 else "LK-8001", message="", checks=[], provider="CPU",
            golden_passed=4, golden_total=4, golden_score=score, p50_ms=3.0, p99_ms=5.5, memory_mb=40,
        )  # fmt: skip
        async with self.registry.write() as tx:
            await bundles.record_trial(tx, version, report, at_ms=7, by="t", runtime_key="ort1.31-ab", prepared_file="")

    async def tell(self) -> list[tuple[str, float]]:
        """Make one call that arrives, and return the trials in it."""
        await self.outbox.collect()
        name, after, records = await self.outbox.batch()
        self.outbox.kinds = frozenset(KINDS if self.newer else ())
        await self.outbox.taken(name, records[-1].n if records else after, after)
        return [(one.bundle.partition("@")[2], one.golden_score) for one in records if isinstance(one, Trial)]


@asynccontextmanager
async def start(folder: Path) -> AsyncIterator[Box]:
    clock = Clock()
    async with (
        open_database(folder / "metrics.sqlite", "lenskeep.registry.metrics_schema") as windows,
        open_database(folder / "registry.sqlite", "lenskeep.registry.schema") as registry,
    ):
        async with registry.write() as tx:
            for version in VERSIONS:
                await tx.run(
                    "INSERT OR IGNORE INTO bundle (id, name, version, digest, model_sha256, manifest, signature, key_id,"
                    " signer, size_bytes, state, parent, imported_ms, imported_by, file_sha256, import_order)"
                    " VALUES (?1, 'cap', ?1, ?1, 'abcd', x'', x'', '', '', 1, 'qualified', '', 1, '', '', 1)",
                    version,
                )  # fmt: skip

        async def vitals() -> Vitals:
            return Vitals(n=0, at_ms=1)

        metrics = Metrics(windows, Events(clock, 0), clock, MetricsRetention())
        outbox = Outbox(windows, registry, metrics, clock, 32, lambda: True, dict, vitals)
        await outbox.begin()
        yield Box(outbox, registry)


async def test_a_new_member_tells_what_counts_now_and_then_every_trial_once(tmp_path: Path) -> None:
    async with start(tmp_path) as box:
        await box.tried("1.0.0", 0.99)
        await box.tried("1.0.0", 0.95)
        await box.tried("1.1.0", 0.4)
        assert await box.tell() == [], "the fleet was not heard yet"
        assert await box.tell() == [("1.0.0", 0.95), ("1.1.0", 0.4)]
        await box.tried("1.1.0", 0.97)
        await box.tried("1.1.0", 0.98)
    async with start(tmp_path) as box:
        assert [await box.tell(), await box.tell()] == [[], [("1.1.0", 0.97), ("1.1.0", 0.98)]]
        assert await box.tell() == []


async def test_an_older_fleet_is_told_of_no_trial_and_hears_what_counts_once_it_is_newer(tmp_path: Path) -> None:
    async with start(tmp_path) as box:
        box.newer = False
        await box.tried("1.0.0", 0.99)
        assert [await box.tell() for _ in range(3)] == [[], [], []]
        box.newer = True
        assert [await box.tell(), await box.tell()] == [[], [("1.0.0", 0.99)]]


async def test_a_trial_says_what_it_found_and_on_what(tmp_path: Path) -> None:
    async with start(tmp_path) as box:
        await box.tried("1.1.0", 0.5)
        await box.tell()
        await box.outbox.collect()
        (told,) = [one for one in (await box.outbox.batch())[2] if isinstance(one, Trial)]
    assert told == Trial(
        n=told.n, at_ms=7, bundle="cap@1.1.0", digest="abcd", provider="CPU", hardware="ort1.31-ab", code="LK-8001",
        golden_passed=4, golden_total=4, golden_score=0.5, p50_ms=3.0, p99_ms=5.5, memory_mb=40,
    )  # fmt: skip


async def test_a_registry_that_was_put_back_goes_on_with_its_own_trials(tmp_path: Path) -> None:
    async with start(tmp_path) as box:
        await box.tried("1.0.0", 0.99)
        await box.tell()
        await box.tell()
    shutil.copy(tmp_path / "registry.sqlite", tmp_path / "kept")
    async with start(tmp_path) as box:
        for _ in range(3):
            await box.tried("1.1.0", 0.98)
        assert [await box.tell(), len(await box.tell())] == [[], 3]
    shutil.copy(tmp_path / "kept", tmp_path / "registry.sqlite")
    async with start(tmp_path) as box:
        await box.tried("1.1.0", 0.93)
        assert [await box.tell(), await box.tell()] == [[], [("1.1.0", 0.93)]]


async def test_an_outbox_that_was_put_back_tells_no_trial_twice(tmp_path: Path) -> None:
    async with start(tmp_path) as box:
        await box.tried("1.0.0", 0.99)
        await box.tell()
    shutil.copy(tmp_path / "metrics.sqlite", tmp_path / "kept")
    async with start(tmp_path) as box:
        await box.tried("1.1.0", 0.98)
        told = [*await box.tell(), *await box.tell()]
        assert ("1.1.0", 0.98) in told
        _, after, _ = await box.outbox.batch()
    shutil.copy(tmp_path / "kept", tmp_path / "metrics.sqlite")
    async with start(tmp_path) as box:
        await box.outbox.collect()
        name, _, _ = await box.outbox.batch()
        await box.outbox.taken(name, after, -1)  # the fleet has more than this outbox ever sent
        await box.tried("1.1.0", 0.97)
        assert [await box.tell(), await box.tell()] in ([[("1.1.0", 0.97)], []], [[], [("1.1.0", 0.97)]])


async def test_a_fleet_that_was_put_back_hears_once_more_what_counts(tmp_path: Path) -> None:
    async with start(tmp_path) as box:
        for score in (0.4, 0.98):
            await box.tried("1.1.0", score)
        assert [await box.tell(), await box.tell()] == [[], [("1.1.0", 0.98)]]
        name, after, _ = await box.outbox.batch()
        for _ in range(3):  # nothing new was sent meanwhile
            await box.outbox.taken(name, -1, after)
        assert [await box.tell(), await box.tell()] == [[("1.1.0", 0.98)], []]


async def test_an_answer_that_the_fleet_held_for_long_does_not_look_as_if_it_was_put_back(tmp_path: Path) -> None:
    async with start(tmp_path) as box:
        await box.tried("1.1.0", 0.98)
        name, held, _ = await box.outbox.batch()
        told = [*await box.tell(), *await box.tell()]
        assert told == [("1.1.0", 0.98)]
        await box.outbox.taken(name, held, held)  # the answer to the first call comes only now
        assert await box.tell() == []


async def test_a_trial_that_ends_wakes_the_outbox(tmp_path: Path) -> None:
    async with start(tmp_path) as box:
        await box.tell()
        await box.tell()
        heard = asyncio.Event()
        box.outbox.told = heard.set
        work = asyncio.create_task(box.outbox.run())
        await asyncio.sleep(0.2)
        heard.clear()
        await box.tried("1.1.0", 0.97)
        box.outbox.heed("bundle", {})
        async with asyncio.timeout(2.0):
            await heard.wait()
        work.cancel()


async def test_a_stick_carries_trials_without_a_fleet_that_was_ever_heard_and_none_twice(tmp_path: Path) -> None:
    async def carried(box: Box) -> list[tuple[str, float]]:
        found = await box.outbox.carry(-1)
        records = found[2] if found is not None else []
        return [(one.bundle.partition("@")[2], one.golden_score) for one in records if isinstance(one, Trial)]

    async with start(tmp_path) as box:
        await box.tried("1.0.0", 0.97)
        assert await carried(box) == [("1.0.0", 0.97)]
        await box.tried("1.1.0", 0.5)
        assert await carried(box) == [("1.0.0", 0.97), ("1.1.0", 0.5)], "they stay until they are acknowledged"
    async with start(tmp_path) as box:
        assert await carried(box) == [("1.0.0", 0.97), ("1.1.0", 0.5)]
        found = await box.outbox.carry(-1)
        assert found is not None
        assert await box.outbox.acknowledged(found[0].name, found[2][-1].n) == len(found[2])
        assert await box.outbox.acknowledged("ab" * 16, 10**6) == 0, "another outbox"
        assert await carried(box) == []
        assert await box.tell() == []
