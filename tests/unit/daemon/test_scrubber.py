"""Reading stored files slowly: with the real reader process, a real registry and real files."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from lenskeep.bundle.archive import BundleReader, Limits
from lenskeep.config import Config, Slot, Storage
from lenskeep.daemon.events import Events
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.places import Places
from lenskeep.daemon.plans import Plans
from lenskeep.daemon.recheck import verify_stored
from lenskeep.daemon.scrubber import DAY_S, LINE_LATE, Reader, Scrubber
from lenskeep.database import Database, open_database
from lenskeep.errors import BlobDamagedError
from lenskeep.registry import audit, bundles, scrub
from lenskeep.registry.blobs import Blobs
from tests import tinybundle
from tests.unit.test_clock import NOW, SetClock

REGISTRY = "lenskeep.registry.schema"


@dataclass
class Store:
    """A store with one bundle in it, and a scrubber over it."""

    scrubber: Scrubber
    database: Database
    blobs: Blobs
    clock: SetClock
    operations: Operations
    bundle_id: str

    async def files(self) -> list[scrub.Stored]:
        async with self.database.read() as tx:
            return await scrub.stored(tx)

    async def actions(self) -> list[str]:
        async with self.database.read() as tx:
            return [row["action"] for row in await audit.page(tx, limit=50)]

    async def read_all(self) -> None:
        """Ask for a whole reading and wait for its end."""
        operation = await self.scrubber.start("test")
        done = await self.operations.wait(operation.id, 30)
        assert done.state == "succeeded", done.error


@asynccontextmanager
async def store_in(folder: Path, **storage: float) -> AsyncIterator[Store]:
    with tempfile.TemporaryDirectory(prefix="lk-") as run:  # short enough for a socket's path
        async with _store_in(Places(folder, Path(run)), storage) as store:
            yield store


@asynccontextmanager
async def _store_in(places: Places, storage: dict[str, float]) -> AsyncIterator[Store]:
    folder = places.state_dir
    places.make()
    blobs = Blobs(folder, free_bytes_min=0)
    blobs.prepare_in_thread()
    clock = SetClock(NOW)
    async with open_database(places.registry, REGISTRY) as database, asyncio.TaskGroup() as tasks:
        events = Events(clock, 0)
        operations = Operations(database, events, clock, tasks)
        plans = Plans(Config(slot=[Slot(name="main")], camera=[]), places, database, blobs)
        scrubber = Scrubber(Storage(**storage), places, database, blobs, plans, operations, events, clock)  # type: ignore[arg-type]
        bundle_id = await _stored(database, blobs)
        await scrubber.begin()
        loop = tasks.create_task(scrubber.run())
        yield Store(scrubber, database, blobs, clock, operations, bundle_id)
        loop.cancel()


async def _stored(database: Database, blobs: Blobs) -> str:
    staging = blobs.stage()
    reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), staging.open_member)
    reader.feed(tinybundle.pack(tinybundle.parts()))
    verified = reader.finish()
    blobs.commit_in_thread([(staging.path_of(file.name), file.sha256) for file in verified.files])
    staging.close()
    async with database.write() as tx:
        return (await bundles.insert(tx, "id-1", verified, at_ms=1, by="test")).id


def rot(path: Path) -> None:
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


async def test_damage_is_set_aside_recorded_and_named_once(tmp_path: Path) -> None:
    async with store_in(tmp_path) as store:
        target = (await store.files())[0]
        rot(store.blobs.path(target.file))
        await store.read_all()
        await store.read_all()
        found = await store.scrubber.damages()
        assert [(one.file, one.what) for one in found] == [(target.file, "damaged")]
        assert (await store.actions()).count("damage") == 1
        assert not store.blobs.path(target.file).exists() and (tmp_path / "damaged" / target.file).exists()
        assert [check.code for check in await store.scrubber.checks()] == ["LK-5003"]


@pytest.mark.parametrize("lies", [False, True])
async def test_a_neighbours_copy_heals_and_a_wrong_copy_does_not(tmp_path: Path, lies: bool) -> None:
    class Neighbour:
        async def fetch(self, sha256: str, size_bytes: int) -> AsyncIterator[bytes]:
            data = whole[sha256]
            assert size_bytes == len(data)
            for at in range(0, len(data), 7):
                yield data[at : at + 7] if not (lies and at == 0) else b"garbage"

    async with store_in(tmp_path) as store:
        whole = {file.file: store.blobs.path(file.file).read_bytes() for file in await store.files()}
        target = max(await store.files(), key=lambda file: file.size_bytes)
        store.scrubber.repairer = Neighbour()
        store.blobs.path(target.file).unlink()
        await store.read_all()
        assert bool(await store.scrubber.damages()) == lies
        assert store.blobs.path(target.file).exists() != lies
        assert ("repair" in await store.actions()) != lies
        assert not list((tmp_path / "staging").iterdir())


@pytest.mark.attack(74)
async def test_a_changed_file_list_in_the_registry_is_not_what_was_signed(tmp_path: Path) -> None:
    async with store_in(tmp_path) as store:
        async with store.database.read() as tx:
            bundle, files = await bundles.get(tx, store.bundle_id), await bundles.files(tx, store.bundle_id)
        assert "as signed" in verify_stored(bundle, files, store.blobs, tinybundle.trust(), tinybundle.NOW_S)
        with pytest.raises(BlobDamagedError):
            verify_stored(bundle, files[:-1], store.blobs, tinybundle.trust(), tinybundle.NOW_S)


async def test_a_pass_goes_on_after_the_file_at_which_the_last_daemon_stopped(tmp_path: Path) -> None:
    async with store_in(tmp_path) as store:
        files = await store.files()
        middle = files[len(files) // 2]
        async with store.database.write() as tx:
            await scrub.save_progress(tx, scrub.Progress(cursor=middle.cursor, files_done=5, whole_passes=3))
    async with open_database(tmp_path / "registry.sqlite", REGISTRY) as database:
        async with database.read() as tx:
            at = await scrub.progress(tx)
        assert at.cursor == middle.cursor and at.whole_passes == 3


async def test_a_store_that_was_not_read_for_long_is_told_whatever_the_wall_clock_says(tmp_path: Path) -> None:
    async with store_in(tmp_path, scrub_days=1.0) as store:
        await store.read_all()
        assert [check.passed for check in await store.scrubber.checks()] == [True]
        store.clock.wall = 86400.0  # 1970
        store.clock.boot += 1.5 * DAY_S
        assert [check.code for check in await store.scrubber.checks()] == ["LK-5005"]


async def test_a_reading_stops_in_the_middle_of_a_file_while_something_must_not_be_disturbed(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(os.urandom(1 << 20))
    why = [LINE_LATE]
    async with Reader(1e12, lambda: why[0]) as reader:
        answer = asyncio.ensure_future(reader.read(path, "0" * 64))
        done, _ = await asyncio.wait([answer], timeout=0.7)
        assert not done
        why[0] = ""
        assert await answer == f"damaged {1 << 20}"


async def test_the_reader_keeps_to_its_rate(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(1 << 20))
    async with Reader(2.0 * (1 << 20), lambda: "") as reader:
        began = asyncio.get_running_loop().time()
        await reader.read(path, "")
        assert asyncio.get_running_loop().time() - began >= 0.45


async def test_the_reader_follows_no_link_and_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    async with Reader(1e12, lambda: "") as reader:
        assert (await reader.read(tmp_path / "link", "0" * 64)).startswith("unreadable")
        assert await reader.read(tmp_path / "nothing", "0" * 64) == "missing"


async def test_retention_keeps_the_versions_that_came_last_and_not_those_with_the_latest_times(tmp_path: Path) -> None:
    async with store_in(tmp_path) as store:
        staging = store.blobs.stage()
        reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), staging.open_member)
        reader.feed(tinybundle.pack(tinybundle.parts({"version": "9.9.9"})))
        verified = reader.finish()
        staging.close()
        async with store.database.write() as tx:
            newer = await bundles.insert(tx, "id-2", verified, at_ms=0, by="test")  # a clock that went back
            assert [bundle.id for bundle in await bundles.everything(tx)] == [newer.id, store.bundle_id]
