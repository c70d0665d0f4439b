"""Data sets made of synthetic scenes, and the preprocessing that the models are trained behind.

A recipe names every belt (seed, size) and how many frames are taken from it; its digest, which covers the source
of the scenes too, stands for the data set.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lenskeep.runner import belt as belt_module
from lenskeep.runner import belt_sprites
from lenskeep.runner.belt import FRAMES_PER_CAP, LABELS, MOVE_FRAMES, Belt

Image = NDArray[np.uint8]

CLASSIFIER_PX = 96
DETECTOR_PX = 320
PAD_VALUE = 114


@dataclass(frozen=True)
class Recipe:
    """Which scenes a data set is made of: `belts` seeds from `first_seed` on, `frames` taken from each."""

    view: str
    first_seed: int
    belts: int
    frames: int
    sizes: tuple[tuple[int, int], ...]
    defect_share: float = 2 / 3

    def digest(self) -> str:
        """Hash the recipe together with the code that paints the scenes and takes the frames."""
        sources = (belt_module.__file__, belt_sprites.__file__, __file__)
        parts = {Path(source).name: hashlib.sha256(Path(source).read_bytes()).hexdigest() for source in sources}
        return hashlib.sha256(json.dumps(asdict(self) | parts, sort_keys=True).encode()).hexdigest()


STATION_SIZES = ((320, 240), (640, 480), (1280, 720))
BELT_SIZES = ((640, 480), (640, 480), (1280, 720))
STATION_TRAINING = Recipe("station", 1000, 110, 50, STATION_SIZES)
STATION_HELD_OUT = Recipe("station", 9000, 30, 40, STATION_SIZES)
BELT_TRAINING = Recipe("belt", 1000, 84, 12, BELT_SIZES)
BELT_HELD_OUT = Recipe("belt", 9000, 18, 10, BELT_SIZES)


def station_set(recipe: Recipe) -> tuple[Image, NDArray[np.int64]]:
    """Make frames (n, 96, 96, 3) RGB and their label numbers; -1 is a frame in which caps change places."""
    images, labels = [], []
    for belt, rng in _belts(recipe):
        for _ in range(recipe.frames):
            phase = rng.integers(MOVE_FRAMES) if rng.random() < 0.3 else MOVE_FRAMES
            index = int(rng.integers(200) * FRAMES_PER_CAP + phase)
            label = belt.label(index)
            images.append(stretched(belt.frame(index)))
            labels.append(-1 if label is None else LABELS.index(label))
    return np.stack(images), np.array(labels)


def belt_set(recipe: Recipe) -> tuple[Image, list[NDArray[np.float32]]]:
    """Make frames (n, 320, 320, 3) RGB and, per frame, rows of label number, x1, y1, x2, y2 in its pixels."""
    images, truths = [], []
    for belt, rng in _belts(recipe):
        for _ in range(recipe.frames):
            index = int(rng.integers(6000))
            image, scale, left, top = letterboxed(belt.frame(index))
            rows = [
                (
                    LABELS.index(label),
                    x1 * scale + left,
                    y1 * scale + top,
                    x2 * scale + left,
                    y2 * scale + top,
                )
                for label, x1, y1, x2, y2 in belt.truth(index)
            ]
            images.append(image)
            truths.append(np.array(rows, np.float32).reshape(-1, 5))
    return np.stack(images), truths


def stretched(frame: Image) -> Image:
    """Fit a BGR frame into the classifier's square, whatever its aspect: (96, 96, 3) RGB."""
    resized = cv2.resize(frame, (CLASSIFIER_PX, CLASSIFIER_PX), interpolation=cv2.INTER_LINEAR)
    return cv2.cvtColor(resized, cv2.COLOR_BGR2RGB)


def letterboxed(frame: Image) -> tuple[Image, float, int, int]:
    """Fit a BGR frame into the detector's square with its aspect kept, centred on grey, as Ultralytics does.

    Returns: (320, 320, 3) RGB, then the scale and the left and top padding in input pixels.
    """
    height, width = frame.shape[:2]
    scale = min(DETECTOR_PX / height, DETECTOR_PX / width)
    inner_width, inner_height = round(width * scale), round(height * scale)
    spare_x, spare_y = (DETECTOR_PX - inner_width) / 2, (DETECTOR_PX - inner_height) / 2
    left, top = round(spare_x - 0.1), round(spare_y - 0.1)
    resized = cv2.resize(frame, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR)
    padded = cv2.copyMakeBorder(
        resized,
        top,
        round(spare_y + 0.1),
        left,
        round(spare_x + 0.1),
        cv2.BORDER_CONSTANT,
        value=(PAD_VALUE,) * 3,
    )
    return cv2.cvtColor(padded, cv2.COLOR_BGR2RGB), scale, left, top


def _belts(recipe: Recipe) -> Iterator[tuple[Belt, np.random.Generator]]:
    for number in range(recipe.belts):
        seed = recipe.first_seed + number
        width_px, height_px = recipe.sizes[number % len(recipe.sizes)]
        belt = Belt(seed, width_px, height_px, station=recipe.view == "station", defect_share=recipe.defect_share)
        yield belt, np.random.default_rng([seed, 3])
