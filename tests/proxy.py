"""A forward proxy for tests, as plants have them: CONNECT and plain GET, a login, and every bad habit at will.

with Proxy(login="cam:secret") as proxy:       # in a thread and a loop of its own
    proxy.idle_s = 2.0                          # cuts tunnels in which nothing moves
    proxy.cut()                                 # resets every tunnel that is open
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Coroutine
from typing import Any, Literal

Habit = Literal["tunnel", "silent", "html", "garbage", "captive", "drip", "mute", "intercept"]
PAGE = b"<html><h1>Please sign in</h1></html>"


class Proxy:
    """One proxy on loopback. `said` keeps the first line and the headers of everything that it was asked."""

    def __init__(self, *, login: str = "", certificate: ssl.SSLContext | None = None) -> None:
        self.login = login
        self.certificate = certificate  # for `intercept`
        self.habit: Habit = "tunnel"
        self.idle_s = 0.0
        self.refuse = 0  # a status for everything
        self.hosts: dict[str, str] = {}  # names that are known here alone
        self.said: list[bytes] = []
        self.tunnels = 0  # opened so far
        self.cuts = 0
        self.carried = bytearray()  # what went through towards servers
        self._open: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: asyncio.Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Proxy:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Listen, at the same port as before."""

        async def begin() -> None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

        self._do(begin())

    def stop(self) -> None:
        """Listen no more, and reset what is open."""

        async def end() -> None:
            if self._server is not None:
                self._server.close()
            self._reset_all()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.sleep(0.01)  # what was closed is let go of

        self._do(end())

    def cut(self) -> None:
        """Reset every tunnel."""

        async def now() -> None:
            self._reset_all()

        self._do(now())

    def _do(self, what: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    def _reset_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    # --- one connection -----------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
                await self._answer(reader, writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.said.append(head)
        if self.habit == "mute":
            await asyncio.sleep(3600)
        if self.habit == "garbage":
            writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
            return await writer.drain()
        if self.habit == "html":
            return await _page(writer, "302 Found", b"Location: http://signin.example/\r\n")
        if self.refuse:
            return await _page(writer, f"{self.refuse} No", b"")
        if self.login and not self._may(head):
            return await _page(writer, "407 Login", b'Proxy-Authenticate: Basic realm="plant"\r\n')
        method, target, _ = head.split(b"\r\n")[0].split(b" ")
        if method != b"CONNECT":
            return await self._fetch(head, target, reader, writer)
        host, _, port = target.decode().rpartition(":")
        if self.habit in ("captive", "drip", "intercept"):
            return await self._play(reader, writer)
        try:
            up_reader, up = await asyncio.open_connection(self.hosts.get(host, host), int(port))
        except OSError:
            return await _page(writer, "502 Bad Gateway", b"")
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.tunnels += 1
        return await self._pump(reader, writer, up_reader, up)

    def _may(self, head: bytes) -> bool:
        return b"Proxy-Authorization: Basic " + base64.b64encode(self.login.encode()) + b"\r\n" in head

    async def _play(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.habit == "drip":
            for byte in b"HTTP/1.1 200 Connection established\r\n" * 1000:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.05)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        if self.habit == "captive":
            await reader.read(1)
            return await _page(writer, "200 OK", b"")
        assert self.certificate is not None
        await writer.start_tls(self.certificate)
        self.said.append(await reader.read(65536))
        return await _page(writer, "200 OK", b"")

    async def _fetch(
        self, head: bytes, target: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        host, _, path = target.removeprefix(b"http://").partition(b"/")
        name, _, port = host.decode().rpartition(":")
        up_reader, up = await asyncio.open_connection(name, int(port))
        lines = [line for line in head.split(b"\r\n")[1:] if not line.lower().startswith(b"proxy-")]
        up.write(b"\r\n".join([b"GET /" + path + b" HTTP/1.1", *lines]))
        await self._pump(reader, writer, up_reader, up)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
        up_reader: asyncio.StreamReader, up: asyncio.StreamWriter,
    ) -> None:  # fmt: skip
        moved = time.monotonic()

        async def one_way(source: asyncio.StreamReader, target: asyncio.StreamWriter, keep: bool) -> None:
            nonlocal moved
            while data := await source.read(65536):
                moved = time.monotonic()
                if keep:
                    self.carried += data
                target.write(data)
                await target.drain()

        self._open.add(up)
        ways = [asyncio.create_task(one_way(reader, up, True)), asyncio.create_task(one_way(up_reader, writer, False))]
        try:
            while not any(way.done() for way in ways):
                await asyncio.wait(ways, timeout=0.05, return_when=asyncio.FIRST_COMPLETED)
                if self.idle_s and time.monotonic() - moved > self.idle_s:
                    self.cuts += 1
                    break
            if self.habit == "silent" and not any(way.done() for way in ways):
                _reset(up)
                await asyncio.sleep(3600)  # as a firewall does that forgot the connection
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            self._open.discard(up)
            up.close()


async def _page(writer: asyncio.StreamWriter, status: str, headers: bytes) -> None:
    writer.write(
        f"HTTP/1.1 {status}\r\n".encode()
        + headers
        + b"Content-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(PAGE)
    )
    writer.write(PAGE)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
