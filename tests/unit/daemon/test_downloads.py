"""Bundles over the air, against a web server that counts every byte and lies: how much is fetched, and what a lie costs."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
import pytest

from lenskeep.bundle.archive import BundleReader, Limits
from lenskeep.config import Fleet
from lenskeep.daemon.allowance import MEGABYTE, Allowance
from lenskeep.daemon.downloads import Downloads
from lenskeep.daemon.sources import HttpSource, Pace, open_session
from lenskeep.database import open_database
from lenskeep.errors import (
    FleetAnswerError,
    ListingMismatchError,
    MeteredBudgetError,
    PeerError,
    SourceTooSlowError,
    StorageFullError,
)
from lenskeep.messages.trust import Listing
from lenskeep.registry.blobs import Blobs
from lenskeep.trust.names import target_file
from tests import tinybundle
from tests.ports import free_port
from tests.shelf import Lie, Shelf, shelf_in
from tests.unit.test_clock import NOW, SetClock

REGISTRY = "lenskeep.registry.schema"
IMPATIENT = Pace(connect_s=0.5, silence_s=0.5, grace_s=0.5, bytes_s_min=50_000)
MODEL_BYTES = 2_000_000


def noise(seed: int, length: int) -> bytes:
    return random.Random(seed).randbytes(length)


def bundle(version: str, model: bytes) -> bytes:
    """A bundle as small as one can be, but for its model: five files."""
    return tinybundle.pack(tinybundle.parts({"version": version}) | {"model.onnx": model})


def listed(data: bytes, version: str) -> Listing:
    return Listing(
        path=f"models/cap-inspect/{version}.lkb", role="acme", length_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(), keys=[], expires_s=0,
    )  # fmt: skip


def progress(_done: int, _total: int) -> None:
    pass


@dataclass
class Rig:
    """A device's downloads, and the server that they come from."""

    folder: Path
    shelf: Shelf
    blobs: Blobs
    clock: SetClock
    downloads: Downloads
    allowance: Allowance
    session: aiohttp.ClientSession

    def publish(self, data: bytes, version: str) -> Listing:
        listing = listed(data, version)
        path = self.shelf.folder / target_file(listing.path, listing.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return listing

    def store(self, data: bytes) -> None:
        """Have a bundle's files as blobs here."""
        staging = self.blobs.stage()
        reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), staging.open_member)
        reader.feed(data)
        verified = reader.finish()
        self.blobs.commit_in_thread([(staging.path_of(file.name), file.sha256) for file in verified.files])
        staging.close()

    async def fetch(self, listing: Listing, pace: Pace = IMPATIENT) -> bytes:
        source = HttpSource(self.session, self.shelf.address, pace=pace)
        return (await self.downloads.fetch(listing, source, progress)).read_bytes()

    def part(self, listing: Listing) -> Path:
        return self.folder / "incoming" / f"{listing.sha256}.part"

    def size(self, listing: Listing) -> int:
        path = self.part(listing)
        return path.stat().st_size if path.exists() else 0


@asynccontextmanager
async def rig_in(folder: Path, **fleet: int) -> AsyncIterator[Rig]:
    blobs = Blobs(folder, free_bytes_min=0)
    blobs.prepare_in_thread()
    clock = SetClock(NOW)
    async with (
        shelf_in(folder / "shelf") as shelf,
        open_session() as session,
        open_database(folder / "registry.sqlite", REGISTRY) as database,
    ):
        allowance = Allowance(Fleet(**fleet), database, clock)
        await allowance.begin()
        downloads = Downloads(folder / "incoming", blobs, allowance, pause_s=0.01)
        downloads.prepare_in_thread(set())
        yield Rig(folder, shelf, blobs, clock, downloads, allowance, session)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rig_in(tmp_path) as made:
        yield made


# --- how much is fetched ----------------------------------------------------------------------------------------------


async def test_update_with_one_large_file_changed_costs_that_file_and_two_percent(rig: Rig) -> None:
    first, second = bundle("1.0.0", noise(1, MODEL_BYTES)), bundle("1.1.0", noise(2, MODEL_BYTES))
    rig.store(first)
    listing = rig.publish(second, "1.1.0")
    assert await rig.fetch(listing) == second
    cost = rig.shelf.sent + rig.shelf.got
    print(f"sent {rig.shelf.sent}, asked {rig.shelf.got}, over the model {cost - MODEL_BYTES}")
    assert cost <= MODEL_BYTES * 1.02
    assert rig.downloads.moved["disk"] == len(tinybundle.png()) + len(b"# A card\n") + len(b"Apache-2.0\n")


