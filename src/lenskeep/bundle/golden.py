"""Golden pictures and their answers, as they lie in a folder before they are packed.

`expected.json` holds `{"cases": {"a.png": {"scores": {label: score}}}}` for classification and `{"cases":
{"a.png": {"boxes": [{"label": …, "score": …, "box": [x1, y1, x2, y2]}]}}}`, in pixels of the picture, for
detection. The answers should come from the framework that trained the model: only then do they prove
something.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
from msgspec import Struct

from lenskeep.bundle import strictjson
from lenskeep.bundle.manifest import GoldenBox, GoldenCase
from lenskeep.errors import BundleFormatError, RequestError

FOLDER = "golden"  # inside a bundle
EXPECTED_NAME = "expected.json"
EXPECTED_BYTES_MAX = 1 << 20
LOSSLESS = (".png", ".bmp")


class Answer(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model says about one picture."""

    scores: dict[str, float] | None = None
    boxes: list[GoldenBox] | None = None


class Answers(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A whole `expected.json`."""

    cases: dict[str, Answer]
    produced_by: str = ""


def pictures(folder: Path) -> list[Path]:
    """Return the golden pictures of a folder by name. Raises: RequestError when there are none."""
    if not folder.is_dir():
        raise RequestError(f"{folder} is not a folder with golden pictures.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in LOSSLESS)
    if not found:
        raise RequestError(f"{folder} has no golden pictures (png or bmp).")
    return found


def find_answers(folder: Path, named: str) -> Path | None:
    """Return the file with the answers; None when none was named and there is none. Raises: RequestError."""
    path = folder / (named or EXPECTED_NAME)
    if path.is_file():
        return path
    if named:
        raise RequestError(f"The answers {path} are not there.")
    return None


def read_answers(path: Path) -> Answers:
    """Read a file with answers. Raises: RequestError."""
    try:
        raw = strictjson.loads(path.read_bytes(), bytes_max=EXPECTED_BYTES_MAX, floats=True)
        return msgspec.convert(raw, Answers, strict=True)
    except (OSError, BundleFormatError, msgspec.ValidationError) as error:
        raise RequestError(f"The answers {path} cannot be read: {error}") from error


def blank(found: list[Path], task: str) -> Answers:
    """Stand in for answers that are not known yet."""
    empty = Answer(scores={}) if task == "classify" else Answer(boxes=[])
    return Answers(cases={path.name: empty for path in found})


def cases(found: list[Path], answers: Answers) -> list[GoldenCase]:
    """Bring pictures and answers together. Raises: RequestError when one is without the other."""
    names = {path.name for path in found}
    for name in sorted(names ^ answers.cases.keys()):
        missing = "answer" if name in names else "picture"
        raise RequestError(f"The golden set has no {missing} for {name}.")
    return [
        GoldenCase(image=member(path), scores=answers.cases[path.name].scores, boxes=answers.cases[path.name].boxes)
        for path in found
    ]


def member(path: Path) -> str:
    """Name a golden picture inside a bundle."""
    return f"{FOLDER}/{path.name}"
