"""Pictures for people who watch: the newest judged frame, painted and packed at low priority, only while watched.

Rules. Nobody watches: one attribute is read per frame. Somebody does: the loop hands over a reference at most as often
as asked; all the work is on a small copy in a thread of low priority. A picture that is late is dropped, not queued.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from time import monotonic_ns

import cv2

from lenskeep.messages.runner import Picture, Preview, Result
from lenskeep.runner import priority
from lenskeep.runner.mailbox import Work
from lenskeep.runner.resize import Image

JPEG_QUALITY = 70
FPS_MAX = 30.0
BOXES_MAX = 100  # nobody can read more, and drawing holds the interpreter
COLOURS = {"OK": (80, 175, 76), "NG": (54, 57, 229), "UNCERTAIN": (0, 160, 255), "ERROR": (180, 60, 160)}  # BGR


@dataclass(slots=True)
class _Wish:
    preview: Preview
    until_ns: int
    due_ns: int = 0


class PreviewDesk:
    """Takes wishes from the reporter, frames from the loop, and gives pictures back."""

    def __init__(self, pictures: dict[str, Picture]) -> None:
        self.watched = False
        self._pictures = pictures
        self._wishes: dict[str, _Wish] = {}
        self._newest: dict[str, tuple[Work, Result, Preview]] = {}
        self._came = threading.Condition()

    def wish(self, preview: Preview) -> None:
        """Send pictures of a camera for a while, or stop."""
        with self._came:
            if preview.seconds <= 0 or preview.fps <= 0:
                self._wishes.pop(preview.camera, None)
            else:
                self._wishes[preview.camera] = _Wish(preview, monotonic_ns() + int(preview.seconds * 1e9))
            if self._wishes and not self.watched:
                threading.Thread(target=self._paint, name="preview", daemon=True).start()
            self.watched = bool(self._wishes)

    def offer(self, work: Work, result: Result) -> None:
        """Take a judged frame if one is due; called by the loop while somebody watches. Cost: about 1 us."""
        wish = self._wishes.get(work.camera)
        now_ns = monotonic_ns()
        if wish is None or now_ns < wish.due_ns:
            return
        wish.due_ns = now_ns + int(1e9 / min(wish.preview.fps, FPS_MAX))
        with self._came:
            self._newest[work.camera] = (work, result, wish.preview)
            self._came.notify()

    def _paint(self) -> None:
        """Paint until nobody watches; a thread of its own."""
        while True:
            with self._came:
                self._came.wait_for(lambda: self._newest, timeout=0.5)
                self._forget_past_wishes()
                if not self._wishes:
                    self.watched = False
                    self._newest.clear()
                    return
                newest, self._newest = self._newest, {}
            for work, result, preview in newest.values():
                self._pictures[work.camera] = picture(work, result, preview)

    def _forget_past_wishes(self) -> None:
        now_ns = monotonic_ns()
        self._wishes = {camera: wish for camera, wish in self._wishes.items() if wish.until_ns > now_ns}


def picture(work: Work, result: Result, preview: Preview) -> Picture:
    """Make one picture. Cost: 1 to 3 ms for a 1080p frame at the usual width."""
    height_px, width_px = work.frame.image.shape[:2]
    scale = min(1.0, max(64, preview.width_px) / width_px)
    size = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    with priority.aside():
        small = cv2.resize(work.frame.image, size, interpolation=cv2.INTER_AREA if scale < 0.5 else cv2.INTER_LINEAR)
    if preview.overlay:
        _draw(small, result, scale)
    with priority.aside():
        _, jpeg = cv2.imencode(".jpg", small, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    return Picture(
        camera=work.camera, jpeg=jpeg.tobytes(), age_ms=(monotonic_ns() - work.frame.captured_ns) // 1_000_000,
        captured_ms=work.frame.captured_ms, bundle=result.bundle, outcome=result.outcome,
    )  # fmt: skip


def _draw(image: Image, result: Result, scale: float) -> None:
    """Draw boxes, labels and the verdict into a picture that is ours."""
    colour = COLOURS[result.outcome]
    for found in result.detections[:BOXES_MAX]:
        corner = round(found.x1 * scale), round(found.y1 * scale)
        cv2.rectangle(image, corner, (round(found.x2 * scale), round(found.y2 * scale)), colour, 2)
        _write(image, f"{found.label} {found.score:.2f}", (corner[0] + 2, max(12, corner[1] - 4)), 0.45, colour)
    words = f"{result.outcome} {result.label} {result.score:.2f}" if result.label else result.outcome
    _write(image, words, (8, 24), 0.7, colour)


def _write(image: Image, text: str, at: tuple[int, int], size: float, colour: tuple[int, int, int]) -> None:
    # on a plate: OpenCV 5 spaces thick letters wider, so a thick black copy below would not lie under the thin one
    (width_px, height_px), below_px = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    plate = (at[0] - 3, at[1] - height_px - 3), (at[0] + width_px + 3, at[1] + below_px)
    cv2.rectangle(image, *plate, (0, 0, 0), cv2.FILLED)
    cv2.putText(image, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)
