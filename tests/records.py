"""Records for tests: a real chain in real SQLite, the device's part around it, and an export of it."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from lenskeep.bundle.keys import PrivateKey, generate_key, load_private_key
from lenskeep.clock import Clock
from lenskeep.config import Config
from lenskeep.daemon.record import Record
from lenskeep.database import Database, open_database
from lenskeep.errors import LenskeepError
from lenskeep.registry import audit

SCHEMA = "lenskeep.registry.schema"
DEVICE = "cam-07"
KEY = load_private_key(os.environ["RECORD_KEY"].encode()) if "RECORD_KEY" in os.environ else generate_key()
PEOPLE = ["unix:root", "unix:anna", "token:panel", "fleet", "device"]
ACTIONS = ["activate", "swapped", "confirm", "rollback", "trial", "import", "hold", "trust key", "add token"]
TEXTS = [
    "",
    "the line was changed",
    "nächste Schicht 第二班",
    'a "quoted" <b>word</b>',
    "=1+1",
    "x" * 200,
    "\u202egnp.exe",
]


class Kept:
    """One device's record, open."""

    def __init__(self, folder: Path, database: Database, key: PrivateKey, device: str) -> None:
        self.database = database
        self.notes: list[LenskeepError] = []
        self.record = Record(database, Clock(), key, device, folder / "record.head.json", self.notes)

    async def begin(self, starts: int = 1) -> None:
        await self.record.begin(Config(), starts=starts, orderly=True)

    async def note(self, count: int, seed: int = 7) -> None:
        """Add entries as the daemon does, each in a transaction of its own."""
        chance = random.Random(seed)
        for _ in range(count):
            async with self.database.write() as tx:
                await audit.add(
                    tx, Clock(), by=chance.choice(PEOPLE), action=chance.choice(ACTIONS),
                    subject=chance.choice(["slot main", "cap-inspect@1.0.0"]), reason=chance.choice(TEXTS),
                    before=chance.choice(TEXTS), after=chance.choice(TEXTS),
                )  # fmt: skip

    async def lines(self, first_ms: int = 0, until_ms: int = 2**53) -> list[bytes]:
        """The export, line by line."""
        data = b"".join([piece async for piece in self.record.export(first_ms, until_ms)])
        return data.splitlines(keepends=True)


@asynccontextmanager
async def kept(folder: Path, key: PrivateKey = KEY, device: str = DEVICE) -> AsyncIterator[Kept]:
    """Open a record in a folder, as the daemon does at its start."""
    async with open_database(folder / "registry.sqlite", SCHEMA) as database:
        yield Kept(folder, database, key, device)


async def exported(folder: Path, count: int, seed: int = 7) -> list[bytes]:
    """Make a record of so many changes and return its export."""
    async with kept(folder) as device:
        await device.begin()
        await device.note(count, seed)
        return await device.lines()
