"""Where this device reads a repository from: a server, or somebody who carries the files to it.

Rules. A source only carries bytes; nothing that it says is believed. No redirect is followed, no more is read than was
asked for, and a source that drips is left: an attacker who cannot forge must not be able to delay either. What is
counted is how long we waited for it over everything that it was asked, so that many small questions give no more time.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from msgspec import Struct

from lenskeep.daemon import authorities
from lenskeep.daemon.fleetline import fault_of, read_answer
from lenskeep.daemon.way import Way
from lenskeep.errors import (
    FleetAnswerError,
    FleetUnreachableError,
    LenskeepError,
    MetadataTooLargeError,
    ProxyRefusesError,
    SourceError,
    SourceTooSlowError,
)

PROBLEM_JSON = "application/problem+json"
CHUNK_BYTES = 1 << 18
RECEIVE_BYTES = 1 << 18  # the kernel doubles it
_CONTENT_RANGE = re.compile(r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)")
COURIER_S = 60.0  # somebody who carries files is waited for this long


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a server may let us wait; under `bytes_s_min` over all its answers, after `grace_s`, is too slow."""

    connect_s: float = 10.0
    silence_s: float = 20.0
    grace_s: float = 20.0
    bytes_s_min: float = 2048.0


class NoRangeError(Exception):
    """A server does not give a piece of a file. For callers in this room; no person meets it."""

    def __str__(self) -> str:
        return "its server gives no pieces of files"


class RepositorySource(Protocol):
    """Files of a repository by their names in it."""

    name: str  # for people and the record

    async def read(self, name: str, bytes_max: int) -> bytes | None:
        """Return a small file, or None when it is not there. Raises: TrustError, PeerError."""
        ...

    def stream(self, name: str, offset: int, length: int = 0) -> AsyncIterator[bytes]:
        """Yield a large file from an offset on, or `length` bytes of it at most.

        Raises: TrustError, PeerError; NoRangeError when a piece was asked for and only the whole can be had.
        """
        ...


