"""How long the fleet may hold its answer: as long as is wished, unless something on the way cuts connections that idle.

Rules. One cut is an accident, for example a fleet that is started again. Two without an answer that came later are a
habit of the way, and then less is asked for than the shorter one lasted; a line that only falls silent is found by
halves. What would be very short is not held at all. After an hour the wish is tried again: networks are mended.
"""

from __future__ import annotations

from lenskeep.clock import Clock

MARGIN = 0.8
LASTED_S_MIN = 1.0  # what breaks sooner was not held
HELD_S_MIN, HELD_SHARE_MIN = 10.0, 0.2  # whichever is less
AGAIN_S = 3600.0


class Patience:
    """What is asked for now. Args: `wish_s` = what is configured."""

    def __init__(self, wish_s: float, clock: Clock) -> None:
        self._wish_s = self._wait_s = wish_s
        self._clock = clock
        self._cut_s = 0.0  # how long the last hold lasted that was cut
        self._learned_s = 0.0

    def wait_s(self) -> float:
        """Return for how long the fleet is asked to hold its answer."""
        if self._wait_s < self._wish_s and self._clock.monotonic_s() - self._learned_s > AGAIN_S:
            self._wait_s, self._cut_s = self._wish_s, 0.0
        return self._wait_s

    def answered(self, lasted_s: float) -> None:
        """Note a hold that ended with an answer."""
        if lasted_s >= self._cut_s:
            self._cut_s = 0.0

    def cut(self, lasted_s: float) -> bool:
        """Note a hold that broke; say whether it was one, and the fleet is simply to be dialled again."""
        if lasted_s < LASTED_S_MIN:
            return False
        before_s, self._cut_s = self._cut_s, lasted_s
        if lasted_s > self._wait_s:  # the answer was due: what was cut said nothing
            self._ask_for(self._wait_s / 2)
        elif before_s:
            self._ask_for(MARGIN * min(before_s, lasted_s))
        return True

    def _ask_for(self, seconds: float) -> None:
        self._wait_s = seconds if seconds >= min(HELD_S_MIN, HELD_SHARE_MIN * self._wish_s) else 0.0
        self._learned_s, self._cut_s = self._clock.monotonic_s(), 0.0

    def words(self) -> str:
        """Say what was learned, for people; nothing when all is as wished."""
        if self._wait_s == self._wish_s:
            return ""
        if not self._wait_s:
            return "answers are not held: connections that idle are cut within seconds on the way"
        return f"answers are held for {self._wait_s:.0f} s: connections that idle longer are cut on the way"
