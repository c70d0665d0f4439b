"""The repository over each pair of database and file store: two replicas, each with a folder of its own."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lenskeep.errors import BlobStoreError, ConfigError
from lenskeep.fleet.answers import guard
from lenskeep.fleet.config import Storage
from lenskeep.fleet.repository import Repository
from lenskeep.fleet.shelf import Shelf, open_shelf
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.opening import open_engine
from lenskeep.trust.keeping.settings import Settings
from lenskeep.trust.names import bin_of, device_path
from tests.repositories import Repository as Signed
from tests.repositories import StockClient

BUNDLE = bytes(range(256)) * 9000  # above two chunks


def publish(folder: Path, version: int, bundle: bytes = BUNDLE) -> str:
    """Place a repository's files as its tool does: targets, metadata, timestamp."""
    digest = hashlib.sha256(bundle).hexdigest()
    name = f"models/ocr/{digest}.ocr-{version}.lkb"
    said = json.dumps({"v": version}).encode()
    assigned = f"devices/{hashlib.sha256(said).hexdigest()}.cam-1.json"
    for path, data in (
        (f"targets/{name}", bundle), (f"targets/{assigned}", said), ("metadata/1.root.json", b"{}"),
        (f"metadata/{version}.snapshot.json", said),
        ("metadata/timestamp.json", json.dumps({"signed": {"version": version}}).encode()),
    ):  # fmt: skip
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return name


async def opened(storage: Storage, engine: Engine, folder: Path) -> Shelf:
    folder.mkdir(exist_ok=True)
    shelf = await open_shelf(storage, engine, folder, {})
    assert shelf is not None
    return shelf


async def serving(folder: Path, shelf: Shelf) -> TestServer:
    app = web.Application(middlewares=[guard])
    app.add_routes(Repository(folder, shelf.serve).routes())
    server = TestServer(app)
    await server.start_server()
    return server


async def until(path: Path, text: str) -> None:
    async with asyncio.timeout(10):
        while not path.exists() or text not in path.read_text():
            await asyncio.sleep(0.01)


