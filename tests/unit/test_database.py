"""The one write door: nothing of another task is lost, a cancelled writer leaves nothing open, damage is named."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lenskeep.database import Database, open_database
from lenskeep.errors import DeviceError, RegistryCorruptError

SCHEMA = "lenskeep.registry.schema"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "r.sqlite", SCHEMA) as opened:
        yield opened


async def count(database: Database) -> int:
    async with database.read() as tx:
        row = await tx.one("SELECT COUNT(*) FROM counter")
    assert row is not None
    return int(row[0])


async def test_a_task_that_rolls_back_takes_nothing_of_another_task_with_it(database: Database) -> None:
    async def fails() -> None:
        async with database.write() as tx:
            await tx.run("INSERT INTO counter VALUES ('lost', 1)")
            await asyncio.sleep(0.01)
            raise RuntimeError

    async def succeeds(name: str) -> None:
        async with database.write() as tx:
            await tx.run("INSERT INTO counter VALUES (?, 1)", name)

    outcomes = await asyncio.gather(fails(), succeeds("a"), fails(), succeeds("b"), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [RuntimeError, type(None), RuntimeError, type(None)]
    assert await count(database) == 2


async def test_a_writer_that_is_cancelled_leaves_the_door_open_for_the_next(database: Database) -> None:
    async def slow() -> None:
        async with database.write() as tx:
            await tx.run("INSERT INTO counter VALUES ('lost', 1)")
            await asyncio.sleep(10)

    task = asyncio.create_task(slow())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with database.write() as tx:
        await tx.run("INSERT INTO counter VALUES ('kept', 1)")
    assert await count(database) == 1


async def test_a_reader_sees_no_half_of_a_transaction(database: Database) -> None:
    async with database.write() as tx:
        await tx.run("INSERT INTO counter VALUES ('a', 1)")
        assert await count(database) == 0
    assert await count(database) == 1


@pytest.mark.parametrize("damage", [b"not a database at all " * 300, b"SQLite format 3\0" + b"\xff" * 8000])
async def test_a_damaged_file_is_refused_as_damaged(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "r.sqlite"
    path.write_bytes(damage)
    with pytest.raises(RegistryCorruptError):
        async with open_database(path, SCHEMA):
            pass


async def test_a_registry_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r.sqlite"
    async with open_database(path, SCHEMA) as database, database.write() as tx:
        await tx.run("INSERT INTO schema_step VALUES (9999, 'from the future')")
    with pytest.raises(DeviceError, match="newer version"):
        async with open_database(path, SCHEMA):
            pass
