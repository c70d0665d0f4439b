"""One camera's capture: opens its source, reads, prepares, hands over, and opens it again when it is lost.

Rules. A read inside a driver or a network library cannot be cancelled. So each opening of the source is a thread of
its own that can be given up: what it returns later is thrown away, and nothing ever waits for it. Frames are numbered
over all openings. Only a picture's own age keeps a live camera "running", not that its stream is open.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import closing
from time import monotonic_ns
from typing import Any, Literal

from lenskeep.errors import CameraError, CameraFormatError, CameraFrozenError, CameraMissingError
from lenskeep.messages.runner import CameraPlan, CameraState
from lenskeep.runner.mailbox import Frame, Mailbox, Work
from lenskeep.runner.resize import Image
from lenskeep.runner.sources.address import redacted
from lenskeep.runner.sources.opening import open_source
from lenskeep.runner.sources.source import is_live

log = logging.getLogger(__name__)

PAUSE_S_FIRST = 0.5
PAUSE_S_MAX = 10.0
FPS_WINDOW_NS = 3_000_000_000
GRACE_S = 0.5  # lets a source say itself that it timed out, in better words than ours
STUCK_READERS_MAX = 3  # threads that a driver may keep before no further one is risked
FAREWELL_S = 0.5

Health = Literal["opening", "running", "lost", "frozen", "format", "ended"]


class ReaderThread(threading.Thread):
    """One opening of a camera's source; it lives until the source ends, fails, or is given up."""

    def __init__(self, camera: CaptureThread, plan: CameraPlan) -> None:
        super().__init__(name=f"read-{plan.name}", daemon=True)
        self.over = threading.Event()  # nothing more is wanted from it, or will come
        self.fault: CameraError | None = None
        self.began_ns = monotonic_ns()
        self.frames = 0
        self._camera = camera
        self._plan = plan

    def run(self) -> None:
        """Open and read."""
        try:
            with closing(open_source(self._plan, self.over)) as source:
                while not self.over.is_set():
                    try:
                        image = source.read()
                    except CameraFormatError as fault:
                        self._camera.refuse(self, fault)
                        continue
                    if image is None:
                        break
                    self._camera.arrive(self, image, monotonic_ns() - int(source.lag_s * 1e9))
        except CameraError as fault:
            self.give_up(fault)
        finally:
            self.over.set()

    def give_up(self, fault: CameraError | None) -> None:
        """Want nothing more from it; the first reason stands."""
        if not self.over.is_set():
            self.fault = fault
            self.over.set()


