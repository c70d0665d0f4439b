"""The hand-over of frames from the capture threads to the one loop that judges them.

Rules. Every camera has a lane. A live lane holds one frame and the newest wins; a lane of a file holds a few and its
producer waits, because every frame counts. What is not handed over is counted by its reason, so that for each camera
frames = taken + dropped + waiting. The loop serves the lane that has waited longest, whatever the cameras' rates are.
A live frame that grew too old while it waited is never handed over.
"""

from __future__ import annotations

import threading
from collections import deque
from time import monotonic_ns
from typing import Any, NamedTuple

from lenskeep.runner.resize import Image

FILE_LANE_FRAMES = 3
DROP_REASONS = ("superseded", "stale", "format")


class Frame(NamedTuple):
    """One picture as it came.

    `image` is uint8 BGR, shape (height_px, width_px, 3), and belongs to whoever holds the frame. `number` is the
    camera's own count, over all its openings: gaps are drops. `captured_ns` is monotonic, `captured_ms` wall clock.
    """

    image: Image
    number: int
    captured_ns: int
    captured_ms: int


class Work(NamedTuple):
    """A frame for the loop, with what the capture thread has prepared of it; None when that was not possible."""

    camera: str
    frame: Frame
    prepared: Any


class Lane:
    """One camera's way into the mailbox; made by `Mailbox.lane`."""

    def __init__(self, lock: threading.Lock, ready: threading.Condition, age_max_s: float | None) -> None:
        self.live = age_max_s is not None
        self._age_max_ns = int((age_max_s or 0.0) * 1e9)
        self._lock = lock
        self._ready = ready
        self._room = threading.Condition(lock)
        self._waiting: deque[Work] = deque()
        self._since_ns = 0  # when the lane came to wait for the loop
        self._newest = -1
        self._closed = False
        self._drops = dict.fromkeys(DROP_REASONS, 0)

    def put(self, work: Work) -> bool:
        """Hand a frame over. Returns: False when told to stop. Cost: waits for room, unless the lane is live."""
        with self._lock:
            if not self.live and not self._wait_for_room():
                return False
            if not self._waiting:
                self._since_ns = monotonic_ns()
            if not self.live or self._supersedes(work):
                self._waiting.append(work)
            self._ready.notify()
            return True

    def drop(self, reason: str) -> None:
        """Count a frame that never gets as far as the lane."""
        with self._lock:
            self._drops[reason] += 1

    def drops(self) -> dict[str, int]:
        """Return how many frames were not handed over, by reason."""
        with self._lock:
            return dict(self._drops)

    def __len__(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        """Stop a producer that waits for room; what waits in the lane may still be taken."""
        with self._lock:
            self._closed = True
            self._room.notify_all()

    def _supersedes(self, work: Work) -> bool:
        """Make room for a newer frame; a late one, of a reader that was given up, is itself the one to go."""
        newer = work.frame.number > self._newest
        if newer:
            self._newest = work.frame.number
        if self._waiting or not newer:
            self._drops["superseded"] += 1
        if newer:
            self._waiting.clear()
        return newer

    def _wait_for_room(self) -> bool:
        while len(self._waiting) >= FILE_LANE_FRAMES and not self._closed:
            self._room.wait()
        return not self._closed

    # --- for the mailbox, which holds the lock ----------------------------------------------------------------------

    def waits_since(self, now_ns: int) -> int | None:
        """Say since when a frame waits here that may be judged."""
        if self._waiting and self.live and now_ns - self._waiting[0].frame.captured_ns > self._age_max_ns:
            self._waiting.clear()
            self._drops["stale"] += 1
        return self._since_ns if self._waiting else None

    def pop(self, now_ns: int) -> Work:
        """Take the frame; the lane goes to the end of the queue."""
        work = self._waiting.popleft()
        self._since_ns = now_ns
        if not self.live:
            self._room.notify()
        return work


class Mailbox:
    """All lanes of a slot, with one lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)
        self._lanes: list[Lane] = []
        self._closed = False

    def lane(self, age_max_s: float | None) -> Lane:
        """Add a camera: a live one with the age above which its frames are not judged, or None for a file."""
        with self._lock:
            lane = Lane(self._lock, self._ready, age_max_s)
            self._lanes.append(lane)
            return lane

    def take(self, timeout_s: float) -> Work | None:
        """Wait for the next frame to judge. Returns: None when none came in time, or when closed. Cost: about 2 us."""
        with self._lock:
            work = self._next()
            if work is None and not self._closed:
                self._ready.wait(timeout_s)
                work = self._next()
            return work

    def close(self) -> None:
        """Let everybody go who waits here."""
        with self._lock:
            self._closed = True
            self._ready.notify_all()
        for lane in self._lanes:
            lane.close()

    def _next(self) -> Work | None:
        if self._closed:
            return None
        now_ns = monotonic_ns()
        longest: Lane | None = None
        longest_ns = 0
        for lane in self._lanes:
            since_ns = lane.waits_since(now_ns)
            if since_ns is not None and (longest is None or since_ns < longest_ns):
                longest, longest_ns = lane, since_ns
        return None if longest is None else longest.pop(now_ns)
