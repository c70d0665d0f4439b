"""The repository as files: immutable ones to be kept by any cache, and the two that say what is newest.

Rules. Only the layout of `trust/names` is served: `metadata/NAME.json` and `targets/DIR/SHA256.NAME`, no link, no
listing. A file that carries its version or its digest in its name never changes. Whether a newer root exists and what
`timestamp.json` says is asked every time. Large files, ranges and conditions are aiohttp's; a small file, which is what
a crowd of devices asks for at once when something new is signed, costs one look in a thread and is read once.
"""

from __future__ import annotations

import asyncio
import os
import re
import stat
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

from lenskeep.errors import UnknownNameError
from lenskeep.fleet.sending import SentFile
from lenskeep.trust.names import METADATA, TARGETS

FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"
PREFIX = "/v1/repository"
_METADATA = re.compile(r"(timestamp|[1-9][0-9]{0,9}\.[a-z0-9][a-z0-9-]{0,62})\.json")
_TARGET = re.compile(r"(?:[a-z0-9][a-z0-9._-]{0,99}/){0,4}[0-9a-f]{64}\.[a-z0-9][a-z0-9._-]{0,99}")
SMALL_BYTES = 1 << 20
KEPT_BYTES = 16 << 20  # what was asked for last: the newest of each role, the lists of a large fleet among them
_CONDITIONS = (hdrs.RANGE, hdrs.IF_RANGE, hdrs.IF_NONE_MATCH, hdrs.IF_MATCH, hdrs.IF_MODIFIED_SINCE,
               hdrs.IF_UNMODIFIED_SINCE)  # fmt: skip

Elsewhere = Callable[[web.Request, str, dict[str, str]], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Small:
    """A small file as it was; another file under its name has another stamp."""

    stamp: tuple[int, int, int]  # inode, moment, size
    data: bytes

    @property
    def etag(self) -> str:
        """What aiohttp gives this file as well."""
        return f'"{self.stamp[1]:x}-{self.stamp[2]:x}"'


class Repository:
    """The files of one folder; what it lacks may be had from elsewhere."""

    def __init__(self, folder: Path, elsewhere: Elsewhere | None = None) -> None:
        self._folder = folder
        self._elsewhere = elsewhere
        self._small: OrderedDict[Path, Small] = OrderedDict()
        self._keeping = threading.Lock()

    def routes(self) -> list[web.RouteDef]:
        """Return the doors to it."""
        return [
            web.get(f"{PREFIX}/{METADATA}/{{name:[^/]+}}", self.metadata),
            web.get(f"{PREFIX}/{TARGETS}/{{name:.+}}", self.target),
        ]

    async def metadata(self, request: web.Request) -> web.StreamResponse:
        """Serve a role's metadata."""
        name = request.match_info["name"]
        if not _METADATA.fullmatch(name):
            raise UnknownNameError(f"{name!r} is no file of a repository.")
        changing = name == "timestamp.json" or name.endswith(".root.json")
        return await self._file(request, Path(METADATA) / name, ASK_AGAIN if changing else FOREVER)

    async def target(self, request: web.Request) -> web.StreamResponse:
        """Serve a target's bytes."""
        name = request.match_info["name"]
        if not _TARGET.fullmatch(name) or "/." in name:
            raise UnknownNameError(f"{name!r} is no file of a repository.")
        return await self._file(request, Path(TARGETS) / name, FOREVER)

    async def _file(self, request: web.Request, name: Path, kept: str) -> web.StreamResponse:
        found = await asyncio.to_thread(self._look_in_thread, name)
        headers: dict[str, str] = {hdrs.CACHE_CONTROL: kept}
        if found is None:
            if self._elsewhere is not None and kept == FOREVER:
                return await self._elsewhere(request, str(name), headers)
            raise UnknownNameError(f"The repository has no {name}.")
        if not isinstance(found, Small) or any(word in request.headers for word in _CONDITIONS):
            return SentFile(self._folder / name, headers=headers)
        headers |= {hdrs.ETAG: found.etag, hdrs.ACCEPT_RANGES: "bytes"}
        return web.Response(body=found.data, headers=headers, content_type="application/json")

    def _look_in_thread(self, name: Path) -> Small | os.stat_result | None:
        """Return a plain file, reached through plain folders: what is in it if it is small; None if there is none."""
        at = self._folder
        for part in name.parts:
            at = at / part
            try:
                seen = at.lstat()
            except OSError:
                return None
            if stat.S_ISLNK(seen.st_mode):
                return None
        if not stat.S_ISREG(seen.st_mode):
            return None
        if name.suffix != ".json" or seen.st_size > SMALL_BYTES:
            return seen
        known = self._small.get(name)
        if known is None or known.stamp != _stamp(seen):
            known = _read(at)
            if known is not None and name.parts[0] == METADATA:  # of the others each device reads its own
                self._keep(name, known)
        return known

    def _keep(self, name: Path, file: Small) -> None:
        with self._keeping:
            self._small.pop(name, None)
            self._small[name] = file
            kept = sum(len(each.data) for each in self._small.values())
            while kept > KEPT_BYTES:
                kept -= len(self._small.popitem(last=False)[1].data)


def _stamp(seen: os.stat_result) -> tuple[int, int, int]:
    return seen.st_ino, seen.st_mtime_ns, seen.st_size


def _read(path: Path) -> Small | None:
    """Read a small file whole; None when it is gone or is being exchanged for a large one."""
    try:
        with path.open("rb") as file:
            data = file.read(SMALL_BYTES + 1)
            stamp = _stamp(os.fstat(file.fileno()))
    except OSError:
        return None
    return Small(stamp, data) if len(data) == stamp[2] else None
