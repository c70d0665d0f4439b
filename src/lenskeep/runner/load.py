"""The thread that builds and warms the next session beside the line, at low priority.

Rules. Its Python runs at normal priority, only the long native calls between do not: see `priority`. Where a thread may
not be raised again, all of it runs lowered, which costs the line some milliseconds more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lenskeep.errors import LenskeepError, SwapRefusedError
from lenskeep.messages.runner import BundleRef
from lenskeep.runner import priority
from lenskeep.runner.engine import Cancel, Engine
from lenskeep.runner.sealed import Reader, sealed

log = logging.getLogger(__name__)

WARM_RUNS = 3  # the first run of a session costs up to twice as much as the later ones


class LoadThread(threading.Thread):
    """Loads one version and hands it over by `done(load, engine | None, fault | None)`, in this thread.

    Args:
        lowered: run at low priority; a session with pool threads is built lowered only if they can be raised after.
    """

    def __init__(
        self,
        op: str,
        bundle: BundleRef,
        threads: int,
        *,
        lowered: bool,
        done: Callable[[LoadThread, Engine | None, LenskeepError | None], None],
        read: Reader = sealed,
    ) -> None:
        super().__init__(name=f"load {bundle.ref}", daemon=True)
        self.op = op
        self.bundle = bundle
        self.lowered = lowered and (threads == 1 or priority.may_restore())
        self.begun_s = time.monotonic()
        self._threads = threads
        self._done = done
        self._read = read
        self._cancel = Cancel()

    def cancel(self) -> None:
        """Give up as soon as the runtime lets go; `done` is called all the same."""
        self._cancel.set()

    def hurry(self) -> bool:
        """Go on at normal priority; say whether that was permitted."""
        if self.native_id is None or not priority.restore(self.native_id):
            return False
        self.lowered = False
        priority.restore_pool_threads()
        return True

    def run(self) -> None:
        """Load, warm, hand over."""
        engine, fault = None, None
        try:
            if self.lowered and not priority.may_restore():
                priority.lower_own()
            engine = self._load()
        except LenskeepError as error:
            fault = error
        except Exception as error:  # whatever a model does to the runtime, the running session must not feel it
            log.exception("loading %s failed", self.bundle.ref)
            fault = SwapRefusedError(f"{self.bundle.ref} could not be loaded: {error}")
        self._done(self, engine, fault)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Lower this thread for a native call, unless it was told to hurry."""
        if not self.lowered or not priority.may_restore():
            yield
            return
        priority.lower_own()
        try:
            yield
        finally:
            priority.restore(threading.get_native_id())

    def _load(self) -> Engine:
        engine = Engine.load(
            self.bundle, threads=self._threads, cancel=self._cancel, aside=self._aside, read=self._read
        )
        if engine.note:
            log.warning("%s: %s", self.bundle.ref, engine.note)
        if self.op:  # the first version of a process is warmed by its first frame, which nobody else has to wait for
            engine.warm(WARM_RUNS, self._aside)
        if self._threads > 1:
            priority.restore_pool_threads()
        return engine
