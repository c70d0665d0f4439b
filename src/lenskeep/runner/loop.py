"""The loop: one frame after the other through the active session, an exchange of sessions only between two of them.

Rules. Every frame that is taken gets exactly one result, whatever the model does with it: an exception becomes an
ERROR result. A frame that was prepared for another version's input is prepared again from its picture, so an exchange
loses none. Nothing here waits for the daemon. Times come from the one monotonic clock that stamped the frame.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any, NamedTuple

from lenskeep.errors import ErrorRateGateError, InferenceError, LenskeepError
from lenskeep.messages.runner import FromRunner, Result, Swapped
from lenskeep.runner.engine import Engine
from lenskeep.runner.mailbox import Mailbox, Work
from lenskeep.runner.nudge import Nudge
from lenskeep.runner.preview import PreviewDesk
from lenskeep.runner.resize import Image
from lenskeep.runner.ring import ResultRing
from lenskeep.runner.swap import Change, Changeover
from lenskeep.runner.tensors import Prepared

log = logging.getLogger(__name__)

IDLE_S = 0.1
FIRST_RESULT_MAX_NS = 1_000_000_000  # an exchange that no frame follows is reported without an interval


class Staged(NamedTuple):
    """A frame as a capture thread hands it over: prepared for the version that was active then."""

    prepared: Prepared
    preprocess_us: int


@dataclass(slots=True)
class Newcomer:
    """A session that has just taken over, until it has proved that it can judge at all."""

    change: Change
    began_ns: int  # of the last result before it, or of the exchange when there was none
    reported: bool = False
    errors: int = 0


class Loop:
    """Judges frames in the thread that calls `run`."""

    def __init__(
        self,
        mailbox: Mailbox,
        changeover: Changeover,
        ring: ResultRing,
        preview: PreviewDesk,
        news: deque[FromRunner],
        nudge: Nudge,
        errors_max: int,
    ) -> None:
        self.judged = 0  # also the sequence number of the last result
        self.turns = 0  # grows while this thread is alive, frames or not
        self.stopping = False
        self._mailbox = mailbox
        self._changeover = changeover
        self._keep = ring.append
        self._preview = preview
        self._news = news
        self._nudge = nudge
        self._errors_max = errors_max
        self._newcomer: Newcomer | None = None
        self._last_ns = 0
        self._fault_said = ""

    def stage(self, image: Image) -> Staged | None:
        """Prepare a frame for the active version; called by the capture threads. None before the first version."""
        engine = self._changeover.active
        return None if engine is None else _stage(engine, image)

    def run(self) -> None:
        """Judge until told to stop."""
        changeover, take = self._changeover, self._mailbox.take
        while not self.stopping:
            self.turns += 1
            work: Work | None = None
            if changeover.active is None:
                changeover.came.wait(IDLE_S)
            else:
                work = take(IDLE_S)
            if changeover.due is not None:
                self._exchange()
            if work is not None and changeover.active is not None:
                self._judge(changeover.active, work)
            elif self._newcomer is not None:
                self._report_idle(self._newcomer)

    # --- one frame --------------------------------------------------------------------------------------------------

    def _judge(self, engine: Engine, work: Work) -> None:
        frame, staged = work.frame, work.prepared
        try:
            if staged is None or staged.prepared.spec_key != engine.spec_key:
                staged = _stage(engine, frame.image)
            begun_ns = monotonic_ns()
            outputs = engine.infer(staged.prepared)
            inferred_ns = monotonic_ns()
            seen = engine.decode(outputs, staged.prepared.placement)
        except Exception as error:  # noqa: BLE001 - whatever a model does to a frame, the frame gets its result
            self._fail(engine, work, error)
            return
        done_ns = monotonic_ns()
        self.judged += 1
        result = Result(
            self.judged, work.camera, frame.number, frame.captured_ms,
            seen.outcome, seen.label, seen.score, seen.margin, seen.detections, engine.ref.ref, engine.digest,
            max(0, (begun_ns - frame.captured_ns) // 1000 - staged.preprocess_us), staged.preprocess_us,
            (inferred_ns - begun_ns) // 1000, (done_ns - inferred_ns) // 1000, (done_ns - frame.captured_ns) // 1000,
        )  # fmt: skip
        self._keep(result)
        if self._newcomer is not None:
            self._report(self._newcomer, done_ns)
            self._newcomer = None
        self._last_ns = done_ns
        if self._preview.watched:
            self._preview.offer(work, result)

    def _fail(self, engine: Engine, work: Work, error: Exception) -> None:
        """Make the ERROR result of a frame that could not be judged."""
        code = error.code if isinstance(error, LenskeepError) else InferenceError.code
        self._say_once(engine, code, error)
        now_ns = monotonic_ns()
        total_us = (now_ns - work.frame.captured_ns) // 1000
        self.judged += 1
        result = Result(
            self.judged, work.camera, work.frame.number, work.frame.captured_ms, "ERROR", "", 0.0, 0.0, [],
            engine.ref.ref, engine.digest, 0, 0, 0, 0, total_us, code,
        )  # fmt: skip
        self._keep(result)
        if self._newcomer is not None:
            self._report(self._newcomer, now_ns)
            self._doubt(self._newcomer)
        self._last_ns = now_ns
        if self._preview.watched:
            self._preview.offer(work, result)

    def _say_once(self, engine: Engine, code: str, error: Exception) -> None:
        """Log a fault when it is another than the last one: a broken model fails a hundred times a second."""
        said = f"{engine.ref.ref} {code} {error}"
        if said != self._fault_said:
            self._fault_said = said
            log.error("%s frame %d: %s: %s", code, self.judged + 1, engine.ref.ref, error)

    # --- the exchange -----------------------------------------------------------------------------------------------

    def _exchange(self) -> None:
        change = self._changeover.exchange()
        if change is None:
            return
        self._newcomer = Newcomer(change, self._last_ns or monotonic_ns(), reported=not change.op)

    def _report(self, newcomer: Newcomer, now_ns: int) -> None:
        """Tell the daemon of an exchange, with the first result that followed it."""
        self._nudge.give()
        if newcomer.reported:
            return
        newcomer.reported = True
        self._tell(newcomer.change, (now_ns - newcomer.began_ns) / 1e6, self.judged)

    def _report_idle(self, newcomer: Newcomer) -> None:
        """Nothing comes to be judged: tell of the exchange all the same."""
        if not newcomer.reported and monotonic_ns() - newcomer.began_ns > FIRST_RESULT_MAX_NS:
            newcomer.reported = True
            self._tell(newcomer.change, 0.0, self.judged + 1)

    def _tell(self, change: Change, interval_ms: float, sequence: int) -> None:
        engine = change.engine
        log.info("%s runs, %.1f ms between two results", engine.ref.ref, interval_ms)
        self._news.append(
            Swapped(
                op=change.op, bundle=engine.ref.ref, digest=engine.digest, prepare_ms=change.prepare_ms,
                interval_ms=interval_ms, sequence=sequence, back=change.back, reflex=change.reflex,
            )
        )  # fmt: skip

    def _doubt(self, newcomer: Newcomer) -> None:
        """A newcomer that has not judged a single frame goes back by itself."""
        newcomer.errors += 1
        if newcomer.errors >= self._errors_max and not newcomer.change.back:
            ref = newcomer.change.engine.ref.ref
            if self._changeover.reflex(newcomer.change.op, ErrorRateGateError.code):
                log.error("%s failed on its first %d frames: going back", ref, newcomer.errors)
            self._newcomer = None


def _stage(engine: Engine, image: Any) -> Staged:
    begun_ns = monotonic_ns()
    prepared = engine.prepare(image)
    return Staged(prepared, (monotonic_ns() - begun_ns) // 1000)
