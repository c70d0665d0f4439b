"""One slot's parts, joined: what the reporter asks, and whom it passes the daemon's orders to."""

from __future__ import annotations

import logging
import os
from collections import deque
from pathlib import Path

from lenskeep.messages.runner import (
    Acknowledge,
    Back,
    Beat,
    CameraState,
    Cancel,
    Confinement,
    FromRunner,
    Hold,
    Picture,
    Preview,
    Release,
    SlotPlan,
    Stop,
    Swap,
    ToRunner,
)
from lenskeep.runner.camera import CaptureThread
from lenskeep.runner.confine.cameras import LonePlaces
from lenskeep.runner.loop import Loop
from lenskeep.runner.mailbox import Mailbox
from lenskeep.runner.nudge import Nudge
from lenskeep.runner.preview import PreviewDesk
from lenskeep.runner.ring import ResultRing
from lenskeep.runner.swap import Changeover

log = logging.getLogger(__name__)

WATCH_S = 0.5
PAGE_MB = os.sysconf("SC_PAGE_SIZE") / 2**20


class Line:
    """Builds the parts in the order of a frame's way; `start` sets them in motion, `loop.run` judges."""

    def __init__(
        self, plan: SlotPlan, ring: ResultRing, changeover: Changeover, news: deque[FromRunner], nudge: Nudge,
        confinement: Confinement, places: LonePlaces,
    ) -> None:  # fmt: skip
        self.news = news
        self.pictures: dict[str, Picture] = {}
        self._plan = plan
        self._run = ring.run
        self._changeover = changeover
        self._confinement = confinement
        self._places = places
        self.outgrown = False  # it needs rights that it gave up
        self._mailbox = Mailbox()
        self._preview = PreviewDesk(self.pictures)
        self.loop = Loop(self._mailbox, changeover, ring, self._preview, news, nudge, plan.uncertain_errors_max)
        self._cameras = [CaptureThread(camera, self._mailbox, self.loop.stage) for camera in plan.cameras]
        self._watch_due_s = 0.0
        self._progress = (0, 0)

    def start(self) -> None:
        """Begin to capture."""
        for camera in self._cameras:
            camera.start()

    def close(self) -> None:
        """Let cameras and files go; called when the loop has ended."""
        self._mailbox.close()
        self._changeover.close()
        for camera in self._cameras:
            camera.stop()

    # --- for the reporter -------------------------------------------------------------------------------------------

    def hear(self, message: ToRunner) -> None:
        """Take an order of the daemon."""
        match message:
            case Swap():
                log.info("swap to %s asked", message.bundle.ref)
                self._changeover.swap(message.op, message.bundle)
            case Cancel():
                self._changeover.cancel(message.op)
            case Back():
                self._changeover.back(message.op)
            case Hold():
                self._changeover.hold(message.held)
            case Release():
                self._changeover.release()
            case Preview():
                self._preview.wish(message)
            case Acknowledge() | Stop():
                raise RuntimeError("the reporter keeps these for itself")

    def tick(self, now_s: float) -> None:
        """Look after the swap's deadline, and the cameras twice a second."""
        self._changeover.tick(now_s)
        if now_s >= self._watch_due_s:
            self._watch_due_s = now_s + WATCH_S
            for camera in self._cameras:
                camera.watch()
            if place := self._places.replaced():
                log.warning("%s was replaced, and this process may not read the new one: it starts anew", place)
                self.outgrown = True
                self.stop()

    def stop(self) -> None:
        """Finish the frame, then end."""
        self.loop.stopping = True

    def beat(self) -> Beat:
        """Say how the slot does."""
        cameras = [camera.state() for camera in self._cameras]
        active, previous = self._changeover.active, self._changeover.previous
        return Beat(
            run=self._run, frames=self.loop.judged,
            active=active.ref.ref if active else "", digest=active.digest if active else "",
            previous=previous.ref.ref if previous else "", previous_digest=previous.digest if previous else "",
            provider=active.provider if active else "", held=self._changeover.held,
            swapping=self._changeover.pending_op(), reason=self._reason(cameras), rss_mb=_rss_mb(), cameras=cameras,
            confinement=self._confinement,
        )  # fmt: skip

    def _reason(self, cameras: list[CameraState]) -> str:
        """Say why no picture was judged since the last beat; nothing when some were, or when the loop is stuck."""
        (judged, turns), self._progress = self._progress, (self.loop.judged, self.loop.turns)
        if self._changeover.active is None:
            return "no_bundle"
        if self.loop.judged != judged or self.loop.turns == turns:
            return ""
        states = {camera.state for camera in cameras}
        if states <= {"ended"} and states:
            return "ended"
        return "waiting" if "running" in states or self._watches_a_folder(cameras) else "camera"

    def _watches_a_folder(self, cameras: list[CameraState]) -> bool:
        """A folder is fine before its first picture comes."""
        return any(
            state.state == "opening" and plan.source.startswith("folder:")
            for plan, state in zip(self._plan.cameras, cameras, strict=True)
        )


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return round(pages * PAGE_MB, 1)
