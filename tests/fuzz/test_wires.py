"""A process that was taken over by its model says whatever it likes: the daemon hangs up and lives on."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from lenskeep.clock import Clock
from lenskeep.daemon.runner_process import RunnerProcess
from tests.fuzz import mutate
from tests.fuzz.targets import TARGETS

CASES = 100


@pytest.mark.timeout(60)
async def test_whatever_a_slots_process_says_the_daemon_only_hangs_up(tmp_path: Path) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    dice, target = random.Random(seed), TARGETS["from-runner"]
    pool = [*target.seeds(), *target.kept()]
    said = [*target.kept(), *(mutate.spoiled(dice, dice.choice(pool), pool) for _ in range(CASES))]

    async def speak(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = said[-1]
        writer.write(len(data).to_bytes(4, "big") + data)
        writer.close()

    server = await asyncio.start_unix_server(speak, tmp_path / "main.sock")
    async with server:
        while said:
            process = RunnerProcess("main", tmp_path / "main.sock", Clock(), lambda _slot, _said: None)
            assert await process.adopt()
            await asyncio.wait_for(process._hear_until_broken(), 10)
            said.pop()
