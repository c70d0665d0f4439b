"""Tells how old a picture of a network stream is, from the camera's own clock.

A stream that was held up brings its old pictures in a rush. They arrive now, but what they show is past, and judging
them as new would pass a part that is long gone. The camera stamps each picture; whatever a picture lags behind the
promptest one is time that it spent on the way.
"""

from __future__ import annotations

DRIFT = 0.001  # the two clocks may run apart by this ratio; a lag that grows faster is a real one


class StreamClock:
    """Compares the stream's time with ours."""

    def __init__(self) -> None:
        self._promptest_s: float | None = None
        self._seen_s = 0.0
        self._lag_s = 0.0

    def lag_s(self, now_s: float, stamp_s: float) -> float:
        """Say how long a picture with this stamp was on the way, beyond the promptest one.

        Args:
            now_s: our monotonic clock.
            stamp_s: the stream's; 0.0 or less is a picture without a stamp, which lags like the one before it.
        """
        if stamp_s <= 0.0:
            return self._lag_s
        offset_s = now_s - stamp_s
        if self._promptest_s is None:
            self._promptest_s = offset_s
        else:
            self._promptest_s = min(offset_s, self._promptest_s + (now_s - self._seen_s) * DRIFT)
        self._seen_s = now_s
        self._lag_s = offset_s - self._promptest_s
        return self._lag_s
