"""Which decoder reads which manifest."""

from __future__ import annotations

from lenskeep.bundle.manifest import BoxesDecode, ClassifyDecode, Manifest, YoloEndToEndDecode, YoloRawDecode
from lenskeep.runner.decode.answer import Decoder
from lenskeep.runner.decode.boxes import Boxes
from lenskeep.runner.decode.classify import Classify
from lenskeep.runner.decode.yolo_end2end import YoloEndToEnd
from lenskeep.runner.decode.yolo_raw import YoloRaw


def decoder(manifest: Manifest) -> Decoder:
    """Return the decoder that the manifest asks for. Raises: ManifestError when its outputs do not fit."""
    match manifest.decode:
        case ClassifyDecode() as decode:
            return Classify(manifest, decode)
        case YoloRawDecode() as decode:
            return YoloRaw(manifest, decode)
        case YoloEndToEndDecode() as decode:
            return YoloEndToEnd(manifest, decode)
        case BoxesDecode() as decode:
            return Boxes(manifest, decode)
