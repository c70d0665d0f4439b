"""Says whether something goes on that work in the background must not disturb."""

from __future__ import annotations

from lenskeep.clock import Clock
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.qualifier import Qualifier
from lenskeep.daemon.scrubber import LINE_LATE
from lenskeep.daemon.supervisor import Supervisor

MISSES_SHARE = 0.01
LINE_LOOK_S = 10.0


class Quiet:
    """Asked often: what it looks at costs little, and the line's last minute is counted every ten seconds only."""

    def __init__(self, qualifier: Qualifier, supervisor: Supervisor, metrics: Metrics, clock: Clock) -> None:
        self._clock = clock
        self._qualifier = qualifier
        self._supervisor = supervisor
        self._metrics = metrics
        self._looked_s = float("-inf")
        self._late = False

    def why_not(self) -> str:
        """Say what must not be disturbed now; nothing when nothing must."""
        now_s = self._clock.monotonic_s()
        if self._qualifier.busy:
            return "a trial is under way"
        beats = [process.beat for process in self._supervisor.processes.values()]
        if any(beat.swapping for beat in beats if beat is not None):
            return "a swap is under way"
        if now_s - self._looked_s >= LINE_LOOK_S:
            self._looked_s, self._late = now_s, any(self._is_late(slot) for slot in self._supervisor.processes)
        return LINE_LATE if self._late else ""

    def _is_late(self, slot: str) -> bool:
        span = self._metrics.live(slot)
        return span.misses > MISSES_SHARE * span.frames
