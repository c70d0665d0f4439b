"""Keeps a replica's repository folder and the object store at the same version, whichever is newer.

Rules. Whoever is newer by the timestamp's version gives; the other takes. Files go in the order in which a reader needs
them (targets, metadata, timestamp last), so whoever reads at any moment finds everything that a timestamp leads to. A
replica takes metadata and assignments into its folder; bundles stay in the store and are passed on from there.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from lenskeep.credentials import read_secret
from lenskeep.errors import ConfigError, LenskeepError, UnknownNameError
from lenskeep.fleet.config import Storage
from lenskeep.fleet.store.engine import Engine
from lenskeep.trust.identity import write_durably
from lenskeep.trust.names import DIRECTOR, METADATA, TARGETS, device_of, target_file

log = logging.getLogger("lenskeep.fleet")

TIMESTAMP = f"{METADATA}/timestamp.json"
ASSIGNMENTS = f"{TARGETS}/devices"
LOOK_S = 0.25  # at the folder
ASK_S = 2.0  # the store, where no news came
AGAIN_S = 5.0

_LIST = re.compile(rf"{METADATA}/[0-9]+\.{DIRECTOR}(?:-[0-9a-f]{{2}})?\.json")

Tell = Callable[[], Awaitable[None]]


class _Hashes(Struct, frozen=True):
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class _Facts(Struct, frozen=True):
    hashes: _Hashes


class _Targets(Struct, frozen=True):
    targets: dict[str, _Facts]


class _Listing(Struct, frozen=True):
    signed: _Targets


_list = msgspec.json.Decoder(_Listing)


class Blobs(Protocol):
    """Files by name, in a store."""

    async def names(self, prefix: str) -> set[str]:
        """Return the names under a folder."""

    async def size(self, name: str) -> int:
        """Return a file's length in bytes. Raises: UnknownNameError, BlobStoreError."""

    async def read(self, name: str) -> bytes:
        """Return a small file. Raises: UnknownNameError, BlobStoreError."""

    def stream(self, name: str, start: int, end: int) -> AsyncIterator[bytes]:
        """Give a part of a file, chunk by chunk."""

    async def put_target(self, name: str, file: Path) -> None:
        """Put a file whose name begins with its SHA-256. Raises: BlobStoreError when its bytes are others."""

    async def put_once(self, name: str, data: bytes) -> None:
        """Put a small file that never changes. Raises: BlobStoreError when another one has the name already."""

    async def replace(self, name: str, data: bytes) -> None:
        """Put a small file in the place of an older one."""


