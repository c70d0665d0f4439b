"""Network cameras: RTSP over TCP, and MJPEG over HTTP, through OpenCV's FFmpeg.

FFmpeg collects about a second of RTSP pictures while it finds out what the stream is, and the network hands over in a
rush what it held back. Both are read away here: the first picture that is given is one that had to be waited for.
"""

from __future__ import annotations

from collections import deque
from time import monotonic

import cv2

from lenskeep.errors import CameraLostError, CameraMissingError
from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.resize import Image
from lenskeep.runner.sources.address import redacted
from lenskeep.runner.sources.diagnosis import why_no_stream
from lenskeep.runner.sources.source import usable_fps
from lenskeep.runner.sources.streamclock import StreamClock

FPS = 25.0
RUSH_FRAMES_MAX = 120
RUSH_S_MAX = 2.0
CALM_READS = 3  # one slow read may be a slow decoder; so many that together take half their time are the camera's
LEARNING = 0.05


class StreamSource:
    """One network camera."""

    def __init__(self, plan: CameraPlan) -> None:
        self._camera = plan.name
        self._where = redacted(plan.source)
        self._silence_s_max = plan.frame_age_max_s
        self._clock = StreamClock() if plan.source.startswith("rtsp") else None
        self._capture = cv2.VideoCapture(
            plan.source,
            cv2.CAP_FFMPEG,
            [
                cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, round(plan.open_timeout_s * 1000),
                cv2.CAP_PROP_READ_TIMEOUT_MSEC, round(plan.read_timeout_s * 1000),
            ],
        )  # fmt: skip
        if not self._capture.isOpened():
            why = why_no_stream(plan.source, plan.open_timeout_s)
            raise CameraMissingError(f"Camera {plan.name}: {self._where} {why}.")
        self.fps = usable_fps(plan.fps, self._capture.get(cv2.CAP_PROP_FPS), FPS)
        self.width_px = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height_px = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.lag_s = 0.0
        self._interval_s = 1 / self.fps
        self._came_s = monotonic()
        self._rushed = self._clock is not None  # a rush is to be expected next

    def read(self) -> Image:
        image = self._freshest() if self._rushed else self._next()
        self._rushed = False
        since_s = monotonic() - self._came_s
        if since_s < self._silence_s_max:
            self._interval_s += LEARNING * (since_s - self._interval_s)
        elif self._clock is None:
            image = self._freshest()  # what comes first after a silence may have been waiting somewhere on the way
        self._came_s = monotonic()
        return image

    def close(self) -> None:
        self._capture.release()

    def _next(self) -> Image:
        read, image = self._capture.read()
        if not read:
            raise CameraLostError(f"Camera {self._camera}: {self._where} stopped sending pictures.")
        if self._clock is not None:
            self.lag_s = self._clock.lag_s(monotonic(), self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        return image  # type: ignore[no-any-return]

    def _freshest(self) -> Image:
        """Read until a picture has to be waited for. Cost: a few intervals, RUSH_S_MAX at most."""
        begun_s = monotonic()
        reads_s: deque[float] = deque(maxlen=CALM_READS)
        for _ in range(RUSH_FRAMES_MAX):
            before_s = monotonic()
            image = self._next()
            now_s = monotonic()
            reads_s.append(now_s - before_s)
            calm = len(reads_s) == CALM_READS and sum(reads_s) > CALM_READS * self._interval_s / 2
            if calm or now_s - begun_s > RUSH_S_MAX:
                break
        return image
