"""HTTP/1.1 on a held TLS connection, as lean as thousands of them in one process need it.

`asyncio` gives every TLS connection a read buffer of 256 KiB; importing this module makes that 16 KiB for its process.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lenskeep.clock import Clock
from lenskeep.trust import tls

asyncio.sslproto.SSLProtocol.max_size = 16384
HEAD_BYTES_MAX = 16384
CONNECT_S = 20.0


class WireError(Exception):
    """The other end was not there, went away, or did not speak as it should."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the fleet."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def retry_after_s(self) -> float | None:
        """Return how long the fleet asks to stay away; None when it does not."""
        told = self.headers.get("retry-after", "")
        return float(told) if told.replace(".", "", 1).isdigit() else None


class Wire:
    """One connection at a time to one address; opened when it is needed, resumed where the fleet allows it."""

    def __init__(self, host: str, port: int, authority_pem: str, clock: Clock, identity: Path | None) -> None:
        self._host, self._port = host, port
        self._context = tls.fleet_context(authority_pem, clock, identity)
        self._resume()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.handshakes = 0
        self.resumed = 0

    def _resume(self) -> None:
        """Show the last session's ticket at the next handshake."""
        judged: type[ssl.SSLObject] = self._context.sslobject_class
        last: list[ssl.SSLSession] = []

        class Resumed(judged):  # type: ignore[misc,valid-type]
            shown = False

            def do_handshake(self) -> None:
                if last and not self.shown:
                    self.session = last[0]
                self.shown = True
                super().do_handshake()

        self._context.sslobject_class = Resumed
        self._last = last

    @property
    def open(self) -> bool:
        return self._streams is not None

    async def connect(self) -> None:
        """Open the connection. Raises: WireError."""
        if self._streams is not None:
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                self._streams = await asyncio.open_connection(
                    self._host, self._port, ssl=self._context, server_hostname=tls.SERVER_NAME, limit=HEAD_BYTES_MAX,
                    ssl_handshake_timeout=CONNECT_S, ssl_shutdown_timeout=0.5,
                )  # fmt: skip
        except (OSError, TimeoutError, EOFError) as error:
            raise WireError(f"connect: {type(error).__name__} {error}") from error
        self.handshakes += 1
        self.resumed += bool(self._ssl().session_reused)

    async def ask(self, method: str, path: str, body: bytes = b"", media: str = "", *, seconds: float = 30.0) -> Reply:
        """Ask once and read the answer. Raises: WireError; the connection is closed then."""
        await self.connect()
        try:
            self.send(method, path, body, media)
            return await self.read(seconds)
        except WireError:
            self.drop()
            raise
        except asyncio.CancelledError:
            self.drop()
            raise

    def send(self, method: str, path: str, body: bytes = b"", media: str = "") -> None:
        """Say something, and leave reading the answer to whoever wants it."""
        assert self._streams is not None
        kind = f"Content-Type: {media}\r\nContent-Length: {len(body)}\r\n" if body else ""
        self._streams[1].write(f"{method} {path} HTTP/1.1\r\nHost: {tls.SERVER_NAME}\r\n{kind}\r\n".encode() + body)

    async def read(self, seconds: float) -> Reply:
        """Read one answer. Raises: WireError."""
        assert self._streams is not None
        reader, writer = self._streams
        try:
            async with asyncio.timeout(seconds):
                await writer.drain()
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
                status = int(head[0].split(" ", 2)[1])
                body = await _body(reader, status, headers)
        except (OSError, EOFError, TimeoutError, ValueError, IndexError, asyncio.LimitOverrunError) as error:
            raise WireError(f"read: {type(error).__name__} {error}") from error
        if self._streams is None:
            raise WireError("read: the connection was dropped meanwhile")
        if not self._last:
            self._keep_session()
        if headers.get("connection", "").lower() == "close":
            self.drop()
        return Reply(status, body, headers)

    def drop(self) -> None:
        """Go away without a word."""
        if self._streams is not None:
            self._keep_session()
            self._streams[1].transport.abort()
            self._streams = None

    def _keep_session(self) -> None:
        with contextlib.suppress(ValueError):  # a session that was never agreed on
            session = self._ssl().session
            if session is not None and session.has_ticket:
                self._last[:] = [session]

    def _ssl(self) -> Any:
        assert self._streams is not None
        return self._streams[1].get_extra_info("ssl_object")


async def _body(reader: asyncio.StreamReader, status: int, headers: dict[str, str]) -> bytes:
    if status in (204, 304):
        return b""
    if headers.get("transfer-encoding") == "chunked":
        parts = []
        while size := int(await reader.readuntil(b"\r\n"), 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
        return b"".join(parts)
    return await reader.readexactly(int(headers.get("content-length", "0")))