def open_session(way: Way | None = None) -> aiohttp.ClientSession:
    """Open a session to fetch through. What a socket holds for a reader that dies is lost: so it may hold little.

    Args:
        way: how the server is reached; without one, as the environment says.
    """

    def socket_of(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, *_ = address
        made = socket.socket(family, kind, protocol)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        return made

    connector = aiohttp.TCPConnector(socket_factory=socket_of)
    return (way or Way()).session(connector, auto_decompress=False)


class HttpSource:
    """A repository on a server. Args: `base` = its address; `tls` = how the server is known and we to it."""

    def __init__(
        self, session: aiohttp.ClientSession, base: str, tls: ssl.SSLContext | None = None, pace: Pace | None = None,
        way: Way | None = None,
    ) -> None:  # fmt: skip
        self.name = base
        self._way = way or Way()
        self._pace = pace or Pace()
        self._waited_s, self._got = 0.0, 0
        self._session = session
        self._base = base.rstrip("/")
        self._tls = tls

    async def read(self, name: str, bytes_max: int) -> bytes | None:
        """Return a small file, or None when it is not there."""
        data = bytearray()
        async with self._answer(name, {}) as answer:
            await self._hear_refusal(answer)
            if answer.status in (403, 404):
                return None
            self._require(answer, name, 200)
            if (answer.content_length or 0) > bytes_max:
                raise MetadataTooLargeError(f"{name} has {answer.content_length} bytes; {bytes_max} are accepted.")
            async for chunk in self._paced(answer, name):
                data += chunk
                if len(data) > bytes_max:
                    raise MetadataTooLargeError(f"{name} has more than the {bytes_max} bytes that it may have.")
        return bytes(data)

    async def stream(self, name: str, offset: int, length: int = 0) -> AsyncIterator[bytes]:
        """Yield a large file, or a piece of it; where only the whole can be had, what lies before is read past."""
        last = str(offset + length - 1) if length else ""
        async with self._answer(name, {"Range": f"bytes={offset}-{last}"} if offset or length else {}) as answer:
            await self._hear_refusal(answer)
            if answer.status in (403, 404):
                raise FleetAnswerError(f"{name} is not at {self.name}.")
            if length and answer.status == 200:
                raise NoRangeError
            self._require(answer, name, 206 if (offset or length) and answer.status == 206 else 200)
            if answer.status == 206:
                self._require_range(answer, name, offset, length)
            skip, left = offset if answer.status == 200 else 0, length
            async for chunk in self._paced(answer, name):
                rest = chunk[skip:]
                skip -= min(skip, len(chunk))
                if length:
                    rest = rest[:left]
                    left -= len(rest)
                if rest:
                    yield rest
                if length and not left:
                    return

    async def _hear_refusal(self, answer: aiohttp.ClientResponse) -> None:
        """A fleet that does not let this device in says so; that is no missing file. Raises: what it says."""
        if answer.status in (401, 403) and answer.content_type == PROBLEM_JSON:
            raise fault_of(answer.status, await read_answer(answer), self.name)

    def _require(self, answer: aiohttp.ClientResponse, name: str, status: int) -> None:
        if 300 <= answer.status < 400:
            where = answer.headers.get("Location", "nowhere")[:120]
            raise FleetAnswerError(f"{self.name} sends {name} elsewhere ({where!r}); that is not followed.")
        if answer.status != status:
            raise FleetAnswerError(f"{self.name} answers {answer.status} for {name}.")

    def _require_range(self, answer: aiohttp.ClientResponse, name: str, offset: int, length: int) -> None:
        """Take no other piece for the one that was asked for."""
        said = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if said is None or int(said[1]) != offset or (length and int(said[2]) >= offset + length):
            if length:
                raise NoRangeError
            raise FleetAnswerError(f"{self.name} sends another piece of {name} than it was asked for.")

    @asynccontextmanager
    async def _answer(self, name: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=self._pace.connect_s, sock_read=self._pace.silence_s)
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._pace.connect_s + self._pace.silence_s):
                answer = await self._session.get(
                    f"{self._base}/{name}", allow_redirects=False, timeout=limits,
                    ssl=self._tls or (authorities.of_the_web() if self._base.startswith("https:") else True),
                    **self._way.words(self._base, headers | {"Accept-Encoding": "identity"}),
                )  # fmt: skip
            self._waited_s += time.monotonic() - began
            async with answer:
                if answer.status == 407:  # by plain HTTP the proxy speaks in the server's place
                    raise ProxyRefusesError(f"The proxy on the way to {self.name} asks for a login that it accepts.")
                yield answer
        except TimeoutError as error:
            raise SourceTooSlowError(f"{self.name} did not answer in time for {name}.") from error
        except aiohttp.ClientError as error:
            if (fault := self._way.fault(error, self.name)) is not None:
                raise fault from error
            raise FleetUnreachableError(f"{self.name} cannot be read: {error}.") from error

    async def _paced(self, answer: aiohttp.ClientResponse, name: str) -> AsyncIterator[bytes]:
        """Yield what comes, and leave a source that only drips."""
        while True:
            began = time.monotonic()
            chunk = await answer.content.read(CHUNK_BYTES)
            self._waited_s += time.monotonic() - began
            self._got += len(chunk)
            if self._waited_s > self._pace.grace_s + self._got / self._pace.bytes_s_min:
                raise SourceTooSlowError(f"{name} came with less than {self._pace.bytes_s_min:.0f} bytes a second.")
            if not chunk:
                return
            yield chunk


