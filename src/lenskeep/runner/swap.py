"""Which session judges, which stays warm behind it, and how the next one takes its place between two frames.

Rules. Only the loop's thread exchanges, and an exchange is two assignments; everything that costs time happens in
threads of low priority: building and warming before it, destroying and trimming after it. A newer wish takes the
place of an older one. Going back ignores a hold and needs nothing but the warm previous session; the version that
was gone back from is let go, so that going back twice never brings it again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass

from lenskeep.errors import LenskeepError, NothingToRollBackToError, SwapRefusedError
from lenskeep.messages.runner import BundleRef, FromRunner, SlotPlan, SwapFailed
from lenskeep.runner.engine import Engine
from lenskeep.runner.sealed import Reader, sealed
from lenskeep.runner.sessions import Load, SessionThread

log = logging.getLogger(__name__)

DEADLINES_MAX = 3  # after one the loader gets its priority back, after so many the swap is given up
TAKEN_BACK = "The swap was taken back before the exchange."
OVERTAKEN = "A newer order took its place before the exchange."


@dataclass(frozen=True, slots=True)
class Change:
    """A session that is ready to take over before the next frame."""

    op: str
    engine: Engine
    prepare_ms: float = 0.0
    back: bool = False
    reflex: str = ""


class Changeover:
    """The sessions of one slot. Orders come from the reporter's thread, `exchange` and `reflex` from the loop's."""

    def __init__(self, plan: SlotPlan, news: deque[FromRunner], sessions: SessionThread) -> None:
        self.active: Engine | None = None
        self.previous: Engine | None = None
        self.due: Change | None = None  # the loop reads this before every frame
        self.held = False
        self.came = threading.Event()  # set whenever something became due
        self._plan = plan
        self._news = news
        self._sessions = sessions
        self._first: Load | None = None  # a newer order does not take the place of the one that a slot starts with
        self._load: Load | None = None
        self._deadline_s = 0.0
        self._give_up_s = 0.0
        self._kept: Change | None = None  # ready, but held
        self._lock = threading.Lock()

    # --- orders -----------------------------------------------------------------------------------------------------

    def start(self, bundle: BundleRef, read: Reader = sealed) -> None:
        """Load the slot's first version; nothing runs yet that it could disturb."""
        self._first = Load("", bundle, self._plan.threads, self._loaded, lowered=False, warm=False, read=read)
        self._sessions.load(self._first)

    def swap(self, op: str, bundle: BundleRef) -> None:
        """Prepare a version and exchange to it; at once when it is here already.

        An order that is being carried out goes on: a daemon that died in between gives it again.
        """
        if op == self.pending_op():
            return
        self._withdraw(OVERTAKEN)
        for engine in (self.active, self.previous):
            if engine is not None and engine.ref == bundle:
                self._offer(Change(op, engine))
                return
        self._make_room(bundle)
        now_s = time.monotonic()
        self._deadline_s = now_s + self._plan.swap_deadline_s
        self._give_up_s = now_s + self._plan.swap_deadline_s * DEADLINES_MAX
        self._load = Load(op, bundle, self._plan.threads, self._loaded, lowered=True, warm=True)
        self._sessions.load(self._load)

    def cancel(self, op: str) -> None:
        """Give up a swap that has not been exchanged yet."""
        if op == self.pending_op():
            self._withdraw(TAKEN_BACK)

    def back(self, op: str) -> None:
        """Exchange to the warm previous version before the next frame."""
        self._withdraw(OVERTAKEN)
        with self._lock:
            if self.previous is not None:
                self._set_due(Change(op, self.previous, back=True))
                return
        self._refuse(op, NothingToRollBackToError("No previous version is warm in this slot; the active one went on."))

    def hold(self, held: bool) -> None:
        """While held, a prepared swap waits."""
        with self._lock:
            self.held = held
            if not held and self._kept is not None:
                self._set_due(self._kept)
                self._kept = None

    def release(self) -> None:
        """Let the warm previous version go, unless it is about to take over."""
        with self._lock:
            if any(change is not None and change.engine is self.previous for change in (self.due, self._kept)):
                return
            gone, self.previous = self.previous, None
        self._sessions.release(gone)

    def pending_op(self) -> str:
        """Return the operation that is being prepared or waits for its exchange."""
        with self._lock:
            pending = self._load or self._kept or self.due
            return pending.op if pending is not None else ""

    def tick(self, now_s: float) -> None:
        """Keep the deadline of a swap that is being prepared."""
        load = self._load
        if load is None:
            return
        if now_s > self._give_up_s:
            self._withdraw(f"It could not be prepared in {DEADLINES_MAX * self._plan.swap_deadline_s:.0f} s.")
        elif now_s > self._deadline_s and not load.hurry():
            self._deadline_s = now_s + self._plan.swap_deadline_s
            self._load_elsewhere(load)

    def _load_elsewhere(self, load: Load) -> None:
        """Begin again at normal priority in a new thread: the old one may not be raised, or does not come to it."""
        again = load.again()
        with self._lock:
            if self._load is not load:
                return
            self._load = again
        load.cancel()
        self._sessions.retire()
        self._sessions = SessionThread()
        self._sessions.start()
        self._sessions.load(again)

    def close(self) -> None:
        """End what is being prepared."""
        self._withdraw(TAKEN_BACK)

    # --- the loop's end ---------------------------------------------------------------------------------------------

    def exchange(self) -> Change | None:
        """Let the session that is due take over; None when it was withdrawn. Cost: a few assignments."""
        with self._lock:
            change, self.due = self.due, None
            self.came.clear()
            if change is None or change.engine is self.active:
                return change
            old, spare = self.active, self.previous
            self.active = change.engine
            self.previous = None if change.back or not self._fits(change.engine, old) else old
        for engine in (old, spare):
            if engine is not self.active and engine is not self.previous:
                self._sessions.release(engine)
        return change

    def reflex(self, op: str, code: str) -> bool:
        """Go back without being told; say whether there is a way back."""
        with self._lock:
            if self.previous is None or self.due is not None:
                return False
            self._set_due(Change(op, self.previous, back=True, reflex=code))
        return True

    # --- inside -----------------------------------------------------------------------------------------------------

    def _loaded(self, load: Load, engine: Engine | None, fault: LenskeepError | None) -> None:
        """A load ended, in the session thread."""
        with self._lock:
            wanted = load in (self._load, self._first)
            if load is self._first:
                self._first = None
                wanted = self.active is None  # else a newer version was quicker
            elif wanted:
                self._load = None
        if not wanted:
            self._sessions.release(engine)
        elif engine is not None:
            self._offer(Change(load.op, engine, prepare_ms=1000 * (time.monotonic() - load.begun_s)))
        elif fault is not None:
            self._refuse(load.op, fault)

    def _offer(self, change: Change) -> None:
        with self._lock:
            if self.held and self.active is not None:
                self._kept = change
            else:
                self._set_due(change)

    def _set_due(self, change: Change) -> None:
        """Let the loop exchange; a version that was due and not taken yet is passed over."""
        if self.due is not None and self.due.engine not in (self.active, self.previous):
            self._sessions.release(self.due.engine)
        self.due = change
        self.came.set()

    def _withdraw(self, why: str) -> None:
        """Take back whatever has not been exchanged yet, and say so."""
        with self._lock:
            load, self._load = self._load, None
            changes = [change for change in (self._kept, self.due) if change is not None and change.op]
            self._kept = None
            if self.due in changes:
                self.due = None
            warm = (self.active, self.previous)
        if load is not None:
            load.cancel()
            self._refuse(load.op, SwapRefusedError(why))
        for change in changes:
            if change.engine not in warm:
                self._sessions.release(change.engine)
            self._refuse(change.op, SwapRefusedError(why))

    def _refuse(self, op: str, fault: LenskeepError) -> None:
        log.warning("%s swap %s: %s", fault.code, op or "at start", fault)
        self._news.append(SwapFailed(op=op, code=fault.code, message=str(fault)))

    def _make_room(self, bundle: BundleRef) -> None:
        """Three versions at once, while the third is prepared, must fit the limit too."""
        loaded = [engine for engine in (self.active, self.previous) if engine is not None]
        if self._over(sum(engine.memory_mb for engine in loaded) + bundle.memory_mb):
            self.release()

    def _fits(self, active: Engine, previous: Engine | None) -> bool:
        return previous is not None and not self._over(active.memory_mb + previous.memory_mb)

    def _over(self, memory_mb: int) -> bool:
        return 0 < self._plan.memory_max_mb < memory_mb
