"""The thread that destroys sessions, and gives their memory back to the system a little later.

Rules. The loop never destroys a session itself; it takes 1 to 10 ms with the interpreter's lock held, so it is not done
lowered. The C library keeps what was freed, several times the model's size after some swaps, until it is told to
trim; that is some 20-80 ms of work without the lock, done once things are quiet and at low priority.
"""

from __future__ import annotations

import queue
import threading

from lenskeep.runner import priority
from lenskeep.runner.engine import Engine
from lenskeep.runner.libraries import trim_memory

QUIET_S = 3.0


class ReleaseThread(threading.Thread):
    """Takes sessions that nobody uses any more."""

    def __init__(self) -> None:
        super().__init__(name="release", daemon=True)
        self._queue: queue.SimpleQueue[Engine] = queue.SimpleQueue()

    def take(self, engine: Engine | None) -> None:
        """Let a session go; called from any thread. Cost: none."""
        if engine is not None:
            self._queue.put(engine)

    def run(self) -> None:
        """Destroy what comes; trim after a quiet while."""
        trim_due = False
        while True:
            try:
                engine: Engine | None = self._queue.get(timeout=QUIET_S if trim_due else None)
            except queue.Empty:
                priority.lower_own()
                trim_memory()
                priority.restore(threading.get_native_id())
                trim_due = False
                continue
            if engine is not None:
                engine.close()
            engine, trim_due = None, True
