"""A bad network between devices and their fleet: a relay that delays, stalls, cuts and forgets, all from one seed.

What packet loss does to a program over TCP is waiting, and connections that die: late (both ends told), at once, or
without a word (half open). Bytes that vanish from within a stream are nothing that TCP would deliver, so they are
not made here.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

CHUNK_BYTES = 16384


@dataclass(frozen=True, slots=True)
class Weather:
    """How bad it is: chances for each connection or each piece of data."""

    delay_s: float = 0.0  # each piece waits up to so long
    stall: float = 0.0  # chance of a piece to wait for `stall_s`, as after lost packets
    stall_s: float = 1.0
    cut: float = 0.0  # chance of a piece to be the connection's last; it arrives, half of it, or not at all
    forget: float = 0.0  # chance of a piece after which the connection is half open: nothing comes through any more
    refuse: float = 0.0  # chance of a connection to be closed before a byte


FAIR = Weather()
ROUGH = Weather(delay_s=0.03, stall=0.02, stall_s=0.7, cut=0.01, forget=0.002, refuse=0.05)
GONE = Weather(refuse=1.0, cut=1.0)


class Relay:
    """Carries connections to one address, through the weather of the moment."""

    def __init__(self, host: str, port: int, seed: int) -> None:
        self._to = (host, port)
        self._dice = random.Random(f"relay {seed}")
        self._open: set[asyncio.Task[None]] = set()
        self.weather = FAIR
        self.port = 0
        self.counts: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[Relay]:
        """Listen."""
        server = await asyncio.start_server(self._carry, host, port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut_all()
            await asyncio.gather(*self._open, return_exceptions=True)

    def cut_all(self) -> None:
        """Pull the cable for a moment."""
        for task in self._open:
            task.cancel()

    async def _carry(self, near: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.counts["connections"] += 1
        try:
            if self._dice.random() < self.weather.refuse:
                self.counts["refused"] += 1
                return
            far, far_writer = await asyncio.open_connection(*self._to)
            try:
                ways = [
                    asyncio.create_task(self._pass(near, far_writer)),
                    asyncio.create_task(self._pass(far, near_writer)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
            finally:
                far_writer.transport.abort()
        except (OSError, asyncio.CancelledError):
            pass  # the end of a connection is what this is for
        finally:
            near_writer.transport.abort()
            self._open.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                weather, dice = self.weather, self._dice
                if weather.delay_s:
                    await asyncio.sleep(dice.random() * weather.delay_s)
                if dice.random() < weather.stall:
                    self.counts["stalls"] += 1
                    await asyncio.sleep(weather.stall_s)
                if dice.random() < weather.forget:
                    self.counts["half open"] += 1
                    while await reader.read(CHUNK_BYTES):
                        pass
                    await asyncio.Event().wait()
                if dice.random() < weather.cut:
                    self.counts["cuts"] += 1
                    writer.write(data[: dice.randrange(len(data) + 1)])
                    await writer.drain()
                    return
                writer.write(data)
                await writer.drain()
