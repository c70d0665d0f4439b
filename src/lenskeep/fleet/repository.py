"""The repository as files: immutable ones to be kept by any cache, and the two that say what is newest.

Rules. Only the layout of `trust/names` is served: `metadata/NAME.json` and `targets/DIR/SHA256.NAME`, no link, no
listing. A file that carries its version or its digest in its name never changes. Whether a newer root exists and what
`timestamp.json` says is asked every time. Range and ETag are aiohttp's.
"""

from __future__ import annotations

import asyncio
import re
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from lenskeep.errors import UnknownNameError
from lenskeep.fleet.sending import SentFile
from lenskeep.trust.names import METADATA, TARGETS

FOREVER = "public, max-age=31536000, immutable"
ASK_AGAIN = "no-cache"
PREFIX = "/v1/repository"
_METADATA = re.compile(r"(timestamp|[1-9][0-9]{0,9}\.[a-z0-9][a-z0-9-]{0,62})\.json")
_TARGET = re.compile(r"(?:[a-z0-9][a-z0-9._-]{0,99}/){0,4}[0-9a-f]{64}\.[a-z0-9][a-z0-9._-]{0,99}")


Elsewhere = Callable[[web.Request, str, dict[str, str]], Awaitable[web.StreamResponse]]


class Repository:
    """The files of one folder; what it lacks may be had from elsewhere."""

    def __init__(self, folder: Path, elsewhere: Elsewhere | None = None) -> None:
        self._folder = folder
        self._elsewhere = elsewhere

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
        if not await asyncio.to_thread(self._plain_in_thread, name):
            if self._elsewhere is not None and kept == FOREVER:
                return await self._elsewhere(request, str(name), {"Cache-Control": kept})
            raise UnknownNameError(f"The repository has no {name}.")
        return SentFile(self._folder / name, headers={"Cache-Control": kept})

    def _plain_in_thread(self, name: Path) -> bool:
        """Say whether a name is a plain file, reached through plain folders."""
        at = self._folder
        for part in name.parts:
            at = at / part
            try:
                mode = at.lstat().st_mode
            except OSError:
                return False
            if stat.S_ISLNK(mode):
                return False
        return stat.S_ISREG(mode)