async def test_update_with_the_same_model_costs_the_signature_and_the_manifest(rig: Rig) -> None:
    model = noise(1, MODEL_BYTES)
    rig.store(bundle("1.0.0", model))
    listing = rig.publish(bundle("1.1.0", model), "1.1.0")
    await rig.fetch(listing)
    print(f"sent {rig.shelf.sent}, asked {rig.shelf.got}")
    assert rig.shelf.sent + rig.shelf.got < 8_000
    assert rig.downloads.moved["disk"] >= MODEL_BYTES


async def test_bundle_signed_anew_with_nothing_changed_costs_its_signature(rig: Rig) -> None:
    data = bundle("1.0.0", noise(1, MODEL_BYTES))
    rig.store(data)
    listing = rig.publish(data, "1.0.0")
    await rig.fetch(listing)
    signature = data.index(b"readme.md\0") - data.index(b"{")
    print(f"sent {rig.shelf.sent}, asked {rig.shelf.got}, signature at most {signature}")
    assert rig.shelf.sent + rig.shelf.got < signature + 3_000


async def test_first_version_is_fetched_once(rig: Rig) -> None:
    data = bundle("1.0.0", noise(1, MODEL_BYTES))
    assert await rig.fetch(rig.publish(data, "1.0.0")) == data
    assert rig.shelf.sent <= len(data) * 1.02


async def test_stored_file_that_has_rotted_is_fetched_and_reported(rig: Rig) -> None:
    model = noise(1, MODEL_BYTES)
    rig.store(bundle("1.0.0", model))
    blob = rig.blobs.path(hashlib.sha256(model).hexdigest())
    blob.chmod(0o600)
    blob.write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    told: list[str] = []

    async def suspect(digests: list[str]) -> None:
        told.extend(digests)

    rig.downloads.suspect = suspect
    data = bundle("1.1.0", model)
    assert await rig.fetch(rig.publish(data, "1.1.0")) == data
    assert told == [blob.name]


async def test_two_slots_that_want_one_version_at_once_fetch_it_once(rig: Rig) -> None:
    data = bundle("1.0.0", noise(1, MODEL_BYTES))
    listing = rig.publish(data, "1.0.0")
    assert await asyncio.gather(rig.fetch(listing), rig.fetch(listing)) == [data, data]
    assert rig.shelf.sent <= len(data) * 1.02


async def test_two_slots_that_want_two_versions_get_them_side_by_side(rig: Rig) -> None:
    first, second = bundle("1.0.0", noise(1, MODEL_BYTES)), bundle("1.1.0", noise(2, MODEL_BYTES))
    listings = rig.publish(first, "1.0.0"), rig.publish(second, "1.1.0")
    assert await asyncio.gather(*(rig.fetch(one) for one in listings)) == [first, second]


# --- breaks -----------------------------------------------------------------------------------------------------------


async def test_line_that_breaks_again_and_again_costs_no_byte_twice(rig: Rig) -> None:
    data = bundle("1.0.0", noise(1, MODEL_BYTES))
    rig.shelf.lie = Shelf.hang_up
    assert await rig.fetch(rig.publish(data, "1.0.0")) == data
    assert len(rig.shelf.asked) > 20
    assert rig.shelf.sent <= len(data) * 1.02


async def test_file_that_is_half_there_is_gone_on_with(rig: Rig) -> None:
    data = bundle("1.1.0", noise(2, MODEL_BYTES))
    rig.store(bundle("1.0.0", noise(1, MODEL_BYTES)))
    listing = rig.publish(data, "1.1.0")
    for cut in (0, 1, 511, 512, 1500, 4096, 1_000_000, len(data) - 1500, len(data) - 1024, len(data) - 1, len(data)):
        rig.part(listing).write_bytes(data[:cut])
        rig.shelf.forget()
        assert await rig.fetch(listing) == data, cut
        assert rig.shelf.sent <= max(0, len(data) - cut) + 8_000, cut


async def test_part_that_a_power_cut_left_wrong_is_noticed_and_fetched_again(rig: Rig) -> None:
    data = bundle("1.0.0", noise(1, MODEL_BYTES))
    listing = rig.publish(data, "1.0.0")
    for cut, wrong in ((1_000_000, 4096), (1_000_000, 100), (300, 100), (len(data), 10)):
        rig.part(listing).write_bytes(data[: cut - wrong] + bytes(wrong))
        assert await rig.fetch(listing) == data


