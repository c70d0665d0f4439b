"""The thread beside the line: it builds and warms the next session, destroys those that nobody uses, and gives their
memory back a little later.

Rules. Python runs here at normal priority, only long native calls do not: see `priority`. Where a thread may not be
raised again, all of it runs lowered, which costs the line some milliseconds more. Destroying a session takes 1 to 10 ms
with the interpreter's lock held, so it is never done lowered. One thread does all of it, one thing after the other,
because the C library keeps what is freed apart by thread: so the next session gets the memory of the one before last.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from lenskeep.errors import LenskeepError, SwapRefusedError
from lenskeep.messages.runner import BundleRef
from lenskeep.runner import priority
from lenskeep.runner.engine import Cancel, Engine
from lenskeep.runner.libraries import trim_memory
from lenskeep.runner.sealed import Reader, sealed

log = logging.getLogger(__name__)

WARM_RUNS = 3  # the first run of a session costs up to twice as much as the later ones
QUIET_S = 3.0

Done = Callable[["Load", Engine | None, LenskeepError | None], None]


class Load:
    """One version to be loaded; handed over by `done(load, engine | None, fault | None)` in the session thread.

    Args:
        lowered: run at low priority; a session with pool threads is built lowered only if they can be raised after.
        warm: run the session before it is handed over; the first version of a process is warmed by its first frame.
    """

    def __init__(
        self, op: str, bundle: BundleRef, threads: int, done: Done, *, lowered: bool, warm: bool, read: Reader = sealed
    ) -> None:
        self.op = op
        self.bundle = bundle
        self.lowered = lowered and (threads == 1 or priority.may_restore())
        self.begun_s = time.monotonic()
        self._threads = threads
        self._done = done
        self._warm = warm
        self._read = read
        self._cancel = Cancel()
        self._native_id = 0

    def cancel(self) -> None:
        """Give up as soon as the runtime lets go; `done` is called all the same."""
        self._cancel.set()

    def hurry(self) -> bool:
        """Go on at normal priority; say whether it does: it has begun, and its thread may be raised."""
        if not self._native_id or (self.lowered and not priority.restore(self._native_id)):
            return False
        if self.lowered:
            self.lowered = False
            priority.restore_pool_threads()
        return True

    def again(self) -> Load:
        """Return the same order for another thread, at normal priority."""
        return Load(self.op, self.bundle, self._threads, self._done, lowered=False, warm=self._warm)

    def work(self) -> None:
        """Load, warm, hand over."""
        engine, fault = None, None
        self._native_id = threading.get_native_id()
        try:
            engine = self._load()
        except LenskeepError as error:
            fault = error
        except Exception as error:  # whatever a model does to the runtime, the running session must not feel it
            log.exception("loading %s failed", self.bundle.ref)
            fault = SwapRefusedError(f"{self.bundle.ref} could not be loaded: {error}")
        self._done(self, engine, fault)

    def _load(self) -> Engine:
        engine = Engine.load(
            self.bundle, threads=self._threads, cancel=self._cancel, aside=self._aside, read=self._read
        )
        if engine.note:
            log.warning("%s: %s", self.bundle.ref, engine.note)
        if self._warm:
            engine.warm(WARM_RUNS, self._aside)
        if self._threads > 1:
            priority.restore_pool_threads()
        return engine

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Lower this thread for a native call, unless it was told to hurry."""
        with priority.aside() if self.lowered else nullcontext():
            yield


class SessionThread(threading.Thread):
    """Takes loads to do and sessions to destroy."""

    def __init__(self) -> None:
        super().__init__(name="sessions", daemon=True)
        self._jobs: queue.SimpleQueue[Load | Engine | None] = queue.SimpleQueue()

    def load(self, load: Load) -> None:
        """Load a version, after what is being done now."""
        self._jobs.put(load)

    def release(self, engine: Engine | None) -> None:
        """Let a session go; called from any thread. Cost: none."""
        if engine is not None:
            self._jobs.put(engine)

    def retire(self) -> None:
        """End after what was given so far: another thread has taken over."""
        self._jobs.put(None)

    def run(self) -> None:
        """Do what comes; trim the memory after a quiet while."""
        trim_due = False
        while True:
            try:
                job = self._jobs.get(timeout=QUIET_S if trim_due else None)
            except queue.Empty:
                with priority.aside():
                    trim_memory()
                trim_due = False
                continue
            if job is None:
                return
            if isinstance(job, Load):
                job.work()
            else:
                job.close()
                trim_due = True
            del job  # or it would live until the next one comes
