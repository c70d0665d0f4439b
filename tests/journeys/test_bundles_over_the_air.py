"""Bundles over the air as whole devices meet them: what an update costs, neighbours, accidents, repair, sticks."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lenskeep.trust.keeping import releases
from tests import tinybundle
from tests.device import Device, bundle_bytes
from tests.ports import free_port
from tests.repositories import Repository
from tests.shelf import Shelf, shelf_in

EXTRA_BYTES = 3_000_000
CONFIG = """
[device]
id = "{device}"
[trust]
repository = "{address}"
[fleet]
poll_s = 3600
{fleet}
[neighbours]
{neighbours}
"""


@contextmanager
def shelf_beside(folder: Path) -> Iterator[Shelf]:
    """Serve a folder from a thread of its own."""
    loop, opened, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    made: list[Shelf] = []

    async def serve() -> None:
        async with shelf_in(folder) as shelf:
            made.append(shelf)
            opened.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert opened.wait(10)
    yield made[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


def noise(seed: int) -> bytes:
    import random

    return random.Random(seed).randbytes(EXTRA_BYTES)


def release(repository: Repository, version: str, ballast: int = 1) -> bytes:
    """Publish a version with a large file beside its tiny model."""
    data = bundle_bytes(version, extra={"ballast.bin": noise(ballast)})
    file = repository.folder.parent / f"cap-inspect-{version}.lkb"
    file.write_bytes(data)
    repository.change(lambda work: releases.publish(work, [file], repository.signers(), repository.now_s))
    return data


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "repository")
    made.keys["acme"] = tinybundle.key()
    made.publisher("acme", "cap-*")
    release(made, "1.0.0")
    return made


@pytest.fixture
def shelf(repository: Repository) -> Iterator[Shelf]:
    with shelf_beside(repository.folder) as made:
        yield made


@contextmanager
def device_of(
    repository: Repository, address: str, device: str = "cam-7", *, fleet: str = "", neighbours: str = ""
) -> Iterator[Device]:
    folder = Path(tempfile.mkdtemp(prefix="lk-"))
    (folder / "root.json").write_bytes(repository.root())
    words = CONFIG.format(device=device, address=address, fleet=fleet, neighbours=neighbours)
    made = Device(folder, more=words)
    made.start()
    try:
        yield made
    finally:
        made.close()


def sync(device: Device) -> None:
    done = device.finished(device.client.sync())
    assert done.state == "succeeded", done.error


def test_update_costs_what_changed_and_a_sync_without_news_costs_nearly_nothing(
    repository: Repository, shelf: Shelf
) -> None:
    repository.assign("cam-7", main="cap-inspect@1.0.0")
    with device_of(repository, shelf.address) as device:
        sync(device)
        device.runs("cap-inspect@1.0.0", "settled")
        shelf.forget()
        sync(device)
        nothing = shelf.sent + shelf.got
        release(repository, "1.1.0")
        repository.assign("cam-7", main="cap-inspect@1.1.0")
        shelf.forget()
        sync(device)
        device.runs("cap-inspect@1.1.0", "settled")
        bundle = sum(ask.end - ask.begin for ask in shelf.asked if ask.path.endswith(".lkb"))
        print(
            f"nothing changed: {nothing} bytes; small files changed: {shelf.sent + shelf.got}, {bundle} of the bundle"
        )
        assert nothing <= 2_000
        assert bundle < 16_000, "the ballast is here already"
        release(repository, "1.2.0", ballast=2)
        repository.assign("cam-7", main="cap-inspect@1.2.0")
        shelf.forget()
        sync(device)
        device.runs("cap-inspect@1.2.0", "settled")
        print(f"the large file changed: {shelf.sent + shelf.got} bytes for {EXTRA_BYTES}")
        assert shelf.sent + shelf.got <= EXTRA_BYTES * 1.02


def test_second_device_of_a_site_takes_the_bundle_from_the_first(repository: Repository, shelf: Shelf) -> None:
    for name in ("cam-7", "cam-8"):
        repository.assign(name, main="cap-inspect@1.0.0")
    port = free_port()
    serve = f'serve = true\nport = {port}\naddress = "127.0.0.1"\n'
    with device_of(repository, shelf.address, neighbours=serve) as first:
        sync(first)
        first.runs("cap-inspect@1.0.0", "settled")
        shelf.forget()
        ask = f'ask = ["http://127.0.0.1:{port}"]\n'
        with device_of(repository, shelf.address, "cam-8", neighbours=ask) as second:
            sync(second)
            second.runs("cap-inspect@1.0.0", "settled")
            bundle = sum(ask.end - ask.begin for ask in shelf.asked if ask.path.endswith(".lkb"))
            assert bundle < 20_000, [(ask.begin, ask.end) for ask in shelf.asked]
            assert f"MiB from http://127.0.0.1:{port}" in second.log()
        lines = {check.name: check.text for check in first.client.health()}
        assert lines["neighbours"].startswith(f"served on port {port}, 2.9 MiB")


def test_killed_daemon_goes_on_where_it_was_and_the_budget_of_the_day_holds(
    repository: Repository, shelf: Shelf
) -> None:
    repository.assign("cam-7", main="cap-inspect@1.0.0")
    with device_of(repository, shelf.address, fleet="download_kb_s = 600\nmetered_mb_per_day = 2") as device:
        device.client.sync()
        part = device.until(lambda: next((device.folder / "state" / "incoming").glob("*.part"), None), "it begins")
        device.until(lambda: part.stat().st_size > 800_000, "some of it came")
        device.kill()
        had = part.stat().st_size
        shelf.forget()
        device.start()
        done = device.finished(device.client.sync())
        assert done.state == "succeeded", "what waits for tomorrow is no failure of today"
        assert next(ask.begin for ask in shelf.asked if ask.path.endswith(".lkb")) >= had - (1 << 20)
        fault = next(check for check in device.client.health() if check.name == "metered line")
        assert fault.code == "LK-7005" and "until 20" in fault.text
        assert part.stat().st_size < 2_100_000 and "LK-7005" in device.log()


def test_damaged_file_is_mended_from_the_repository(repository: Repository, shelf: Shelf) -> None:
    repository.assign("cam-7", main="cap-inspect@1.0.0")
    with device_of(repository, shelf.address) as device:
        sync(device)
        device.runs("cap-inspect@1.0.0", "settled")
        blob = max((device.folder / "state" / "blobs").glob("??/*"), key=lambda path: path.stat().st_size)
        whole = blob.read_bytes()
        blob.chmod(0o600)
        blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        done = device.finished(device.client.start_scrub())
        assert done.state == "succeeded", done.error
        device.until(lambda: blob.exists() and blob.read_bytes() == whole, "the file is whole again")
        device.until(lambda: not device.client.scrub().damaged, "and nothing is said to be damaged")


def test_stick_brings_only_what_is_not_here(repository: Repository, tmp_path: Path) -> None:
    from tests.journeys.test_sync import cli

    repository.assign("cam-7", main="cap-inspect@1.0.0")
    with device_of(repository, "") as device:
        for version in ("1.0.0", "1.1.0"):
            if version != "1.0.0":
                release(repository, version)
                repository.assign("cam-7", main=f"cap-inspect@{version}")
            stick = tmp_path / "stick"
            assert not cli(
                device, "sync", "--export", str(stick), "--from", str(repository.folder), "--for", "cam-7"
            ).returncode
            done = cli(device, "sync", "--import", str(stick))
            assert done.returncode == 0, done.stderr + device.log()[-2000:]
            device.runs(f"cap-inspect@{version}", "settled")
        shares = [line for line in device.log().splitlines() if "MiB from" in line]
        assert "2.86 MiB from disk" in shares[-1], shares
