"""Made scenes: an inspection line, noise, and ticks that tell which frame they are."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np

from lenskeep.errors import CameraMissingError
from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.belt import Belt
from lenskeep.runner.resize import Image
from lenskeep.runner.sources.pace import Pace
from lenskeep.runner.sources.source import usable_fps

FPS = 30.0
SEED = 7
TICKS = 1 << 24


def tick_image(number: int, width_px: int, height_px: int) -> Image:
    """Make a picture of one colour that is the number, so that it survives any resizing."""
    image = np.empty((height_px, width_px, 3), np.uint8)
    image[:] = (number & 255, number >> 8 & 255, number >> 16 & 255)
    return image


def tick_number(image: Image) -> int:
    """Read the number of a tick, modulo `TICKS`."""
    blue, green, red = (int(value) for value in image[0, 0])
    return blue | green << 8 | red << 16


class SyntheticSource:
    """One made scene, from frame 0 on and without an end."""

    lag_s = 0.0

    def __init__(self, plan: CameraPlan, stop: threading.Event) -> None:
        scene = plan.source.removeprefix("synthetic:")
        if scene not in SCENES:
            raise CameraMissingError(
                f"Camera {plan.name}: there is no made scene {scene!r}. Known are: {', '.join(SCENES)}."
            )
        paint, size = SCENES[scene]
        self.fps = usable_fps(plan.fps, 0.0, FPS)
        self.width_px = plan.width_px or size[0]
        self.height_px = plan.height_px or size[1]
        self._paint = paint(self.width_px, self.height_px)
        self._pace = Pace(self.fps if plan.pace == "realtime" else 0.0, stop)
        self._index = 0

    def read(self) -> Image | None:
        image = self._paint(self._index)
        self._index += 1
        return image if self._pace.wait() else None

    def close(self) -> None:
        """Nothing is held."""


Painter = Callable[[int], Image]


def _caps(width_px: int, height_px: int) -> Painter:
    return Belt(SEED, width_px, height_px, station=True).frame


def _belt(width_px: int, height_px: int) -> Painter:
    return Belt(SEED, width_px, height_px).frame


def _noise(width_px: int, height_px: int) -> Painter:
    rng = np.random.default_rng(SEED)
    return lambda _: rng.integers(0, 256, (height_px, width_px, 3), np.uint8)


def _ticks(width_px: int, height_px: int) -> Painter:
    return lambda index: tick_image(index % TICKS, width_px, height_px)


SCENES: dict[str, tuple[Callable[[int, int], Painter], tuple[int, int]]] = {
    "caps": (_caps, (640, 480)),
    "belt": (_belt, (640, 480)),
    "noise": (_noise, (640, 480)),
    "ticks": (_ticks, (32, 32)),
}
