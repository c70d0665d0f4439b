"""The runner itself, with a ring that writes down when each result came: `python -m tests.bench.recorder PLAN.json`."""

from __future__ import annotations

import sys
from pathlib import Path
from time import monotonic_ns

import msgspec
import numpy as np

from lenskeep.messages.runner import Result, SlotPlan
from lenskeep.runner.__main__ import serve
from lenskeep.runner.confine.policy import confine_runner
from lenskeep.runner.ring import ResultRing
from lenskeep.runner.wire import listen


class NotingRing(ResultRing):
    """Notes the moment of every result."""

    def __init__(self, run: str, size: int) -> None:
        super().__init__(run, size)
        self.times_ns: list[int] = []
        keep, note = self.append, self.times_ns.append

        def append(result: Result) -> None:
            note(monotonic_ns())
            keep(result)

        self.append = append  # type: ignore[assignment]


if __name__ == "__main__":
    plan_path = Path(sys.argv[1])
    plan = msgspec.json.decode(plan_path.read_bytes(), type=SlotPlan)
    ring = NotingRing("bench", plan.result_ring)
    with plan_path.with_name("times.npy").open("wb") as times:  # a runner opens no file to write later
        serve(plan, listen(Path(plan.socket_path)), ring, *confine_runner(plan))
        np.save(times, np.array(ring.times_ns, np.int64))
