"""Connections that stay: taken at a bounded rate, with small buffers, and a collector that does not stop the world.

Rules. A storm of devices that all come back at once waits at the door, in the kernel's queue, and is let in as fast as
handshakes can be paid for without holding up those who are in. Figures that led here, at 15,000 connections over TLS:
asyncio gives each a read buffer of 256 KiB (295 KiB a connection; 55 with 16 KiB); a full garbage collection stops
everything for more than half a second; uvloop needs 42 KiB.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable

log = logging.getLogger("lenskeep.fleet")

TLS_READ_BYTES = 16 << 10
BACKLOG = 16_384  # the kernel cuts it to net.core.somaxconn
HANDSHAKES_MAX = 256  # at once
HANDSHAKE_S_MAX = 15.0
TURN_S = 0.02  # connections are taken in turns of this length
YOUNG_EVERY_S = 1.0
FULL_EVERY_S = 600.0
GONE_MIN = 2000  # closed connections that are worth a full collection


class HeldConnections:
    """A port whose connections are taken at a bounded rate."""

    def __init__(self, factory: Callable[[], asyncio.BaseProtocol], context: ssl.SSLContext, per_second: int) -> None:
        self._factory = factory
        self._context = context
        self._per_turn = max(1.0, per_second * TURN_S)
        self._listener: socket.socket | None = None
        self._shaking: set[asyncio.Task[None]] = set()
        self._room = asyncio.Semaphore(HANDSHAKES_MAX)
        self.taken = 0
        self.failed = 0

    def open(self, address: str, port: int) -> int:
        """Listen, and return the port. Raises: OSError."""
        sslproto.SSLProtocol.max_size = TLS_READ_BYTES  # of asyncio's own loop; uvloop's buffers are small
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        listener = socket.create_server((address, port), family=family, backlog=BACKLOG)
        listener.setblocking(False)
        self._listener = listener
        return int(listener.getsockname()[1])

    async def run(self) -> None:
        """Take connections until cancelled."""
        loop = asyncio.get_running_loop()
        assert self._listener is not None
        began_s, allowed = loop.time(), self._per_turn
        while True:
            await self._room.acquire()
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptors left, or the peer is gone already
                self._room.release()
                log.warning("A connection could not be taken: %s", error)
                await asyncio.sleep(0.1)
                continue
            task = loop.create_task(self._take(connection))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)
            allowed -= 1
            if allowed < 1:
                await asyncio.sleep(max(0.0, began_s + TURN_S - loop.time()))
                # time that was not used is lost: nothing is saved up for a storm
                began_s, allowed = loop.time(), allowed + self._per_turn

    async def _take(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            await loop.connect_accepted_socket(
                self._factory, connection, ssl=self._context, ssl_handshake_timeout=HANDSHAKE_S_MAX,
                ssl_shutdown_timeout=2.0,
            )  # fmt: skip
            self.taken += 1
        except (OSError, TimeoutError) as error:  # a stranger, or one who gave up; the others are not held up
            self.failed += 1
            log.debug("A connection was not made: %s", error)
            connection.close()
        finally:
            self._room.release()

    async def close(self) -> None:
        """Take nobody any more."""
        if self._listener is not None:
            self._listener.close()
        for task in tuple(self._shaking):
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._shaking, return_exceptions=True)


async def collect_gently(gone: Callable[[], int]) -> None:
    """Collect young garbage every second, and all of it only when many connections are gone; runs until cancelled.

    Args:
        gone: how many connections have been closed so far.
    """
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        before, waited_s = gone(), 0.0
        while True:
            await asyncio.sleep(YOUNG_EVERY_S)
            gc.collect(1)
            waited_s += YOUNG_EVERY_S
            if waited_s >= FULL_EVERY_S and gone() - before >= GONE_MIN:
                gc.collect()
                before, waited_s = gone(), 0.0
    finally:
        gc.enable()
        gc.unfreeze()
