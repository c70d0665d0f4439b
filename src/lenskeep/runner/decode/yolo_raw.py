"""The raw head of YOLO v5u, v8, v9, v11 and their kin: centre boxes and one score per label, before suppression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from lenskeep.bundle.manifest import Manifest, YoloRawDecode
from lenskeep.runner.decode.answer import Answer, Numbers, Raw, checked, corners, found, surest
from lenskeep.runner.tensors import Placement

_CANDIDATES_MAX = 30000  # as Ultralytics: the surest so many take part in the suppression


class YoloRaw:
    """Reads an output of shape (1, 4 + labels, N) and suppresses boxes that show the same thing."""

    def __init__(self, manifest: Manifest, decode: YoloRawDecode) -> None:
        self._output = manifest.outputs[0]
        self._names = manifest.labels.names
        self._decode = decode

    def __call__(self, outputs: Sequence[Raw], placement: Placement) -> Answer:
        """Return what was found, each place with its best label."""
        numbers = checked(outputs[0], self._output)[0]
        best = numbers[4:].max(axis=0)
        kept = surest(best, self._decode.score_min, _CANDIDATES_MAX)
        if not len(kept):
            return Answer()
        candidates = numbers[:, kept].T
        labels, boxes = candidates[:, 4:].argmax(axis=1), corners(candidates[:, :4])
        sole = self._suppress(boxes, best[kept], labels)
        return Answer(detections=found(boxes[sole], best[kept][sole], labels[sole].tolist(), self._names, placement))

    def _suppress(self, boxes: Numbers, scores: Numbers, labels: NDArray[np.intp]) -> NDArray[np.intp]:
        """Return the indices that stay, the surest first.

        Whether a box stays depends on surer ones only. So a few thousand candidates at a time are enough, and a
        picture on which everything looks like something costs milliseconds instead of a fraction of a second.
        """
        rectangles: Any = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
        groups: Any = np.zeros(len(boxes), np.int32) if self._decode.agnostic else labels.astype(np.int32)
        sure: Any = scores
        taken = 4 * self._decode.boxes_max
        while True:
            some = slice(0, taken)
            sole = cv2.dnn.NMSBoxesBatched(rectangles[some], sure[some], groups[some], 0.0, self._decode.iou_max)
            if len(sole) >= self._decode.boxes_max or taken >= len(boxes):
                return np.asarray(sole, np.intp)[: self._decode.boxes_max]
            taken *= 4
