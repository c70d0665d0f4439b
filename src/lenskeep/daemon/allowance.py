"""How fast and how much this device may download: a rate for every line, and a budget a day for a metered one.

Rules. What counts against the budget are bytes of bundles from the fleet or a repository; a neighbour on the same site
and a stick cost nothing. Bytes are written as used before they are used, so that neither a killed daemon nor a power
cut makes the budget larger; a mebibyte too much may be counted then. A clock that is set back brings no new budget.
"""

from __future__ import annotations

import asyncio

from lenskeep.clock import Clock, rfc3339
from lenskeep.config import Fleet
from lenskeep.daemon.problems import fault_check
from lenskeep.database import Database
from lenskeep.errors import MeteredBudgetError
from lenskeep.messages.control import Check
from lenskeep.registry import journal

DAY_S = 86400
RESERVE_BYTES = 1 << 20
MEGABYTE = 1_000_000
DAY, USED = "metered day", "metered bytes"  # counters


class Allowance:
    """What may be downloaded now."""

    def __init__(self, fleet: Fleet, database: Database, clock: Clock) -> None:
        self._rate_bytes_s = fleet.download_kb_s * 1000
        self._limit = fleet.metered_mb_per_day * MEGABYTE
        self._database = database
        self._clock = clock
        self._free_at_s = 0.0
        self._day = self._used = self._reserved = 0
        self._writing = asyncio.Lock()

    async def begin(self) -> None:
        """Find out what was used before."""
        async with self._database.read() as tx:
            self._day = await journal.noted(tx, DAY)
            self._used = self._reserved = await journal.noted(tx, USED)

    def left(self) -> int | None:
        """Return how many bytes the budget has today; None = as many as one likes."""
        if not self._limit:
            return None
        self._turn()
        return max(0, self._limit - self._used)

    def require(self, what: str) -> None:
        """Refuse when today's budget is used up. Raises: MeteredBudgetError."""
        if self.left() == 0:
            budget = self._limit // MEGABYTE
            raise MeteredBudgetError(
                f"Today's {budget} MB of the metered line are used up; {what} goes on at {self._until()}."
            )

    async def use(self, count: int) -> None:
        """Count bytes that came over the metered line."""
        if not self._limit:
            return
        self._turn()
        self._used += count
        async with self._writing:
            if self._used > self._reserved:
                await self._write(min(max(self._limit, self._used), self._used + RESERVE_BYTES))

    async def settle(self) -> None:
        """Write what was really used: a download has ended."""
        async with self._writing:
            if self._reserved != self._used:
                await self._write(self._used)

    async def pace(self, count: int) -> None:
        """Wait as long as so many bytes may take."""
        if not self._rate_bytes_s:
            return
        now_s = self._clock.monotonic_s()
        self._free_at_s = max(self._free_at_s, now_s) + count / self._rate_bytes_s
        await asyncio.sleep(self._free_at_s - now_s)

    async def checks(self) -> list[Check]:
        """Return the line of `doctor` about the budget, where there is one."""
        left = self.left()
        if left is None:
            return []
        if not left:
            fault = MeteredBudgetError(f"Today's {self._limit // MEGABYTE} MB are used up until {self._until()}.")
            return [fault_check("metered line", fault, "warn")]
        text = f"{self._used / MEGABYTE:.1f} of {self._limit // MEGABYTE} MB used until {self._until()}"
        return [Check(name="metered line", passed=True, text=text)]

    def _until(self) -> str:
        return rfc3339((self._day + 1) * DAY_S)

    def _turn(self) -> None:
        """Begin a new day; an earlier one than the last is no new one, and the count goes on in it."""
        day = int(self._clock.now_s()) // DAY_S
        if day > self._day:
            self._used = self._reserved = 0
        self._day = day

    async def _write(self, reserved: int) -> None:
        async with self._database.write() as tx:
            await journal.note(tx, DAY, self._day)
            await journal.note(tx, USED, reserved)
        self._reserved = reserved
