"""Watches the wall clock, keeps the floor over restarts, and says where everybody looks when time cannot be trusted.

Only what somebody signed raises the floor (`Clock.raise_floor`); it is written down here, because a registry row
outlives the metadata it came from. What is decided by time is decided elsewhere, with `Clock.now_s`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging

from lenskeep.clock import Clock, rfc3339
from lenskeep.daemon.events import Events
from lenskeep.database import Database
from lenskeep.errors import ClockLeptError, ClockUntrustedError, DeviceError, LenskeepError
from lenskeep.registry import audit, journal

log = logging.getLogger(__name__)

LOOK_S = 2.0
FLOOR = "clock floor"  # counter, in seconds since 1970


class Timekeeper:
    """Looks at the clock every two seconds."""

    def __init__(self, database: Database, clock: Clock, events: Events) -> None:
        self._database = database
        self._clock = clock
        self._events = events
        self._stored_s = 0
        self._doubt = ""

    async def begin(self) -> None:
        """Take up the floor of earlier starts and note what the clock shows now."""
        async with self._database.read() as tx:
            self._stored_s = await journal.noted(tx, FLOOR)
        self._clock.raise_floor(float(self._stored_s))
        await self.look()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(LOOK_S)
            with contextlib.suppress(DeviceError):  # a full disk: the same is found at the next look
                await self.look()

    async def look(self) -> None:
        """Write down what has changed since the last look."""
        floor_s = int(self._clock.floor_s)
        fault = clock_fault(self._clock)
        doubt = self._clock.doubt()
        if floor_s > self._stored_s or bool(doubt) != bool(self._doubt):
            async with self._database.write() as tx:
                await journal.note(tx, FLOOR, max(floor_s, self._stored_s))
                if bool(doubt) != bool(self._doubt):
                    await audit.add(
                        tx, self._clock, by="device", action="clock", subject="clock", reason=self._reason(doubt),
                        before="untrusted" if self._doubt else "trusted", after="untrusted" if doubt else "trusted",
                    )  # fmt: skip
            self._stored_s = max(floor_s, self._stored_s)
        if bool(doubt) != bool(self._doubt):
            self._tell(fault)
        self._doubt = doubt

    def _reason(self, doubt: str) -> str:
        return f"It shows {rfc3339(self._clock.wall_s())}{': ' if doubt else ''}{doubt}."

    def _tell(self, fault: LenskeepError | None) -> None:
        if fault is not None:
            log.warning("%s %s", fault.code, fault)
            self._events.publish("fault", {"code": fault.code, "message": str(fault), "hint": fault.hint})
        else:
            log.info("the clock is trusted again")


def clock_fault(clock: Clock) -> LenskeepError | None:
    """Say what is wrong with the clock; None when it is believed."""
    doubt = clock.doubt()
    if not doubt:
        return None
    kind = ClockLeptError if clock.leap_s() else ClockUntrustedError
    return kind(f"The clock shows {rfc3339(clock.wall_s())}: {doubt}. {rfc3339(clock.now_s())} is used meanwhile.")