class _Hand:
    """One file on its way from the one who carries to the one who wants."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | LenskeepError | None] = asyncio.Queue(4)
        self.over = False

    def give_up(self) -> None:
        """Nobody reads any more: whoever waits to put a piece finds room, and then that it is over."""
        self.over = True
        while not self.pieces.empty():
            self.pieces.get_nowait()

    def break_off(self, fault: LenskeepError) -> None:
        """End with a fault; what was not read yet is not needed any more."""
        while not self.pieces.empty():
            self.pieces.get_nowait()
        self.pieces.put_nowait(fault)

    async def put(self, piece: bytes | LenskeepError | None) -> None:
        await self.pieces.put(piece)
        if self.over:
            raise SourceError("The file is no longer wanted.")


class Wanted(Struct, frozen=True):
    """A file that a courier is asked for; `bytes_max` 0 = as long as it is; `length` 0 = to its end."""

    number: int
    name: str
    offset: int
    bytes_max: int
    length: int = 0


class Courier:
    """Files that somebody carries: whoever asked for the sync brings each file when it is wanted.

    One file at a time. The one who carries asks `wanted`, and answers with `bring`, `absent` or `failed`.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False
        self._number = 0
        self._want: Wanted | None = None
        self._hand = _Hand()
        self._changed = asyncio.Condition()

    # --- the side that wants --------------------------------------------------------------------------------------

    async def read(self, name: str, bytes_max: int) -> bytes | None:
        """Return a small file, or None when it is not there."""
        data = bytearray()
        found = False
        async with aclosing(self._ask(name, 0, bytes_max)) as chunks:
            async for chunk in chunks:
                found = True
                data += chunk
                if len(data) > bytes_max:
                    raise MetadataTooLargeError(f"{name} has more than the {bytes_max} bytes that it may have.")
        return bytes(data) if found else None

    async def stream(self, name: str, offset: int, length: int = 0) -> AsyncIterator[bytes]:
        """Yield a large file, or a piece of it."""
        found, left = False, length
        async with aclosing(self._ask(name, offset, 0, length)) as chunks:
            async for chunk in chunks:
                found = True
                piece = chunk[:left] if length else chunk
                if chunk and not piece:
                    break  # more than was asked for
                left -= len(piece)
                yield piece
        if not found:
            raise SourceError(f"{name} is not there.")

    async def close(self) -> None:
        """Say that nothing more is wanted."""
        async with self._changed:
            self.closed = True
            self._want = None
            self._changed.notify_all()

    async def _ask(self, name: str, offset: int, bytes_max: int, length: int = 0) -> AsyncGenerator[bytes]:
        hand = self._hand = _Hand()
        async with self._changed:
            self._number += 1
            self._want = Wanted(self._number, name, offset, bytes_max, length)
            self._changed.notify_all()
        try:
            while (piece := await self._next(hand, name)) is not None:
                if isinstance(piece, LenskeepError):
                    raise piece
                yield piece
        finally:
            hand.give_up()

    async def _next(self, hand: _Hand, name: str) -> bytes | LenskeepError | None:
        try:
            async with asyncio.timeout(COURIER_S):
                return await hand.pieces.get()
        except TimeoutError:
            raise SourceError(f"Nobody brought {name} within {COURIER_S:.0f} s. Nothing was changed.") from None

    # --- the side that carries ------------------------------------------------------------------------------------

    async def wanted(self, seconds: float) -> Wanted | None:
        """Return what is wanted now, or None when nothing is within the time."""
        try:
            async with asyncio.timeout(seconds), self._changed:
                await self._changed.wait_for(lambda: self._want is not None or self.closed)
        except TimeoutError:
            pass
        return self._want

    async def bring(self, number: int, chunks: AsyncIterator[bytes]) -> None:
        """Hand over the wanted file. Raises: SourceError when something else is wanted by now."""
        hand = self._take(number)
        await hand.put(b"")  # it is there, even if it is empty
        try:
            async for chunk in chunks:
                await hand.put(chunk)
        except BaseException:  # also a cancelled upload: the one who waits for the rest must hear of it
            hand.break_off(SourceError("The file broke off while it was brought."))
            raise
        await hand.put(None)

    async def absent(self, number: int) -> None:
        """Say that the wanted file is not there."""
        await self._take(number).put(None)

    async def failed(self, number: int, message: str) -> None:
        """Say that the wanted file cannot be read."""
        await self._take(number).put(SourceError(message))

    def _take(self, number: int) -> _Hand:
        if self._want is None or self._want.number != number:
            raise SourceError("Something else is wanted by now.")
        self._want = None
        return self._hand
