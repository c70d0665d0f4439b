"""Time, as a thing that is passed in: a wall clock that may lie, and a monotonic one that does not.

`now()` is never before the floor, a time known to have passed (when this software was made). Nothing is ordered by the
wall clock; it only labels things for people and judges validity.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime

# Raised with each release; a device that shows an earlier time has lost its clock.
BUILT_AT = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
# A clock this far ahead of the build is a fault too (a dead battery often reads as the far future).
TRUSTED_SPAN_S = 20 * 365 * 86400.0


class Clock:
    """The system's clocks with a floor under the wall clock."""

    def __init__(self, floor_s: float = BUILT_AT) -> None:
        self.floor_s = floor_s

    def raise_floor(self, signed_s: float) -> None:
        """Take over a signed time: it has passed. Never called with what a time server or the wall clock says."""
        self.floor_s = max(self.floor_s, signed_s)

    def wall_s(self) -> float:
        """Return what the system's clock shows, in seconds since 1970."""
        return time.time()

    def now_s(self) -> float:
        """Return the time to judge by: the wall clock, but never before the floor."""
        return max(self.wall_s(), self.floor_s)

    def now_ms(self) -> int:
        """Return `now_s` in whole milliseconds, as it is stored."""
        return int(self.now_s() * 1000)

    def monotonic_s(self) -> float:
        """Return seconds that only ever grow while the machine is up."""
        return time.monotonic()

    def trusted(self) -> bool:
        """Say whether the wall clock can be right at all."""
        return self.floor_s <= self.wall_s() <= self.floor_s + TRUSTED_SPAN_S


def rfc3339(seconds: float) -> str:
    """Write a time as RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