CHILD = """
import asyncio, sys
from pathlib import Path
import msgspec
from lenskeep.clock import Clock
from lenskeep.config import Fleet
from lenskeep.daemon.allowance import Allowance
from lenskeep.daemon.downloads import Downloads
from lenskeep.daemon.sources import HttpSource, open_session
from lenskeep.messages.trust import Listing
from lenskeep.registry.blobs import Blobs

async def main(folder, address, listing):
    blobs = Blobs(folder, free_bytes_min=0)
    async with open_session() as session:
        downloads = Downloads(folder / "incoming", blobs, Allowance(Fleet(download_kb_s=10000), None, Clock()))
        await downloads.fetch(listing, HttpSource(session, address), lambda done, total: None)

asyncio.run(main(Path(sys.argv[1]), sys.argv[2], msgspec.json.decode(sys.argv[3], type=Listing)))
"""


async def test_killed_process_fetches_at_most_a_mebibyte_again(rig: Rig) -> None:
    data = bundle("1.0.0", noise(1, 20_000_000))
    listing = rig.publish(data, "1.0.0")
    seed = random.randrange(1 << 30)
    print("seed", seed)
    dice, kills = random.Random(seed), 0
    words = [str(rig.folder), rig.shelf.address, msgspec.json.encode(listing).decode()]
    while kills < 4:
        had, more = rig.size(listing), dice.randrange(500_000, 4_000_000)
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, *words)
        while rig.size(listing) < had + more:
            assert child.returncode is None
            await asyncio.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        await child.wait()
        kills += 1
    assert await (await asyncio.create_subprocess_exec(sys.executable, "-c", CHILD, *words)).wait() == 0
    assert rig.part(listing).read_bytes() == data
    begins = [ask.begin for ask in rig.shelf.asked]
    print(f"{kills} kills, asked from {begins}, {rig.shelf.sent - len(data)} bytes more sent than the file has")
    assert begins == sorted(begins) and rig.shelf.sent - len(data) < kills * (1 << 20)


# --- lies -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "lie", [Shelf.no_ranges, Shelf.wrong_range, Shelf.hang_up, Shelf.endless],
    ids=["200 instead of 206", "another piece", "hangs up", "endless"],
)  # fmt: skip
async def test_server_that_serves_badly_is_coped_with(rig: Rig, lie: Lie) -> None:
    data = bundle("1.1.0", noise(2, MODEL_BYTES))
    rig.store(bundle("1.0.0", noise(1, MODEL_BYTES)))
    rig.shelf.lie = lie
    listing = rig.publish(data, "1.1.0")
    if lie is Shelf.endless:  # bounded where a piece was asked for; the whole is never longer than it is listed
        assert await rig.fetch(listing) == data
        assert rig.downloads.moved.total() < len(data) * 1.02
    else:
        assert await rig.fetch(listing) == data


async def test_server_that_gives_wrong_bytes_is_refused_after_one_more_whole_try(rig: Rig) -> None:
    data = bundle("1.0.0", noise(1, MODEL_BYTES))
    listing = rig.publish(data, "1.0.0")
    rig.shelf.lie = Shelf.garbage
    with pytest.raises(ListingMismatchError):
        await rig.fetch(listing)
    assert not rig.part(listing).exists()
    assert rig.shelf.sent < 2 * len(data)
    rig.shelf.lie = None
    assert await rig.fetch(listing) == data


async def test_wrong_bytes_in_one_piece_cost_one_whole_try(rig: Rig) -> None:
    data = bundle("1.0.0", noise(1, MODEL_BYTES))
    listing = rig.publish(data, "1.0.0")

    async def once(shelf: Shelf, ask: object, writer: asyncio.StreamWriter) -> None:
        large = ask.end - ask.begin > 100_000  # type: ignore[attr-defined]
        shelf.lie = None if large else once
        await (Shelf.garbage if large else Shelf.honest)(shelf, ask, writer)  # type: ignore[arg-type]

    rig.shelf.lie = once
    assert await rig.fetch(listing) == data


@pytest.mark.attack(81)
@pytest.mark.parametrize("lie", [Shelf.drip, Shelf.drip_head], ids=["drips its bytes", "drips its head"])
async def test_server_that_drips_is_left_however_many_pieces_it_is_asked_for(rig: Rig, lie: Lie) -> None:
    listing = rig.publish(bundle("1.0.0", noise(1, MODEL_BYTES)), "1.0.0")
    rig.shelf.lie = lie
    began = time.monotonic()
    with pytest.raises(SourceTooSlowError) as caught:
        await rig.fetch(listing)
    assert caught.value.code == "LK-7003" and caught.value.retryable
    assert time.monotonic() - began < 3.0
    rig.shelf.lie = None
    assert len(await rig.fetch(listing)) == listing.length_bytes


