"""Golden sets: pictures and the answers that torch, not the device's pipeline, gives for them."""

from __future__ import annotations

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
    """Write station pictures: caps in place, and two between places, where a wrong preprocessing shows most."""
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
    seeds = iter(range(FIRST_SEED, FIRST_SEED + 100))
    for number in range(1, 7):
        name = f"belt-{number:02}.png"
        picture, said = next(sure for sure in (_sure_answers(seed, nets) for seed in seeds) if sure)
        _write_png(folder / name, picture)
        for version, boxes in said.items():
            expected[version][name] = {"boxes": boxes}
    _write_expected(folder, expected)


def _station_pictures() -> Iterator[tuple[str, scenes.Image]]:
    for label, count in (("good", 3), ("scratched", 2), ("missing", 1)):
        for number in range(1, count + 1):
            belt = Belt(FIRST_SEED + number, 320, 240, station=True)
            places = (place for place in range(1, 100) if belt.label(place * FRAMES_PER_CAP - 1) == label)
            yield f"{label}-{number:02}.png", _plain(belt.frame(next(places) * FRAMES_PER_CAP - 1), 5, 0xF8)
    for number, phase in ((1, 2), (2, 5)):
        belt = Belt(FIRST_SEED + 10 + number, 320, 240, station=True)
        yield f"moving-{number:02}.png", _plain(belt.frame(4 * FRAMES_PER_CAP + phase), 5, 0xF8)


def _sure_answers(seed: int, nets: dict[str, tuple[nn.Module, Reader]]) -> tuple[scenes.Image, dict] | None:
    """Ask every version about one picture; None when one is wrong, or has a box that it half believes in."""
    belt, index = Belt(seed, 640, 480, defect_share=0.5), 40 + seed % 20
    picture = _plain(belt.frame(index), 3, 0xF0)
    image, scale, left, top = scenes.letterboxed(picture)
    corner, size = np.array([left, top] * 2), np.array([640, 480] * 2)
    said = {}
    for version, (net, read) in nets.items():
        found = read(measure.score_pictures(net, image[None])[0], 0.15)
        if (found.scores < 0.6).any() or sorted(LABELS[n] for n in found.labels) != sorted(
            b[0] for b in belt.truth(index)
        ):
            return None
        boxes = ((found.boxes - corner) / scale).clip(0, size)
        said[version] = [
            {
                "label": LABELS[label],
                "score": round(float(score), 6),
                "box": [round(float(v), 3) for v in box],
            }
            for label, score, box in zip(found.labels, found.scores, boxes, strict=True)
        ]
    return picture, said


def _plain(picture: scenes.Image, window_px: int, mask: int) -> scenes.Image:
    """Take the noise and the finest shades out, so that the lossless file stays small."""
    return cv2.medianBlur(picture, window_px) & np.uint8(mask)


def _write_png(path: Path, picture: scenes.Image) -> None:
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _write_expected(folder: Path, expected: dict[str, dict]) -> None:
    for version, cases in expected.items():
        (folder / f"expected-{version}.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
