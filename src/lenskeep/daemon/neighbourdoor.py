"""The door at which neighbours fetch bundles: read-only, by name and digest, whole files rebuilt from stored blobs.

Rules. Opened by configuration alone, at a port of its own. Nothing can be listed: who does not know a file's digest
gets nothing. Connections, transfers and the rate of all together are bounded, a reader that does not read is left, and
the line comes first: while it is late, in a swap or beside a trial, nothing is handed out. What is handed out is not
hashed again here: whoever takes it does.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from lenskeep.bundle import archive
from lenskeep.clock import Clock
from lenskeep.config import Neighbours as Wishes
from lenskeep.daemon.neighbours import PATH
from lenskeep.daemon.problems import fault_check
from lenskeep.database import Database
from lenskeep.errors import ConfigError, LenskeepError
from lenskeep.messages.control import Check
from lenskeep.registry import bundles
from lenskeep.registry.blobs import MEBIBYTE, Blobs

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 18
CONNECTIONS_MAX = 32
LOOK_S = 0.2
PATIENCE_S = 4.0  # a neighbour that waits longer asks the fleet
READ_S = 20.0  # in which a reader takes a chunk
RETRY_AFTER_S = "30"
_TARGET = re.compile(r"models/([a-z0-9][a-z0-9-]{0,62})/([0-9a-f]{64})\.([0-9][0-9a-z.\-]{0,59})\.lkb")


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a bundle file: bytes, or a part of a stored file."""

    content: bytes | Path
    begin: int  # in the bundle file
    size: int

    def read_in_thread(self, at: int, length: int) -> bytes:
        """Return bytes from a place in the bundle file on."""
        if isinstance(self.content, bytes):
            return self.content[at - self.begin : at - self.begin + length]
        with self.content.open("rb") as source:
            source.seek(at - self.begin)
            return source.read(length)


