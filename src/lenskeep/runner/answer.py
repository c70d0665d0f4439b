"""`python -m lenskeep.runner.answer MODEL MANIFEST OUT PICTURE…`: what a model says about pictures, as `expected.json`.

For an engineer who packs a model whose training framework is not at hand. The answers come from the very pipeline that
will be judged by them later, so they show that another device does the same, not that the contract is right.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import cv2
import msgspec

from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.golden import Answer, Answers
from lenskeep.bundle.manifest import GoldenBox
from lenskeep.errors import LenskeepError, RequestError
from lenskeep.messages.runner import BundleRef
from lenskeep.runner.engine import Engine


def main(arguments: list[str]) -> int:
    """Write the answers and return the exit code; a fault goes to stderr in one line."""
    model, manifest, out, *pictures = arguments
    try:
        answers = answer(Path(model), Path(manifest).read_bytes(), [Path(picture) for picture in pictures])
    except LenskeepError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    Path(out).write_bytes(msgspec.json.encode(answers))
    return 0


def answer(model: Path, manifest_json: bytes, pictures: list[Path]) -> Answers:
    """Ask a model about pictures. Raises: LenskeepError."""
    manifest = manifests.parse(manifest_json)
    sha256 = hashlib.sha256(model.read_bytes()).hexdigest()
    engine = Engine.load(
        BundleRef(
            name=manifest.name,
            version=manifest.version,
            digest="",
            manifest_json=manifest_json,
            model_path=str(model),
            model_sha256=sha256,
        ),
        threads=1,
    )
    return Answers(cases={picture.name: _one(engine, picture) for picture in pictures})


def _one(engine: Engine, picture: Path) -> Answer:
    image = cv2.imread(str(picture), cv2.IMREAD_COLOR)
    if image is None:
        raise RequestError(f"{picture} is not a picture that can be read.")
    prepared = engine.prepare(image)
    said = engine.answer(engine.infer(prepared), prepared.placement)
    if said.scores is not None:
        labels = engine.manifest.labels.names
        return Answer(scores={label: round(float(score), 6) for label, score in zip(labels, said.scores, strict=True)})
    return Answer(
        boxes=[
            GoldenBox(
                label=found.label,
                score=round(found.score, 6),
                box=[round(edge, 3) for edge in (found.x1, found.y1, found.x2, found.y2)],
            )
            for found in said.detections
        ]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