async def test_server_that_gives_a_byte_and_hangs_up_is_not_asked_for_ever(rig: Rig) -> None:
    async def miser(shelf: Shelf, ask: object, writer: asyncio.StreamWriter) -> None:
        begin, end = ask.begin, ask.end  # type: ignore[attr-defined]
        await shelf.say(writer, shelf.head(ask, end - begin) + ask.data[begin : begin + 1])  # type: ignore[arg-type,attr-defined]
        writer.close()

    listing = rig.publish(bundle("1.0.0", noise(1, MODEL_BYTES)), "1.0.0")
    rig.shelf.lie = miser
    with pytest.raises(PeerError):
        await rig.fetch(listing)
    assert len(rig.shelf.asked) < 40


async def test_file_that_is_not_there_is_asked_for_three_times(rig: Rig) -> None:
    with pytest.raises(FleetAnswerError):
        await rig.fetch(listed(b"x" * 5000, "9.9.9"))


async def test_full_disk_is_said_before_a_byte_is_fetched(rig: Rig) -> None:
    stat = os.statvfs(rig.folder)
    listing = rig.publish(bundle("1.0.0", b"x" * 1000), "1.0.0")
    huge = Listing(
        path=listing.path, role="acme", length_bytes=stat.f_bavail * stat.f_frsize, sha256=listing.sha256, keys=[],
        expires_s=0,
    )  # fmt: skip
    with pytest.raises(StorageFullError):
        await rig.fetch(huge)
    assert not rig.shelf.asked


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
async def test_disk_that_becomes_full_leaves_nothing_half_written(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = rig.publish(bundle("1.0.0", noise(1, MODEL_BYTES)), "1.0.0")
    monkeypatch.setattr(rig.blobs, "require_space", lambda _size: None)
    wrote, real = 0, os.write

    def write(fd: int, data: bytes) -> int:
        nonlocal wrote
        wrote += len(data)
        if wrote > 1_000_000:
            with Path("/dev/full").open("wb", buffering=0) as full:
                return full.write(data)  # the system's own ENOSPC
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(StorageFullError):
        await rig.fetch(listing)
    monkeypatch.undo()
    assert not rig.part(listing).exists()


@pytest.mark.skipif(not shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin"), reason="nginx is not here")
async def test_nginx_serves_pieces_as_well(rig: Rig) -> None:
    first, second = bundle("1.0.0", noise(1, MODEL_BYTES)), bundle("1.1.0", noise(1, MODEL_BYTES) + b"more")
    rig.store(first)
    listing, port, folder = rig.publish(second, "1.1.0"), free_port(), rig.folder
    paths = " ".join(f"{name}_temp_path {folder}/t;" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    words = f"listen 127.0.0.1:{port}; root {rig.shelf.folder};"
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/log; events {{}}\n"
        f"http {{ access_log off; {paths} server {{ {words} }} }}"
    )
    folder.chmod(0o755)
    server = await asyncio.create_subprocess_exec(
        shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or "", "-c", str(folder / "nginx.conf"),
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        source = HttpSource(rig.session, f"http://127.0.0.1:{port}")
        for _ in range(100):
            try:
                path = await rig.downloads.fetch(listing, source, progress)
                break
            except PeerError:
                assert server.returncode is None
        assert path.read_bytes() == second
        assert rig.downloads.moved[source.name] < MODEL_BYTES + 8_000
    finally:
        server.terminate()
        await server.wait()


# --- rate and budget --------------------------------------------------------------------------------------------------


async def test_rate_is_kept(tmp_path: Path) -> None:
    async with rig_in(tmp_path, download_kb_s=1000) as rig:
        data = bundle("1.0.0", noise(1, 800_000))
        listing = rig.publish(data, "1.0.0")
        began = time.monotonic()
        assert await rig.fetch(listing) == data
        assert 0.7 < time.monotonic() - began < 5.0


async def test_metered_budget_stops_a_download_until_the_next_day_and_it_goes_on_where_it_was(tmp_path: Path) -> None:
    async with rig_in(tmp_path, metered_mb_per_day=1) as rig:
        data = bundle("1.0.0", noise(1, 2_500_000))
        listing = rig.publish(data, "1.0.0")
        days = 0
        while True:
            rig.shelf.forget()
            try:
                assert await rig.fetch(listing) == data
                break
            except MeteredBudgetError as error:
                assert "goes on at 20" in str(error)
            assert rig.shelf.sent < MEGABYTE + 8_000
            assert (await rig.allowance.checks())[0].code == "LK-7005"
            again = Allowance(Fleet(metered_mb_per_day=1), rig.allowance._database, rig.clock)
            await again.begin()
            assert again.left() == 0, "a restart brings no new budget"
            rig.clock.wall -= 3 * 86400
            assert again.left() == 0, "neither does a clock that is set back"
            rig.clock.wall += 3 * 86400
            rig.clock.passes(86400)
            days += 1
        assert days == 2
