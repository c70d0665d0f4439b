"""Where this device reads a repository from: a server, or somebody who carries the files to it.

Rules. A source only carries bytes; nothing that it says is believed. No redirect is followed, no more is read than was
asked for, and a source that drips is left: an attacker who cannot forge must not be able to delay either.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Protocol

import aiohttp
from msgspec import Struct

from lenskeep.daemon.fleetline import fault_of, read_answer
from lenskeep.errors import (
    FleetAnswerError,
    FleetUnreachableError,
    LenskeepError,
    MetadataTooLargeError,
    SourceError,
    SourceTooSlowError,
)

PROBLEM_JSON = "application/problem+json"
CHUNK_BYTES = 1 << 18
CONNECT_S, SILENCE_S = 10.0, 20.0
GRACE_S, BYTES_A_SECOND_MIN = 20.0, 2048  # slower than that over its whole length is no transfer
COURIER_S = 60.0  # somebody who carries files is waited for this long


class RepositorySource(Protocol):
    """Files of a repository by their names in it."""

    name: str  # for people and the record

    async def read(self, name: str, bytes_max: int) -> bytes | None:
        """Return a small file, or None when it is not there. Raises: TrustError, PeerError."""
        ...

    def stream(self, name: str, offset: int) -> AsyncIterator[bytes]:
        """Yield a large file from an offset on. Raises: TrustError, PeerError."""
        ...


class HttpSource:
    """A repository on a server. Args: `base` = its address; `tls` = how the server is known and we to it."""

    def __init__(self, session: aiohttp.ClientSession, base: str, tls: ssl.SSLContext | None = None) -> None:
        self.name = base
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
            async for chunk in _paced(answer, name):
                data += chunk
                if len(data) > bytes_max:
                    raise MetadataTooLargeError(f"{name} has more than the {bytes_max} bytes that it may have.")
        return bytes(data)

    async def stream(self, name: str, offset: int) -> AsyncIterator[bytes]:
        """Yield a large file from an offset on; a server that cannot begin there begins anew and is read past."""
        async with self._answer(name, {"Range": f"bytes={offset}-"} if offset else {}) as answer:
            await self._hear_refusal(answer)
            if answer.status in (403, 404):
                raise FleetAnswerError(f"{name} is not at {self.name}.")
            self._require(answer, name, 206 if offset and answer.status == 206 else 200)
            skip = offset if answer.status == 200 else 0
            async for chunk in _paced(answer, name):
                rest = chunk[skip:]
                skip -= min(skip, len(chunk))
                if rest:
                    yield rest

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

    @asynccontextmanager
    async def _answer(self, name: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
        try:
            async with self._session.get(
                f"{self._base}/{name}", headers=headers | {"Accept-Encoding": "identity"}, allow_redirects=False,
                timeout=limits, ssl=self._tls if self._tls is not None else True,
            ) as answer:  # fmt: skip
                yield answer
        except TimeoutError as error:
            raise SourceTooSlowError(f"{self.name} did not answer in time for {name}.") from error
        except aiohttp.ClientError as error:
            raise FleetUnreachableError(f"{self.name} cannot be read: {error}.") from error


async def _paced(answer: aiohttp.ClientResponse, name: str) -> AsyncIterator[bytes]:
    """Yield what comes, and leave a source that only drips."""
    began, got = time.monotonic(), 0
    async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
        got += len(chunk)
        if time.monotonic() - began > GRACE_S + got / BYTES_A_SECOND_MIN:
            raise SourceTooSlowError(f"{name} came with less than {BYTES_A_SECOND_MIN} bytes a second.")
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
    """A file that a courier is asked for; `bytes_max` 0 = as long as it is."""

    number: int
    name: str
    offset: int
    bytes_max: int


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

    async def stream(self, name: str, offset: int) -> AsyncIterator[bytes]:
        """Yield a large file from an offset on."""
        found = False
        async with aclosing(self._ask(name, offset, 0)) as chunks:
            async for chunk in chunks:
                found = True
                yield chunk
        if not found:
            raise SourceError(f"{name} is not there.")

    async def close(self) -> None:
        """Say that nothing more is wanted."""
        async with self._changed:
            self.closed = True
            self._want = None
            self._changed.notify_all()

    async def _ask(self, name: str, offset: int, bytes_max: int) -> AsyncGenerator[bytes]:
        hand = self._hand = _Hand()
        async with self._changed:
            self._number += 1
            self._want = Wanted(self._number, name, offset, bytes_max)
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
        except BaseException:
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
