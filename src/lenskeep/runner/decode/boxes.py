"""Detectors with boxes, scores and labels as three outputs (torchvision, DETR exports with their post-processing)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lenskeep.bundle.manifest import BoxesDecode, Manifest, Output
from lenskeep.errors import ManifestError
from lenskeep.runner.decode.answer import Answer, Raw, checked, corners, found, surest
from lenskeep.runner.tensors import Placement


class Boxes:
    """Reads boxes (K, 4), scores (K) and labels (K) by name; a leading 1 is allowed.

    Raises: ManifestError when the three shapes do not belong together.
    """

    def __init__(self, manifest: Manifest, decode: BoxesDecode) -> None:
        self._names = manifest.labels.names
        self._decode = decode
        named = {output.name: (place, output) for place, output in enumerate(manifest.outputs)}
        self._boxes, self._scores, self._labels = named[decode.boxes], named[decode.scores], named[decode.labels]
        count = _rows(self._scores[1], ())
        if (_rows(self._boxes[1], (4,)), _rows(self._labels[1], ())) != (count, count):
            raise ManifestError("model.json: outputs for boxes, scores and labels are not (K, 4), (K) and (K)")
        spec = manifest.input
        unit = decode.form.endswith("_unit")
        self._size = np.array([spec.width_px, spec.height_px] * 2 if unit else [1, 1, 1, 1], np.float32)

    def __call__(self, outputs: Sequence[Raw], placement: Placement) -> Answer:
        """Return what was found."""
        boxes, scores, labels = (
            checked(outputs[place], output) for place, output in (self._boxes, self._scores, self._labels)
        )
        scores = scores.reshape(-1)
        kept = surest(scores, self._decode.score_min, self._decode.boxes_max)
        chosen = boxes.reshape(-1, 4)[kept] * self._size
        if self._decode.form.startswith("cxcywh"):
            chosen = corners(chosen)
        numbers = np.rint(labels.reshape(-1)[kept]).astype(np.int64) - self._decode.first_label
        return Answer(detections=found(chosen, scores[kept], numbers.tolist(), self._names, placement))


def _rows(output: Output, rest: tuple[int, ...]) -> int:
    """Return K of a shape (K, *rest) or (1, K, *rest), or refuse it."""
    shape = tuple(output.shape)
    if len(shape) == len(rest) + 2 and shape[0] == 1:
        shape = shape[1:]
    if len(shape) != len(rest) + 1 or shape[1:] != rest:
        raise ManifestError(f"model.json: output {output.name!r} of shape {output.shape} does not fit decode boxes")
    return shape[0]
