"""Neighbours: a real door over real blobs, and a device that takes what it can from there, whatever they say."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from lenskeep.bundle.archive import BundleReader, Limits
from lenskeep.config import Neighbours as Wishes
from lenskeep.daemon.neighbourdoor import CONNECTIONS_MAX, NeighbourDoor
from lenskeep.daemon.neighbours import Neighbours
from lenskeep.daemon.repairs import Repairs
from lenskeep.daemon.sources import HttpSource, open_session
from lenskeep.database import open_database
from lenskeep.errors import PeerError
from lenskeep.registry import bundles
from lenskeep.registry.blobs import Blobs
from lenskeep.trust.names import target_file
from tests import tinybundle
from tests.shelf import Shelf, shelf_in
from tests.unit.daemon.test_downloads import MODEL_BYTES, REGISTRY, Rig, bundle, listed, noise, rig_in
from tests.unit.test_clock import NOW, SetClock

DATA = bundle("1.0.0", noise(1, MODEL_BYTES))
LISTING = listed(DATA, "1.0.0")
TARGET = target_file(LISTING.path, LISTING.sha256)


class Near:
    """A device that has the bundle, and its door."""

    def __init__(self, folder: Path, database: object, blobs: Blobs, mb_s: float) -> None:
        self.why = ""
        self.blobs = blobs
        wishes = Wishes(serve=True, address="127.0.0.1", port=0, mb_s=mb_s, transfers_max=2)
        self.door = NeighbourDoor(wishes, database, blobs, lambda: self.why, SetClock(NOW))  # type: ignore[arg-type]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.door.port}"


@contextlib.asynccontextmanager
async def near_in(folder: Path, mb_s: float = 1000.0) -> AsyncIterator[Near]:
    blobs = Blobs(folder, free_bytes_min=0)
    blobs.prepare_in_thread()
    async with open_database(folder / "registry.sqlite", REGISTRY) as database:
        staging = blobs.stage()
        reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), staging.open_member)
        reader.feed(DATA)
        verified = reader.finish()
        blobs.commit_in_thread([(staging.path_of(file.name), file.sha256) for file in verified.files])
        staging.close()
        async with database.write() as tx:
            await bundles.insert(tx, "id-1", verified, at_ms=1, by="test")
        near = Near(folder, database, blobs, mb_s)
        task = asyncio.create_task(near.door.run())
        while not near.door.port:
            await asyncio.sleep(0.01)
        yield near
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture
async def near(tmp_path: Path) -> AsyncIterator[Near]:
    (tmp_path / "near").mkdir()
    async with near_in(tmp_path / "near") as made:
        yield made


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    (tmp_path / "device").mkdir()
    async with rig_in(tmp_path / "device") as made:
        yield made


def asking(rig: Rig, *addresses: str) -> Neighbours:
    rig.downloads.neighbours = made = Neighbours(addresses, rig.allowance, rig.clock)
    return made


# --- the door ---------------------------------------------------------------------------------------------------------


async def test_every_piece_that_is_asked_for_is_the_very_file(near: Near) -> None:
    async with aiohttp.ClientSession() as session:
        url = f"{near.address}/v1/repository/{TARGET}"
        async with session.get(url) as answer:
            assert answer.status == 200 and await answer.read() == DATA
        async with session.head(url) as answer:
            assert answer.status == 200 and answer.content_length == len(DATA)
        for begin, end in ((0, 1), (0, 512), (500, 5000), (4000, 1_500_000), (len(DATA) - 1, len(DATA))):
            async with session.get(url, headers={"Range": f"bytes={begin}-{end - 1}"}) as answer:
                assert answer.status == 206 and await answer.read() == DATA[begin:end]
                assert answer.headers["Content-Range"] == f"bytes {begin}-{end - 1}/{len(DATA)}"
        async with session.get(url, headers={"Range": f"bytes={len(DATA)}-"}) as answer:
            assert answer.status == 416
        async with session.get(url, headers={"Range": "lines=1-2"}) as answer:
            assert answer.status == 416


@pytest.mark.parametrize(
    "path",
    [
        "", "metadata/timestamp.json", "targets/", "targets/models/cap-inspect/", "targets/../registry.sqlite",
        TARGET.replace(LISTING.sha256, "0" * 64), TARGET.replace("1.0.0", "1.0.1"), f"{TARGET}/..", "%2e%2e/state",
    ],
)  # fmt: skip
async def test_who_does_not_know_a_digest_gets_nothing(near: Near, path: str) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"{near.address}/v1/repository/{path}") as answer:
        assert answer.status == 404 and await answer.read() in (b"", b"404: Not Found")
    async with aiohttp.ClientSession() as session, session.put(f"{near.address}/v1/repository/{TARGET}") as answer:
        assert answer.status == 405


async def test_damaged_file_that_was_set_aside_is_not_handed_out(near: Near) -> None:
    near.blobs.path(hashlib.sha256(noise(1, MODEL_BYTES)).hexdigest()).unlink()
    async with aiohttp.ClientSession() as session, session.get(f"{near.address}/v1/repository/{TARGET}") as answer:
        assert answer.status == 404


async def test_line_comes_first_before_and_in_the_middle_of_a_transfer(near: Near) -> None:
    async with aiohttp.ClientSession() as session:
        url = f"{near.address}/v1/repository/{TARGET}"
        near.why = "the line is late"
        async with session.get(url) as answer:
            assert answer.status == 503 and answer.headers["Retry-After"]
        near.why = ""
        near.door._wishes = Wishes(serve=True, mb_s=1.0)
        async with session.get(url) as answer:
            await answer.content.readexactly(300_000)
            near.why = "a swap is under way"
            await asyncio.sleep(0.5)
            before = near.door.handed_out
            await asyncio.sleep(0.5)
            assert near.door.handed_out == before
            near.why = ""
            rest = await answer.read()
            assert len(rest) == len(DATA) - 300_000


async def test_more_transfers_and_connections_than_are_wanted_are_turned_away(tmp_path: Path) -> None:
    async with near_in(tmp_path, mb_s=0.5) as near:
        url = f"{near.address}/v1/repository/{TARGET}"
        async with aiohttp.ClientSession() as session:
            first, second = await session.get(url), await session.get(url)
            async with session.get(url) as third:
                assert (first.status, second.status, third.status) == (200, 200, 503)
            first.close()
            second.close()
        held = [await asyncio.open_connection("127.0.0.1", near.door.port) for _ in range(CONNECTIONS_MAX + 5)]
        lost = await asyncio.gather(
            *(asyncio.wait_for(_ends(reader), 0.5) for reader, _ in held), return_exceptions=True
        )
        assert sum(one is True for one in lost) >= 5
        for _, writer in held:
            writer.close()


async def _ends(reader: asyncio.StreamReader) -> bool:
    with contextlib.suppress(ConnectionError):
        await reader.read(1)
    return True


# --- who takes --------------------------------------------------------------------------------------------------------


async def test_large_files_come_from_the_neighbour_and_small_ones_from_the_fleet(rig: Rig, near: Near) -> None:
    asking(rig, near.address)
    assert await rig.fetch(rig.publish(DATA, "1.0.0")) == DATA
    assert (
        rig.downloads.moved[near.address] == MODEL_BYTES - 2048 + 512 or rig.downloads.moved[near.address] > 1_990_000
    )
    assert rig.shelf.sent < 15_000


async def test_fleet_that_goes_away_after_the_listing_is_not_needed(rig: Rig, near: Near) -> None:
    asking(rig, near.address)
    assert await rig.fetch(LISTING) == DATA
    assert not rig.shelf.sent or rig.shelf.sent < 2000  # it only says 404


@pytest.mark.parametrize("lie", [Shelf.garbage, Shelf.hang_up, Shelf.drip, Shelf.no_ranges, Shelf.wrong_range])
async def test_lying_neighbour_costs_only_a_fall_back_to_the_fleet(rig: Rig, tmp_path: Path, lie: object) -> None:
    path = tmp_path / "liar" / "v1" / "repository" / TARGET
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    async with shelf_in(tmp_path / "liar") as liar:
        liar.lie = lie  # type: ignore[assignment]
        book = asking(rig, liar.address)
        assert await rig.fetch(rig.publish(DATA, "1.0.0")) == DATA
        assert liar.asked
        assert rig.shelf.sent < len(DATA) * 1.02
        assert not book.carriers(TARGET), "it is not asked again soon"


async def test_neighbour_that_is_not_there_costs_a_moment(rig: Rig) -> None:
    asking(rig, "http://127.0.0.1:9")
    assert await rig.fetch(rig.publish(DATA, "1.0.0")) == DATA


def test_fleet_names_only_plain_addresses(tmp_path: Path) -> None:
    book = Neighbours(["http://cam-2:8418"], None, SetClock(NOW))  # type: ignore[arg-type]
    book.heard(
        ["http://cam-3:8418", "https://x/", "file:///etc/passwd", "http://a@b:1", "http://cam-4:8418/x", "cam-5"]
    )
    assert {one.name for one in book.carriers(TARGET)} == {"http://cam-2:8418", "http://cam-3:8418"}


async def test_neighbours_cost_no_budget(tmp_path: Path, near: Near) -> None:
    (tmp_path / "metered").mkdir()
    async with rig_in(tmp_path / "metered", metered_mb_per_day=1) as rig:
        asking(rig, near.address)
        assert await rig.fetch(rig.publish(DATA, "1.0.0")) == DATA
        assert (rig.allowance.left() or 0) > 980_000


# --- repair -----------------------------------------------------------------------------------------------------------


async def test_damaged_file_is_had_again_from_a_neighbour_past_one_that_lies(
    tmp_path: Path, near: Near, rig: Rig
) -> None:
    model = noise(1, MODEL_BYTES)
    path = tmp_path / "liar" / "v1" / "repository" / TARGET
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)

    @contextlib.asynccontextmanager
    async def fleet() -> AsyncIterator[HttpSource]:
        async with open_session() as session:
            yield HttpSource(session, rig.shelf.address)

    async with shelf_in(tmp_path / "liar") as liar:
        liar.lie = Shelf.garbage
        book = Neighbours([liar.address], rig.allowance, rig.clock)
        repairs = Repairs(near.door._database, book, rig.allowance, fleet)
        sha256 = hashlib.sha256(model).hexdigest()
        wrong = b"".join([chunk async for chunk in repairs.fetch(sha256, MODEL_BYTES)])
        assert wrong != model and len(wrong) == MODEL_BYTES
        with pytest.raises(PeerError):  # nobody else has it
            [chunk async for chunk in repairs.fetch(sha256, MODEL_BYTES)]
        rig.publish(DATA, "1.0.0")
        assert b"".join([chunk async for chunk in repairs.fetch(sha256, MODEL_BYTES)]) == model
        assert rig.shelf.sent < MODEL_BYTES + 2000
        book.heard([near.address])
        rig.shelf.forget()
        assert b"".join([chunk async for chunk in repairs.fetch(sha256, MODEL_BYTES)]) == model
        assert not rig.shelf.sent
