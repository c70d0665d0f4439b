"""One score per label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lenskeep.bundle.manifest import ClassifyDecode, Manifest
from lenskeep.runner.decode.answer import Answer, Raw, checked
from lenskeep.runner.tensors import Placement


class Classify:
    """Reads an output of shape (1, labels)."""

    def __init__(self, manifest: Manifest, decode: ClassifyDecode) -> None:
        self._output = manifest.outputs[0]
        self._softmax = decode.softmax

    def __call__(self, outputs: Sequence[Raw], _placement: Placement) -> Answer:
        """Return the scores."""
        scores = checked(outputs[0], self._output)[0]
        if self._softmax:
            scores = np.exp(scores - scores.max())
            scores = scores / scores.sum()
        return Answer(scores=scores)