class CaptureThread(threading.Thread):
    """Keeps one camera's frames coming until `stop`.

    Args:
        prepare: the active version's preprocessing; it runs beside inference, in the reader's thread. When it raises,
            the frame is handed over unprepared, so that it still gets its result.
    """

    def __init__(self, plan: CameraPlan, mailbox: Mailbox, prepare: Callable[[Image], Any]) -> None:
        super().__init__(name=f"camera-{plan.name}", daemon=True)
        self._plan = plan
        self._live = is_live(plan)
        self._lane = mailbox.lane(plan.frame_age_max_s if self._live else None)
        self._prepare = prepare
        self._halt = threading.Event()
        self._lock = threading.Lock()  # one reader's frames or another's, never both
        self._reader: ReaderThread | None = None
        self._stuck: list[ReaderThread] = []
        self._health: tuple[Health, CameraError | None] = ("opening", None)
        self._frames = 0
        self._reconnects = 0
        self._newest_ns = 0
        self._size_px = (0, 0)
        self._arrivals_ns: deque[int] = deque(maxlen=256)
        self._prepare_fault = ""

    # --- for the slot -----------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Open the source, again and again."""
        failures = 0
        while not self._halt.is_set():
            reader = self._begin()
            reader.over.wait()
            if self._halt.is_set():
                reader.join(FAREWELL_S)
                return
            if reader.fault is None:
                self._set("ended", None)
                return
            self._lose(reader, reader.fault)
            failures = 0 if reader.frames else failures + 1
            self._pause(failures)

    def watch(self) -> None:
        """Give up a reader that has been silent for too long; called twice a second."""
        reader = self._reader
        if reader is None or reader.over.is_set() or not self._live:
            return
        plan = self._plan
        if reader.frames:
            patience_s, since_ns = max(plan.frame_age_max_s, plan.read_timeout_s), self._newest_ns
        else:
            patience_s, since_ns = plan.open_timeout_s + plan.read_timeout_s, reader.began_ns
        if monotonic_ns() - since_ns > (patience_s + GRACE_S) * 1e9:
            reader.give_up(self._frozen())

    def state(self) -> CameraState:
        """Say how the camera does; any thread may ask."""
        now_ns = monotonic_ns()
        health, fault = self._health
        age_s = (now_ns - self._newest_ns) / 1e9 if self._newest_ns else -1.0
        if health == "running" and self._live and age_s > self._plan.frame_age_max_s:
            health, fault = "frozen", self._frozen()
        elif health == "ended" and len(self._lane):
            health = "running"
        fps = 0.0 if health in ("lost", "ended") else self._fps(now_ns)
        return CameraState(
            name=self._plan.name, state=health, fps=fps, frames=self._frames,
            width_px=self._size_px[0], height_px=self._size_px[1], frame_age_s=round(age_s, 3),
            reconnects=self._reconnects, drops=self._lane.drops(), code=fault.code if fault else "",
            message=str(fault) if fault else "",
        )  # fmt: skip

    def stop(self) -> None:
        """End soon, whatever the camera's driver does."""
        self._halt.set()
        self._lane.close()
        with self._lock:
            if self._reader is not None:
                self._reader.give_up(None)

    # --- for the reader ---------------------------------------------------------------------------------------------

    def arrive(self, reader: ReaderThread, image: Image, captured_ns: int) -> None:
        """Take a picture: count it, check it, prepare it, hand it over."""
        number = self._count(reader, image, captured_ns)
        if number is None:
            return
        captured_ms = time.time_ns() // 1_000_000 - (monotonic_ns() - captured_ns) // 1_000_000
        frame = Frame(image, number, captured_ns, captured_ms)
        self._lane.put(Work(self._plan.name, frame, self._prepared(image)))

    def refuse(self, reader: ReaderThread, fault: CameraFormatError) -> None:
        """Count a picture that cannot be used."""
        with self._lock:
            if reader.over.is_set():
                return
            self._frames += 1
            reader.frames += 1
            self._refused(fault)

    def _count(self, reader: ReaderThread, image: Image, captured_ns: int) -> int | None:
        """Give the picture its number; None when it is not to be judged."""
        height_px, width_px = image.shape[:2]
        with self._lock:
            if reader.over.is_set():  # a late return of a reader that was given up
                return None
            number = self._frames
            self._reconnects += reader.frames == 0 and number > 0
            self._frames += 1
            reader.frames += 1
            self._newest_ns = captured_ns
            self._arrivals_ns.append(monotonic_ns())
            self._size_px = (width_px, height_px)
            if width_px != (self._plan.width_px or width_px) or height_px != (self._plan.height_px or height_px):
                self._refused(self._other_size(width_px, height_px))
                return None
            if self._health[0] != "running":
                self._set("running", None)
            return number

    def _prepared(self, image: Image) -> Any:
        try:
            return self._prepare(image)
        except Exception as error:  # noqa: BLE001 - whatever a model's preprocessing does, the frame gets its result
            if str(error) != self._prepare_fault:
                self._prepare_fault = str(error)
                log.error("camera %s: a frame could not be prepared: %s", self._plan.name, error)
            return None

    # --- the camera's life ------------------------------------------------------------------------------------------

    def _begin(self) -> ReaderThread:
        reader = ReaderThread(self, self._plan)
        with self._lock:
            self._reader = reader
            if self._halt.is_set():
                reader.give_up(None)
        reader.start()
        return reader

    def _lose(self, reader: ReaderThread, fault: CameraError) -> None:
        self._set("frozen" if isinstance(fault, CameraFrozenError) else "lost", fault)
        self._stuck = [stuck for stuck in (*self._stuck, reader) if stuck.is_alive()]

    def _pause(self, failures: int) -> None:
        """Wait before the next opening, longer each time; and for the driver, when it keeps too many threads."""
        pause_s = min(PAUSE_S_MAX, PAUSE_S_FIRST * 2 ** min(failures, 10))
        self._halt.wait(pause_s * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
        while len(self._stuck) >= STUCK_READERS_MAX and not self._halt.wait(PAUSE_S_FIRST):
            self._stuck = [stuck for stuck in self._stuck if stuck.is_alive()]

    def _refused(self, fault: CameraFormatError) -> None:
        self._lane.drop("format")
        if self._health[0] != "format" or str(self._health[1]) != str(fault):
            self._set("format", fault)

    def _set(self, health: Health, fault: CameraError | None) -> None:
        before, self._health = self._health, (health, fault)
        if fault is not None and str(fault) != str(before[1]):
            log.warning("%s %s", fault.code, fault)
        elif health != before[0]:
            log.info("camera %s: %s", self._plan.name, health)

    def _frozen(self) -> CameraError:
        where = redacted(self._plan.source)
        if not self._newest_ns:
            return CameraMissingError(f"Camera {self._plan.name}: {where} opens but sends no picture.")
        return CameraFrozenError(
            f"Camera {self._plan.name}: {where} sent no new picture for more than {self._plan.frame_age_max_s:g} s."
        )

    def _other_size(self, width_px: int, height_px: int) -> CameraFormatError:
        wanted = f"{self._plan.width_px or 'any'}x{self._plan.height_px or 'any'}"
        return CameraFormatError(
            f"Camera {self._plan.name}: its pictures are {width_px}x{height_px}, configured are {wanted}."
        )

    def _fps(self, now_ns: int) -> float:
        """Measure the rate over the last seconds; it falls while nothing comes."""
        recent = [at_ns for at_ns in self._arrivals_ns.copy() if now_ns - at_ns < FPS_WINDOW_NS]
        if len(recent) < 2:
            return 0.0
        mean_ns = (recent[-1] - recent[0]) / (len(recent) - 1)
        silent_ns = now_ns - recent[-1]
        return round(1e9 / max(mean_ns, silent_ns if silent_ns > 2 * mean_ns else 0, 1), 1)