class Shelf:
    """One replica's folder beside the store."""

    def __init__(self, blobs: Blobs, folder: Path, tell: Tell) -> None:
        self._blobs = blobs
        self._folder = folder
        self._tell = tell
        self._put: set[str] = set()
        self._taken: set[str] = set()
        self._here = self._there = 0
        self._asked = asyncio.Event()

    def ask(self, _subject: str = "") -> None:
        """Look at the store soon: another replica said that it put something there."""
        self._asked.set()

    async def run(self) -> None:
        """Keep both at the same version until cancelled."""
        clock, asked_s, faulty = asyncio.get_running_loop().time, float("-inf"), False
        while True:
            pause_s = LOOK_S
            try:
                if self._asked.is_set() or clock() - asked_s > ASK_S:
                    self._asked.clear()
                    self._there = await self._version_there()
                    asked_s = clock()
                await self.settle()
                faulty = False
            except (LenskeepError, OSError) as error:
                if not faulty:
                    log.warning("The object store and the repository's folder differ: %s", error)
                faulty, pause_s = True, AGAIN_S
            try:
                async with asyncio.timeout(pause_s):
                    await self._asked.wait()
            except TimeoutError:
                pass

    async def begin(self) -> None:
        """Bring both to the same version once; of two that signed the same number, the store's counts.

        Raises: BlobStoreError, StorageError.
        """
        self._there = await self._version_there()
        self._here = await asyncio.to_thread(_version_in_thread, self._folder / TIMESTAMP)
        if self._here == self._there != 0:
            await self._take()
        await self.settle()

    async def settle(self) -> None:
        """Give or take, when the versions differ. Raises: BlobStoreError, StorageError."""
        self._here = await asyncio.to_thread(_version_in_thread, self._folder / TIMESTAMP)
        if self._here > self._there:
            await self._give()
            self._there = self._here
            await self._tell()
        elif self._there > self._here:
            await self._take()
            self._here = self._there

    async def _version_there(self) -> int:
        try:
            return _version(await self._blobs.read(TIMESTAMP))
        except UnknownNameError:
            return 0

    async def _give(self) -> None:
        timestamp = await asyncio.to_thread((self._folder / TIMESTAMP).read_bytes)
        if not self._put:
            self._put = await self._blobs.names(TARGETS)  # metadata of a version may be another's: that is looked at
        for folder in (TARGETS, METADATA):
            for name in await asyncio.to_thread(_files_in_thread, self._folder, folder):
                if name in self._put or name == TIMESTAMP:
                    continue
                if folder == TARGETS:
                    await self._blobs.put_target(name, self._folder / name)
                else:
                    await self._blobs.put_once(name, await asyncio.to_thread((self._folder / name).read_bytes))
                self._put.add(name)
        await self._blobs.replace(TIMESTAMP, timestamp)

    async def _take(self) -> None:
        timestamp = await self._blobs.read(TIMESTAMP)
        there = await self._blobs.names(METADATA) - {TIMESTAMP}
        names = await asyncio.to_thread(_lacking_in_thread, self._folder, there, self._put | self._taken)
        metadata = {name: await self._blobs.read(name) for name in names}  # a number may be signed here too
        for name in await self._assigned(metadata):
            path = self._folder / name
            if not await asyncio.to_thread(path.exists):  # a target's name is its digest
                await asyncio.to_thread(_write_in_thread, path, await self._blobs.read(name))
        for name, data in metadata.items():
            await asyncio.to_thread(_write_in_thread, self._folder / name, data)
        await asyncio.to_thread(_write_in_thread, self._folder / TIMESTAMP, timestamp)
        self._taken.update(names)

    async def _assigned(self, metadata: Mapping[str, bytes]) -> list[str]:
        """Return the assignments that are to be there: at first all of the store, later those that new lists name."""
        if not self._taken:
            return sorted(await self._blobs.names(ASSIGNMENTS))
        there: list[str] = []
        for name, data in metadata.items():
            if _LIST.fullmatch(name):
                there += await asyncio.to_thread(_assignments_in_thread, data)
        return there

    async def serve(self, request: web.Request, name: str, headers: dict[str, str]) -> web.StreamResponse:
        """Pass a file on from the store, or the part of it that is asked for. Raises: UnknownNameError."""
        size = await self._blobs.size(name)
        etag = f'"{name.rpartition("/")[2].partition(".")[0]}"'
        headers = headers | {"ETag": etag, "Accept-Ranges": "bytes"}
        if request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers=headers)
        try:
            wanted = request.http_range
        except ValueError:
            wanted = slice(None)
        if request.headers.get("If-Range", etag) != etag:
            wanted = slice(None)
        partial = wanted.start is not None or wanted.stop is not None
        start, end, _ = wanted.indices(size)
        if partial and start >= end:
            return web.Response(status=416, headers=headers | {"Content-Range": f"bytes */{size}"})
        answer = web.StreamResponse(status=206 if partial else 200, headers=headers)
        answer.content_type = "application/octet-stream"
        answer.content_length = end - start
        if partial:
            answer.headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        await answer.prepare(request)
        if request.method != "HEAD" and end > start:
            async for chunk in self._blobs.stream(name, start, end):
                await answer.write(chunk)
        await answer.write_eof()
        return answer


async def open_shelf(storage: Storage, database: Engine, folder: Path, environment: Mapping[str, str]) -> Shelf | None:
    """Return the shelf in the store that the configuration names, if it names one, at one version with the folder.

    Raises: ConfigError, BlobStoreError.
    """
    if storage.blobs == "folder":
        return None
    try:
        from lenskeep.fleet.blobs import open_blobs
    except ImportError as error:
        raise ConfigError(
            "storage.blobs: an object store needs the extra parts of the package.",
            hint="Install them: pip install 'lenskeep[fleet,fleet-replicas]'.",
        ) from error
    secret = read_secret(storage.blobs_secret, environment, "storage.blobs_secret") if storage.blobs_secret else ""
    blobs = open_blobs(
        storage.blobs, endpoint=storage.blobs_endpoint, region=storage.blobs_region, key_id=storage.blobs_key_id,
        secret=secret,
    )  # fmt: skip

    async def tell() -> None:
        async with database.write() as tx:
            await tx.tell("repository")

    shelf = Shelf(blobs, folder, tell)
    database.listen("repository", shelf.ask)
    await shelf.begin()
    return shelf


def _version(data: bytes) -> int:
    """Return the version in a timestamp; 0 when it cannot be read."""
    try:
        return int(msgspec.json.decode(data)["signed"]["version"])
    except (ValueError, KeyError, TypeError):
        return 0


def _version_in_thread(path: Path) -> int:
    try:
        return _version(path.read_bytes())
    except FileNotFoundError:
        return 0


def _files_in_thread(folder: Path, part: str) -> list[str]:
    """Return the files of a part of the repository, in the order of their names."""
    found = (path for path in (folder / part).rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(str(path.relative_to(folder)) for path in found if not path.name.startswith("."))


def _lacking_in_thread(folder: Path, there: set[str], known: set[str]) -> list[str]:
    """Return what is to be read from the store: what this replica has neither put there nor taken from there."""
    return sorted(name for name in there if name not in known or not (folder / name).is_file())


def _assignments_in_thread(data: bytes) -> list[str]:
    """Return the files of the assignments that a list names."""
    try:
        listed = _list.decode(data).signed.targets
    except (msgspec.DecodeError, UnicodeDecodeError):
        return []
    return [target_file(path, facts.hashes.sha256) for path, facts in listed.items() if device_of(path) is not None]


def _write_in_thread(path: Path, data: bytes) -> None:
    if path.is_file() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o750)
    write_durably(path, data, 0o640)
