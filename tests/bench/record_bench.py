"""The record: what an entry costs in its transaction, what verifying costs, on the device and on a laptop.

`python -m tests.bench.record_bench [--entries N]`
Processor time of all threads; the bare side inserts the same columns through the same door without a chain.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from lenskeep.clock import Clock
from lenskeep.database import Transaction
from lenskeep.registry import audit
from lenskeep.trust import recordfile
from tests import records
from tests.bench import rig

ROUNDS = 5
BATCH = 500
_BARE = (
    "INSERT INTO audit_unchained (at_ms, monotonic_s, clock_trusted, actor, action, subject, reason, before, after)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
WORDS = {
    "by": "unix:anna", "action": "activate", "subject": "slot main", "reason": "new caps on line two",
    "before": "settled cap-inspect@1.0.0", "after": "cap-inspect@1.1.0",
}  # fmt: skip


async def chained(tx: Transaction, clock: Clock) -> None:
    """One entry as every change writes it."""
    await audit.add(tx, clock, **WORDS)


async def bare(tx: Transaction, clock: Clock) -> None:
    """The same columns without sequence, hash and boot."""
    await tx.insert(_BARE, clock.now_ms(), clock.monotonic_s(), clock.trusted(), *WORDS.values())


async def cost_ms(device: records.Kept, add: Callable[[Transaction, Clock], Awaitable[None]]) -> float:
    """Milliseconds of processor time for one entry, without the transaction around it."""
    clock = Clock()
    async with device.database.write() as tx:
        begun = time.process_time()
        for _ in range(BATCH):
            await add(tx, clock)
        return (time.process_time() - begun) / BATCH * 1000


async def measure(folder: Path, entries: int) -> None:
    """Measure and print."""
    async with records.kept(folder) as device:
        await device.begin()
        appends, bares = [], []
        for _ in range(ROUNDS):
            appends.append(await cost_ms(device, chained))
            bares.append(await cost_ms(device, bare))
        while (await device.record.sign()).sequence < entries - 1:
            await cost_ms(device, chained)
        begun = time.process_time()
        await device.record.sign(anew=True)
        sign_ms = (time.process_time() - begun) * 1000
        begun = time.process_time()
        verdict = await device.record.verify()
        device_us = (time.process_time() - begun) / verdict.entries * 1e6
        lines = await device.lines()
    begun = time.process_time()
    assert recordfile.verify(lines, key=records.KEY.public).whole and verdict.whole
    laptop_us = (time.process_time() - begun) / verdict.entries * 1e6
    rig.print_table(
        f"The record, {verdict.entries} entries, {ROUNDS} rounds of {BATCH}, medians",
        ["figure", "measured", "must"],
        [
            ["append, ms of processor", f"{rig.median(appends):.3f}", "0.3"],
            ["of it the row alone, ms", f"{rig.median(bares):.3f}", ""],
            ["sign a head and keep it, ms of processor", f"{sign_ms:.1f}", ""],
            ["verify on the device, µs an entry", f"{device_us:.0f}", ""],
            ["verify an export, µs an entry", f"{laptop_us:.0f}", ""],
            ["bytes of an export, an entry", f"{sum(map(len, lines)) / verdict.entries:.0f}", ""],
        ],
    )


def main() -> None:
    """Read the arguments and go."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--entries", type=int, default=10_000)
    folder = Path(tempfile.mkdtemp(prefix="lk-bench-"))
    try:
        asyncio.run(measure(folder, parser.parse_args().entries))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
