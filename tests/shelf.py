"""A plain web server over a folder that counts every byte and lies at will: what a device fetches bundles from.

shelf = await Shelf.open(folder)          # GET with Range, as nginx or any cache gives it
shelf.lie = Shelf.no_ranges               # or drip, short, garbage, endless, elsewhere, wrong_range, hang_up
shelf.sent, shelf.asked                   # bytes with their headers; the paths and ranges that were asked for
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

RANGE = re.compile(rb"range: bytes=(\d+)-(\d*)", re.I)


@dataclass
class Ask:
    """One question."""

    path: str
    begin: int
    end: int  # behind the last byte
    ranged: bool
    data: bytes


Lie = Callable[["Shelf", Ask, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Shelf:
    """The server."""

    folder: Path
    lie: Lie | None = None
    sent: int = 0
    got: int = 0
    asked: list[Ask] = field(default_factory=list)
    port: int = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def forget(self) -> None:
        """Count anew."""
        self.sent = self.got = 0
        self.asked.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)  # sent is sent
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                self.got += len(head)
                await self._answer(head, writer)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()  # whoever asked is gone
        except asyncio.CancelledError:
            writer.transport.abort()
            raise

    async def _answer(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        path = head.split(b" ", 2)[1].decode().lstrip("/")
        file = self.folder / path
        if not file.is_file():
            await self.say(writer, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            return
        data, found = file.read_bytes(), RANGE.search(head)
        begin = int(found[1]) if found else 0
        end = min(int(found[2]) + 1, len(data)) if found and found[2] else len(data)
        ask = Ask(path, begin, end, found is not None, data)
        self.asked.append(ask)
        await (self.lie or Shelf.honest)(self, ask, writer)

    async def say(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        """Send and count."""
        self.sent += len(data)
        writer.write(data)
        await writer.drain()

    def head(self, ask: Ask, length: int, *, begin: int | None = None) -> bytes:
        """The head of an answer, about as long as nginx writes it."""
        lines = ["HTTP/1.1 206 Partial Content" if ask.ranged else "HTTP/1.1 200 OK"]
        lines += [
            "Server: nginx/1.22.1",
            "Date: Fri, 20 Nov 2026 23:23:18 GMT",
            "Content-Type: application/octet-stream",
        ]
        lines += [f"Content-Length: {length}", "Last-Modified: Fri, 20 Nov 2026 23:23:18 GMT", "Connection: keep-alive"]
        lines += ['ETag: "654b3a6e-1e8480"']
        if ask.ranged:
            at = ask.begin if begin is None else begin
            lines += [f"Content-Range: bytes {at}-{at + length - 1}/{len(ask.data)}"]
        return "\r\n".join([*lines, "", ""]).encode()

    async def honest(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        body = ask.data[ask.begin : ask.end]
        await self.say(writer, self.head(ask, len(body)))
        for at in range(0, len(body), 1 << 16):
            await self.say(writer, body[at : at + (1 << 16)])

    async def no_ranges(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        """Answer 200 with all of it, whatever was asked."""
        ask.ranged = False
        await self.say(writer, self.head(ask, len(ask.data)))
        await self.say(writer, ask.data)

    async def wrong_range(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        """Give another piece than was asked for, and say so."""
        if ask.ranged:
            await self.say(writer, self.head(ask, ask.end - ask.begin, begin=ask.begin + 7))
            await self.say(writer, (ask.data * 2)[ask.begin + 7 : ask.end + 7])
        else:
            await self.honest(ask, writer)

    async def garbage(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        """Give wrong bytes of the right length."""
        body = bytes(255 - byte for byte in ask.data[ask.begin : ask.end])
        await self.say(writer, self.head(ask, len(body)) + body)

    async def endless(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        """Give more than was asked for, without an end."""
        head = self.head(ask, ask.end - ask.begin)
        await self.say(writer, re.sub(rb"Content-Length: \d+", b"Connection: close", head))
        body = ask.data[ask.begin : ask.end]
        while True:
            await self.say(writer, body or b" ")

    async def hang_up(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        """Promise everything, give half of it at most 100,000 bytes, and close."""
        body = ask.data[ask.begin : ask.end]
        await self.say(writer, self.head(ask, len(body)) + body[: min(len(body) // 2 + 1, 100_000)])
        writer.close()

    async def drip(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        """Give one byte at a time, for ever."""
        await self.say(writer, self.head(ask, ask.end - ask.begin))
        for byte in ask.data[ask.begin : ask.end]:
            await self.say(writer, bytes([byte]))
            await asyncio.sleep(0.01)

    async def drip_head(self, ask: Ask, writer: asyncio.StreamWriter) -> None:
        """Give the head of the answer one byte at a time."""
        for byte in self.head(ask, ask.end - ask.begin):
            await self.say(writer, bytes([byte]))
            await asyncio.sleep(0.05)


@asynccontextmanager
async def shelf_in(folder: Path) -> AsyncIterator[Shelf]:
    """Serve a folder."""
    shelf = Shelf(folder)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await shelf._serve(reader, writer)
        tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    shelf.port = server.sockets[0].getsockname()[1]
    try:
        yield shelf
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
