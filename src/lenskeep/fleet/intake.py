"""The way in for what must not be lost: calls gather while a transaction runs, and the next one takes them all.

Rules. A call is answered when the transaction that holds it is durable, never before; when it fails, every call in it
hears why and the devices keep what they have. The next transaction begins when the last one has ended and enough has
come, or after a moment: at few calls a second that spares commits, under load it does not wait.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from lenskeep.clock import Clock
from lenskeep.errors import FleetBusyError, LenskeepError
from lenskeep.fleet.store.intake import Delivery, IntakeStore

log = logging.getLogger("lenskeep.fleet")

LINGER_S = 0.02
ENOUGH = 64  # calls for which nothing is waited
TOGETHER_MAX = 500  # calls in one transaction
WAITING_MAX = 5000  # calls beyond these are sent away


class Intake:
    """Takes deliveries in, many in one transaction."""

    def __init__(self, store: IntakeStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: list[tuple[Delivery, asyncio.Future[None]]] = []
        self._some = asyncio.Event()
        self._enough = asyncio.Event()
        self.on_progress: Callable[[], None] = lambda: None  # called when a rollout may have moved
        self.commits = 0
        self.records = 0
        self.refusals = 0

    async def take(self, delivery: Delivery) -> None:
        """Keep a delivery; it is durable when this returns. Raises: FleetBusyError, StorageError."""
        if len(self._waiting) >= WAITING_MAX:
            self.refusals += 1
            raise FleetBusyError(f"{WAITING_MAX} calls are waiting to be written.")
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((delivery, done))
        if len(self._waiting) >= ENOUGH:
            self._enough.set()
        self._some.set()
        await done

    async def run(self) -> None:
        """Write what has gathered, again and again."""
        while True:
            await self._some.wait()
            if not self._enough.is_set():
                try:
                    async with asyncio.timeout(LINGER_S):
                        await self._enough.wait()
                except TimeoutError:
                    pass
            now, self._waiting = self._waiting[:TOGETHER_MAX], self._waiting[TOGETHER_MAX:]
            if not self._waiting:
                self._some.clear()
            if len(self._waiting) < ENOUGH:
                self._enough.clear()
            await self._write(now)

    async def _write(self, together: list[tuple[Delivery, asyncio.Future[None]]]) -> None:
        try:
            moved_on = await self._store.keep([delivery for delivery, _ in together], now_ms=self._clock.now_ms())
        except Exception as error:  # whatever it is, each caller is told, and the next ones are taken
            if not isinstance(error, LenskeepError):
                log.exception("%d calls could not be kept", len(together))
                if len(together) > 1:  # what nobody foresaw in one call is no fault of those beside it
                    for one in together:
                        await self._write([one])
                    return
            for _, done in together:
                if not done.done():
                    done.set_exception(error)
            return
        self.commits += 1
        self.records += sum(len(delivery.fresh) for delivery, _ in together)
        for _, done in together:
            if not done.done():
                done.set_result(None)
        if moved_on:
            self.on_progress()
