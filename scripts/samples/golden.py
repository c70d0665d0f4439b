"""Golden sets: pictures and the answers that torch, not the device's pipeline, gives for them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import measure
import numpy as np
import scenes
from torch import nn

from lenskeep.runner.belt import FRAMES_PER_CAP, LABELS, Belt

FIRST_SEED = 500
Reader = Callable[[np.ndarray, float], measure.Found]


def write_classifier(folder: Path, nets: dict[str, nn.Module]) -> None:
    """Write station pictures: caps in place, and two on the move, where a wrong preprocessing shows most."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, dict] = {version: {} for version in nets}
    for name, picture in _station_pictures():
        _write_png(folder / name, picture)
        for version, net in nets.items():
            scores = measure.score_pictures(net, scenes.stretched(picture)[None])[0]
            named = {label: round(float(score), 6) for label, score in zip(LABELS, scores, strict=True)}
            expected[version][name] = {"scores": named}
    _write_expected(folder, expected)


def write_detector(folder: Path, nets: dict[str, tuple[nn.Module, Reader]]) -> None:
    """Write belt pictures on which no version is in two minds about a box."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, dict] = {version: {} for version in nets}
    for number, (picture, said) in enumerate(itertools.islice(_sure_pictures(nets), 6), 1):
        name = f"belt-{number:02}.png"
        _write_png(folder / name, picture)
        for version, boxes in said.items():
            expected[version][name] = {"boxes": boxes}
    _write_expected(folder, expected)


def _station_pictures() -> Iterator[tuple[str, scenes.Image]]:
    for label, count in (("good", 3), ("scratched", 2), ("missing", 1)):
        for number in range(1, count + 1):
            belt = Belt(FIRST_SEED + number, 320, 240, station=True)
            places = (place for place in range(1, 100) if belt.label(place * FRAMES_PER_CAP - 1) == label)
            yield f"{label}-{number:02}.png", _plain(belt.frame(next(places) * FRAMES_PER_CAP - 1), 0xF8)
    for number, phase in ((1, 2), (2, 5)):
        belt = Belt(FIRST_SEED + 10 + number, 320, 240, station=True)
        yield f"moving-{number:02}.png", _plain(belt.frame(4 * FRAMES_PER_CAP + phase), 0xF8)


def _sure_pictures(nets: dict[str, tuple[nn.Module, Reader]]) -> Iterator[tuple[scenes.Image, dict[str, list]]]:
    """Find pictures, one per seed, on which every version is right and half believes in no further box."""
    for seed in itertools.count(FIRST_SEED):
        belt = Belt(seed, 640, 480, defect_share=0.5)
        for index in range(40, 240, 20):
            picture = _plain(belt.frame(index), 0xF0)
            shown = sorted(label for label, *_ in belt.truth(index))
            said = {version: _boxes(picture, *net_and_reader) for version, net_and_reader in nets.items()}
            if all(_sure(boxes, shown) for boxes in said.values()):
                yield picture, said
                break


def _sure(boxes: list[dict], shown: list[str]) -> bool:
    """Whether the boxes name just what is shown, each with a good score."""
    return sorted(box["label"] for box in boxes) == shown and all(box["score"] > 0.6 for box in boxes)


def _boxes(picture: scenes.Image, net: nn.Module, read: Reader) -> list[dict]:
    """Ask one version for its boxes, weak ones too, in pixels of the picture and cut at its edges."""
    image, scale, left, top = scenes.letterboxed(picture)
    found = read(measure.score_pictures(net, image[None])[0], 0.15)
    height, width = picture.shape[:2]
    boxes = ((found.boxes - np.array([left, top] * 2)) / scale).clip(0, [width, height] * 2)
    return [
        {"label": LABELS[label], "score": round(float(score), 6), "box": [round(float(edge), 3) for edge in box]}
        for label, score, box in zip(found.labels, found.scores, boxes, strict=True)
    ]


def _plain(picture: scenes.Image, mask: int) -> scenes.Image:
    """Take the noise and the finest shades out, so that the lossless file stays small."""
    return cv2.bilateralFilter(picture, 5, 18, 3) & np.uint8(mask) | np.uint8((256 - mask) // 2)


def _write_png(path: Path, picture: scenes.Image) -> None:
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _write_expected(folder: Path, expected: dict[str, dict]) -> None:
    for version, cases in expected.items():
        (folder / f"expected-{version}.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