async def test_what_one_replica_publishes_the_other_serves_within_a_second(
    address: str, storage: Storage, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.sqlite"
    async with open_engine(address, "", file, {}) as one, open_engine(address, "", file, {}) as second:
        other = one if address == "sqlite" else second  # a file has one server; its news stays inside it
        here, there = tmp_path / "here", tmp_path / "there"
        givers = [await opened(storage, one, here), await opened(storage, other, there)]
        loops = [asyncio.create_task(shelf.run()) for shelf in givers]
        server = await serving(there, givers[1])
        try:
            await asyncio.sleep(0.3)
            began = time.monotonic()
            name = publish(here, 1)
            await until(there / "metadata/timestamp.json", "1")
            first_s = time.monotonic() - began
            name = publish(here, 2, BUNDLE[::-1])
            began = time.monotonic()
            await until(there / "metadata/timestamp.json", '"version": 2')
            print(f"seen after {first_s:.2f} s, {time.monotonic() - began:.2f} s")
            assert time.monotonic() - began < 2.0
            assert not (there / "targets/models").exists()
            async with aiohttp.ClientSession() as session:
                url = server.make_url(f"/v1/repository/targets/{name}")
                async with session.get(url) as answer:
                    assert hashlib.sha256(await answer.read()).hexdigest() in name
                    assert "immutable" in answer.headers["Cache-Control"]
                    etag = answer.headers["ETag"]
                for said, status, body in (
                    ("bytes=5-9", 206, BUNDLE[::-1][5:10]), ("bytes=-3", 206, BUNDLE[::-1][-3:]),
                    (f"bytes={len(BUNDLE) - 2}-", 206, BUNDLE[::-1][-2:]), (f"bytes={len(BUNDLE)}-", 416, b""),
                ):  # fmt: skip
                    async with session.get(url, headers={"Range": said}) as answer:
                        assert (answer.status, await answer.read()) == (status, body)
                async with session.get(url, headers={"If-None-Match": etag}) as answer:
                    assert answer.status == 304
                async with session.head(url) as answer:
                    assert (answer.status, answer.content_length) == (200, len(BUNDLE))
                async with session.get(server.make_url(f"/v1/repository/targets/models/ocr/{'0' * 64}.x")) as answer:
                    assert answer.status == 404
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await server.close()


async def test_a_damaged_bundle_is_never_put_and_the_old_version_stays(
    engine: Engine, storage: Storage, tmp_path: Path
) -> None:
    shelf = await opened(storage, engine, tmp_path / "here")
    publish(tmp_path / "here", 1)
    await shelf.settle()
    name = publish(tmp_path / "here", 2, BUNDLE + b"x")
    (tmp_path / "here/targets" / name).write_bytes(BUNDLE + b"y")
    with pytest.raises(BlobStoreError, match="not what its name says"):
        await shelf.settle()
    other = await opened(storage, engine, tmp_path / "there")
    assert '"version": 1' in (tmp_path / "there/metadata/timestamp.json").read_text()
    (tmp_path / "here/targets" / name).write_bytes(BUNDLE + b"x")
    await shelf.settle()
    await other.begin()
    assert '"version": 2' in (tmp_path / "there/metadata/timestamp.json").read_text()


async def test_two_replicas_that_signed_at_once_are_told_and_nothing_is_overwritten(
    engine: Engine, storage: Storage, tmp_path: Path
) -> None:
    one, two = await opened(storage, engine, tmp_path / "a"), await opened(storage, engine, tmp_path / "b")
    publish(tmp_path / "a", 1)
    publish(tmp_path / "b", 1)
    (tmp_path / "b/metadata/1.snapshot.json").write_bytes(b"another")
    await one.settle()
    with pytest.raises(BlobStoreError, match="signed at once"):
        await two.settle()
    third = await opened(storage, engine, tmp_path / "c")
    assert (tmp_path / "c/metadata/1.snapshot.json").read_bytes() == (
        tmp_path / "a/metadata/1.snapshot.json"
    ).read_bytes()
    assert third is not None
    again = await opened(storage, engine, tmp_path / "b")  # the one that was too late takes the other's
    assert again is not None
    for name in ("metadata/timestamp.json", "metadata/1.snapshot.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()


async def test_a_store_that_is_away_or_refuses_is_a_clear_fault(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("sesame")
    away = Storage(
        blobs="s3://x/y", blobs_endpoint="http://127.0.0.1:1", blobs_key_id="k", blobs_secret=f"{tmp_path}/secret"
    )
    with pytest.raises(BlobStoreError) as caught:
        await opened(away, engine, tmp_path / "here")
    assert "sesame" not in str(caught.value)
    with pytest.raises(ConfigError):
        await opened(Storage(blobs="ftp://x"), engine, tmp_path / "here")


class _Asked:
    """A store that notes what is read of it."""

    def __init__(self, shelf: Shelf) -> None:
        self.names: list[str] = []
        self._read, self._list = shelf._blobs.read, shelf._blobs.names
        shelf._blobs.read, shelf._blobs.names = self.read, self.list  # type: ignore[method-assign]

    async def read(self, name: str) -> bytes:
        self.names.append(name)
        return await self._read(name)

    async def list(self, prefix: str) -> set[str]:
        self.names.append(f"{prefix}/*")
        return await self._list(prefix)


async def test_a_replica_takes_the_lists_that_changed_and_their_new_assignments_alone(
    address: str, storage: Storage, tmp_path: Path
) -> None:
    repository = Signed(tmp_path / "here", terms=Settings(devices_in_one_list_max=2))
    repository.publisher("acme", "cap-*")
    repository.release("cap-inspect", "1.0.0")
    for number in range(4):
        repository.assign(f"cam-{number}", main="cap-inspect@1.0.0")
    async with open_engine(address, "", tmp_path / "fleet.sqlite", {}) as engine:
        here = await opened(storage, engine, repository.folder)
        there = await opened(storage, engine, tmp_path / "there")
        repository.release("cap-inspect", "1.1.0")
        repository.assign("cam-1", main="cap-inspect@1.1.0")
        await here.settle()
        asked = _Asked(there)
        there._there = await there._version_there()
        asked.names.clear()
        await there.settle()
        taken = [name for name in asked.names if name != "metadata/timestamp.json"]
    mine = bin_of(device_path("cam-1"))
    lists = [name for name in taken if "director" in name]
    assert len(lists) == 1
    assert lists[0].endswith(f".{mine}.json")
    assert [name for name in taken if name.startswith("targets/")] == [
        f"targets/devices/{name}" for name in newest_of(repository.folder, "cam-1")
    ]
    client = StockClient(tmp_path / "there", tmp_path / "client")
    for number in range(4):
        assert client.target(device_path(f"cam-{number}")) is not None


def newest_of(folder: Path, device: str) -> list[str]:
    """Return the file of a device's newest assignment."""
    files = (folder / "targets/devices").glob(f"*.{device}.json")
    return [max(files, key=lambda path: json.loads(path.read_bytes())["generation"]).name]
