"""YOLO heads that have suppressed already (v10, v26 and exports with the suppression inside)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lenskeep.bundle.manifest import Manifest, YoloEndToEndDecode
from lenskeep.runner.decode.answer import Answer, Raw, checked, found, surest
from lenskeep.runner.tensors import Placement


class YoloEndToEnd:
    """Reads an output of shape (1, K, 6): x1, y1, x2, y2, score, label; rows not needed are zero."""

    def __init__(self, manifest: Manifest, decode: YoloEndToEndDecode) -> None:
        self._output = manifest.outputs[0]
        self._names = manifest.labels.names
        self._decode = decode

    def __call__(self, outputs: Sequence[Raw], placement: Placement) -> Answer:
        """Return what was found."""
        numbers = checked(outputs[0], self._output)[0]
        rows = numbers[surest(numbers[:, 4], self._decode.score_min, self._decode.boxes_max)]
        labels = np.rint(rows[:, 5]).astype(np.int64).tolist()
        return Answer(detections=found(rows[:, :4], rows[:, 4], labels, self._names, placement))
