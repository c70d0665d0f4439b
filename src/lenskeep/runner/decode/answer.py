"""What every decode kind shares: the answer's shape, the check of raw outputs, and boxes on their way to the frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lenskeep.bundle.manifest import Output
from lenskeep.errors import UnusableOutputError
from lenskeep.messages.runner import Detection
from lenskeep.runner.tensors import Placement

Numbers = NDArray[np.float32]
Raw = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says about one frame: one score per label, or the things found, the surest first."""

    scores: Numbers | None = None
    detections: list[Detection] = field(default_factory=list)


class Decoder(Protocol):
    """Reads one frame's outputs, in the order of the manifest."""

    def __call__(self, outputs: Sequence[Raw], placement: Placement, /) -> Answer:
        """Return what the outputs say. Raises: UnusableOutputError."""
        ...


def checked(raw: Raw, output: Output) -> Numbers:
    """Return an output as numbers, or refuse one that is not what the manifest says. Cost: two passes over it.

    Raises: UnusableOutputError.
    """
    if list(raw.shape) != output.shape or raw.dtype.name != output.dtype:
        raise UnusableOutputError(
            f"Output {output.name} is {raw.dtype} {list(raw.shape)}; the manifest says {output.dtype} {output.shape}."
        )
    numbers = raw.astype(np.float32, copy=False)
    # a NaN anywhere makes both NaN; an infinity is the largest or the smallest
    if not (math.isfinite(numbers.max()) and math.isfinite(numbers.min())):
        raise UnusableOutputError(f"Output {output.name} contains NaN or infinity.")
    return numbers


def found(
    boxes: Numbers, scores: Numbers, labels: Sequence[int], names: Sequence[str], placement: Placement
) -> list[Detection]:
    """Make detections of boxes (K, 4) x1, y1, x2, y2 in the model's pixels, in the order given.

    What lies wholly outside the frame, in the border, is left out.
    Raises: UnusableOutputError for a label that the model does not have.
    """
    strange = next((label for label in labels if not 0 <= label < len(names)), None)
    if strange is not None:
        raise UnusableOutputError(f"The model found label number {strange}, but has {len(names)} labels.")
    rows = placement.to_frame(boxes).tolist()
    return [
        Detection(names[label], score, *box)
        for label, score, box in zip(labels, scores.tolist(), rows, strict=True)
        if box[2] > box[0] and box[3] > box[1]
    ]


def surest(scores: Numbers, score_min: float, count_max: int) -> NDArray[np.intp]:
    """Return the indices of the scores above the limit, the highest first, at most `count_max`."""
    kept = np.flatnonzero(scores > score_min)
    return kept[np.argsort(-scores[kept], kind="stable")[:count_max]]


def corners(centred: Numbers) -> Numbers:
    """Turn boxes (K, 4) cx, cy, w, h into x1, y1, x2, y2."""
    half = centred[:, 2:] / 2
    return np.concatenate([centred[:, :2] - half, centred[:, :2] + half], axis=1)