class NeighbourDoor:
    """Hands out what is stored here."""

    def __init__(self, wishes: Wishes, database: Database, blobs: Blobs, busy: Callable[[], str], clock: Clock) -> None:
        self.port = 0  # where it is open; 0 = it is not
        self.handed_out = 0  # bytes
        self._wishes = wishes
        self._database = database
        self._blobs = blobs
        self._busy = busy
        self._clock = clock
        self._transfers = 0
        self._free_at_s = 0.0
        self._fault: LenskeepError | None = None

    async def run(self) -> None:
        """Keep the door open until cancelled. A port that cannot be had is said, and harms nothing else."""
        if not self._wishes.serve:
            return
        async with AsyncExitStack() as stack:
            app = web.Application()
            app.add_routes([web.get(f"{PATH}/targets/{{name:.+}}", self._target)])
            runner = web.AppRunner(
                app, access_log=None, shutdown_timeout=1.0, handle_signals=False, keepalive_timeout=5
            )
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            server = runner.server
            assert server is not None

            def admit() -> asyncio.Protocol:
                return server() if len(server.connections) < CONNECTIONS_MAX else _Full()

            loop = asyncio.get_running_loop()
            try:
                listener = await loop.create_server(admit, self._wishes.address, self._wishes.port, backlog=16)
            except OSError as error:
                where = f"{self._wishes.address}:{self._wishes.port}"
                self._fault = ConfigError(f"neighbours.port: {where} cannot be opened: {error.strerror or error}.")
                log.error("%s %s", self._fault.code, self._fault)
                return
            stack.callback(listener.close)
            self.port = listener.sockets[0].getsockname()[1]
            await asyncio.Event().wait()

    async def checks(self) -> list[Check]:
        """Return the line of `doctor` about the door, where there is one."""
        if not self._wishes.serve:
            return []
        if self._fault is not None:
            return [fault_check("neighbours", self._fault, "warn")]
        text = f"served on port {self.port}, {self.handed_out / MEBIBYTE:.1f} MiB since the start"
        return [Check(name="neighbours", passed=True, text=text)]

    async def _target(self, request: web.Request) -> web.StreamResponse:
        found = _TARGET.fullmatch(request.match_info["name"])
        spans = await self._spans(found[1], found[3], found[2]) if found else []
        if not spans:
            return web.Response(status=404)
        if self._transfers >= self._wishes.transfers_max or self._busy():
            return web.Response(status=503, headers={"Retry-After": RETRY_AFTER_S})
        total = spans[-1].begin + spans[-1].size
        try:
            wanted = request.http_range
            begin, end, _ = wanted.indices(total)
        except ValueError:
            begin = end = total
        if begin >= end:
            return web.Response(status=416, headers={"Content-Range": f"bytes */{total}"})
        ranged = wanted.start is not None or wanted.stop is not None
        response = web.StreamResponse(status=206 if ranged else 200)
        if ranged:
            response.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{total}"
        response.headers["Accept-Ranges"] = "bytes"
        response.content_type = "application/octet-stream"
        response.content_length = end - begin
        await response.prepare(request)
        if request.method == "GET":
            self._transfers += 1
            try:
                await self._send(request, response, spans, begin, end)
            finally:
                self._transfers -= 1
        return response

    async def _spans(self, name: str, version: str, file_sha256: str) -> list[Span]:
        """Return what a bundle file is made of; nothing when it is not here, whole."""
        async with self._database.read() as tx:
            known = [one for one in await bundles.of_name(tx, name) if one.version == version]
            if not known or known[0].file_sha256 != file_sha256:
                return []
            files = await bundles.files(tx, known[0].id)
        spans: list[Span] = []
        at = 0
        for part in archive.rebuild_parts(known[0].signature, [(file.name, file.size_bytes) for file in files]):
            content = part if isinstance(part, bytes) else self._blobs.path(files[part].sha256)
            size = len(part) if isinstance(part, bytes) else files[part].size_bytes
            if size:
                spans.append(Span(content, at, size))
            at += size
        return spans if await asyncio.to_thread(_are_there, spans) else []

    async def _send(
        self, request: web.Request, response: web.StreamResponse, spans: list[Span], begin: int, end: int
    ) -> None:
        for span, at, until in _chunks(spans, begin, end):
            if not await self._turn(until - at):
                return _hang_up(request)  # the line needs the device; the rest is had elsewhere
            data = await asyncio.to_thread(span.read_in_thread, at, until - at)
            if len(data) != until - at:
                return _hang_up(request)
            try:
                async with asyncio.timeout(READ_S):
                    await response.write(data)
            except (TimeoutError, OSError):
                return _hang_up(request)
            self.handed_out += len(data)
        await response.write_eof()
        return None

    async def _turn(self, count: int) -> bool:
        """Wait until so many bytes may be sent; say no when the line takes too long."""
        began_s = self._clock.monotonic_s()
        while self._busy():
            if self._clock.monotonic_s() - began_s > PATIENCE_S:
                return False
            await asyncio.sleep(LOOK_S)
        now_s = self._clock.monotonic_s()
        self._free_at_s = max(self._free_at_s, now_s) + count / (self._wishes.mb_s * MEBIBYTE)
        await asyncio.sleep(self._free_at_s - now_s)
        return True


def _chunks(spans: list[Span], begin: int, end: int) -> Iterator[tuple[Span, int, int]]:
    """Yield each chunk's span, where it begins, and where it ends."""
    for span in spans:
        at, last = max(begin, span.begin), min(end, span.begin + span.size)
        while at < last:
            until = min(at + CHUNK_BYTES, last)
            yield span, at, until
            at = until


def _are_there(spans: list[Span]) -> bool:
    try:
        return all(isinstance(one.content, bytes) or one.content.stat().st_size == one.size for one in spans)
    except OSError:
        return False


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


class _Full(asyncio.Protocol):
    """A connection too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()
