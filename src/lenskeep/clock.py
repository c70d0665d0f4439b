"""Time, as a thing that is passed in: a wall clock that may lie, and one of this boot that does not.

Rules. `now_s` is never before the floor: the time this software was made, or a later one that somebody with a key
signed. Neither a time server nor the wall clock ever raises the floor, because one forged leap could not be undone. A
wall clock that cannot be right, or that leaps while we run, is not followed: `now_s` then goes on steadily from the
last time that was believed. A leap between two possible times is believed after an hour without another one; nobody
could tell more. Nothing is ordered by these times and nothing is measured with them: they label things for people and
judge validity.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime

# Raised with each release; a device that shows an earlier time has lost its clock.
BUILT_AT = datetime(2026, 11, 1, tzinfo=UTC).timestamp()
# A clock this far ahead of the floor is a fault too (a dead battery often reads as the far future).
TRUSTED_SPAN_S = 20 * 365 * 86400.0
STEP_S = 60.0  # time servers correct less than this without being noticed
DOUBT_S = 3600.0


@dataclass(frozen=True, slots=True)
class _Steady:
    """A time that was believed, and when that was by the clock of this boot."""

    wall_s: float
    boot_s: float
    shown: bool  # the wall clock showed it; otherwise it is the floor

    def at(self, boot_s: float) -> float:
        return self.wall_s + boot_s - self.boot_s


@dataclass(frozen=True, slots=True)
class _Leap:
    """A leap that is not believed yet."""

    by_s: float
    boot_s: float


class Clock:
    """The system's clocks with a floor under the wall clock."""

    def __init__(self, floor_s: float = BUILT_AT) -> None:
        self.floor_s = floor_s
        self._leap: _Leap | None = None
        wall, boot = self.wall_s(), self.boot_s()
        possible = self._possible(wall)
        self._steady = _Steady(wall if possible else floor_s, boot, possible)

    def raise_floor(self, signed_s: float) -> None:
        """Take over a signed time: it has passed. Never called with what a time server or the wall clock says.

        A time beyond what this software can live to see is a mistake of the signer, and passed over.
        """
        if signed_s > BUILT_AT + TRUSTED_SPAN_S:
            return
        self.floor_s = max(self.floor_s, signed_s)
        boot = self.boot_s()
        if self._steady.at(boot) < self.floor_s:
            self._steady = _Steady(self.floor_s, boot, False)
            self._leap = None

    def wall_s(self) -> float:
        """Return what the system's clock shows, in seconds since 1970."""
        return time.time()

    def boot_s(self) -> float:
        """Return seconds since the machine was started, its sleep included; nobody can set them."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def monotonic_s(self) -> float:
        """Return seconds that only ever grow while the machine is up."""
        return time.monotonic()

    def now_s(self) -> float:
        """Return the time to judge by: what the wall clock shows while it is believed, else the steady time."""
        wall, boot = self.wall_s(), self.boot_s()
        if self._believes(wall, boot):
            self._steady = _Steady(wall, boot, True)
            return wall
        return max(self._steady.at(boot), self.floor_s)

    def now_ms(self) -> int:
        """Return `now_s` in whole milliseconds, as it is stored."""
        return int(self.now_s() * 1000)

    def trusted(self) -> bool:
        """Say whether the wall clock is believed."""
        return self._believes(self.wall_s(), self.boot_s())

    def doubt(self) -> str:
        """Say in words why the wall clock is not believed; nothing when it is."""
        wall, boot = self.wall_s(), self.boot_s()
        if self._believes(wall, boot):
            return ""
        if wall < self.floor_s:
            return f"earlier than {rfc3339(self.floor_s)}, a time that has passed"
        if not self._possible(wall):
            return "further ahead than this software can have run"
        by_s = self._leap.by_s if self._leap is not None else 0.0
        return f"it was set {'forward' if by_s > 0 else 'back'} by {span_text(abs(by_s))} while the service ran"

    def leap_s(self) -> float:
        """Return how far the wall clock leapt from the steady time, when that is not believed; else 0."""
        return 0.0 if self.trusted() or self._leap is None else self._leap.by_s

    def _possible(self, wall_s: float) -> bool:
        return self.floor_s <= wall_s <= self.floor_s + TRUSTED_SPAN_S

    def _believes(self, wall: float, boot: float) -> bool:
        by_s = wall - self._steady.at(boot)
        if not self._possible(wall):
            return False
        if not self._steady.shown or abs(by_s) <= STEP_S:
            self._leap = None  # the first possible time that it shows, or nothing new
            return True
        if self._leap is None or abs(by_s - self._leap.by_s) > STEP_S:
            self._leap = _Leap(by_s, boot)
        return boot - self._leap.boot_s > DOUBT_S


def rfc3339(seconds: float) -> str:
    """Write a time as RFC 3339 in UTC, whole seconds."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span_text(seconds: float) -> str:
    """Write a duration for people, in its largest unit."""
    for unit, size_s in (("year", 365 * 86400), ("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= size_s:
            count = round(seconds / size_s)
            return f"{count} {unit}{'s' if count != 1 else ''}"
    return f"{seconds:.0f} s"
