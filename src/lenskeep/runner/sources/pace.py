"""Keeps the time of sources that could deliver faster than the clock: files, folders and made scenes."""

from __future__ import annotations

import threading
from time import monotonic

BEHIND_S_MAX = 1.0  # one who is further behind starts anew instead of rushing


class Pace:
    """Ticks at `fps` against the monotonic clock, without drift; 0.0 never waits."""

    def __init__(self, fps: float, stop: threading.Event) -> None:
        self._interval_s = 1.0 / fps if fps > 0 else 0.0
        self._stop = stop
        self._due_s = 0.0

    def wait(self) -> bool:
        """Wait for the next tick. Returns: False when told to stop."""
        if not self._interval_s:
            return not self._stop.is_set()
        now_s = monotonic()
        if now_s - self._due_s > BEHIND_S_MAX:
            self._due_s = now_s
        stopped = self._stop.wait(self._due_s - now_s) if self._due_s > now_s else self._stop.is_set()
        self._due_s += self._interval_s
        return not stopped
