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
Readings = tuple[nn.Module, list[Callable[[np.ndarray, float], measure.Found]]]
COLOUR_SHIFT_MIN = 0.15  # how much a swap of red and blue must move the scores of a moving picture


def write_classifier(folder: Path, nets: dict[str, nn.Module]) -> None:
    """Write station pictures: caps in place, and two on the move, where a wrong preprocessing shows most."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, dict] = {version: {} for version in nets}
    for name, picture in _station_pictures(list(nets.values())):
        _write_png(folder / name, picture)
        for version, net in nets.items():
            scores = measure.score_pictures(net, scenes.stretched(picture)[None])[0]
            named = {label: round(float(score), 6) for label, score in zip(LABELS, scores, strict=True)}
            expected[version][name] = {"scores": named}
    _write_expected(folder, expected)


def write_detector(folder: Path, nets: dict[str, Readings]) -> None:
    """Write belt pictures on which no version is in two minds about a box, however it is read."""
    folder.mkdir(parents=True, exist_ok=True)
    expected: dict[str, dict] = {version: {} for version in nets}
    for number, (picture, said) in enumerate(itertools.islice(_sure_pictures(nets), 6), 1):
        name = f"belt-{number:02}.png"
        _write_png(folder / name, picture)
        for version, boxes in said.items():
            expected[version][name] = {"boxes": boxes}
    _write_expected(folder, expected)


def _station_pictures(nets: list[nn.Module]) -> Iterator[tuple[str, scenes.Image]]:
    for label, count in (("good", 3), ("scratched", 2), ("missing", 1)):
        for number in range(1, count + 1):
            belt = Belt(FIRST_SEED + number, 320, 240, station=True)
            places = (place for place in range(1, 100) if belt.label(place * FRAMES_PER_CAP - 1) == label)
            yield f"{label}-{number:02}.png", _plain(belt.frame(next(places) * FRAMES_PER_CAP - 1), 0xF8)
    moving = (picture for picture in _moving_pictures() if _feels_colour(picture, nets))
    for number, picture in enumerate(itertools.islice(moving, 2), 1):
        yield f"moving-{number:02}.png", picture


def _moving_pictures() -> Iterator[scenes.Image]:
    for seed in itertools.count(FIRST_SEED + 10):
        belt = Belt(seed, 320, 240, station=True)
        for place in range(1, 9):
            yield _plain(belt.frame(place * FRAMES_PER_CAP + 2 + place % 5), 0xF8)


def _feels_colour(picture: scenes.Image, nets: list[nn.Module]) -> bool:
    """Whether every version would answer otherwise if red and blue were swapped; on a clear picture few would."""
    seen = scenes.stretched(picture)
    answers = [measure.score_pictures(net, np.stack((seen, seen[..., ::-1]))) for net in nets]
    return all(np.abs(right - swapped).max() > COLOUR_SHIFT_MIN for right, swapped in answers)


def _sure_pictures(nets: dict[str, Readings]) -> Iterator[tuple[scenes.Image, dict[str, list]]]:
    """Find pictures, one per seed, on which every version is right and half believes in no further box."""
    for seed in itertools.count(FIRST_SEED):
        belt = Belt(seed, 640, 480, defect_share=0.5)
        for index in range(40, 240, 20):
            picture = _plain(belt.frame(index), 0xF0)
            shown = sorted(label for label, *_ in belt.truth(index))
            said = {version: _boxes(picture, *readings) for version, readings in nets.items()}
            if all(_sure(boxes, shown) for readings in said.values() for boxes in readings):
                yield picture, {version: readings[0] for version, readings in said.items()}
                break


def _sure(boxes: list[dict], shown: list[str]) -> bool:
    """Whether the boxes name just what is shown, each with a good score."""
    return sorted(box["label"] for box in boxes) == shown and all(box["score"] > 0.6 for box in boxes)


def _boxes(picture: scenes.Image, net: nn.Module, readers: list[Callable[..., measure.Found]]) -> list[list[dict]]:
    """Ask one version, once per reader, for its boxes, weak ones too, in pixels of the picture, cut at its edges."""
    image, scale, left, top = scenes.letterboxed(picture)
    output = measure.score_pictures(net, image[None])[0]
    height, width = picture.shape[:2]

    def row(label: int, score: float, box: np.ndarray) -> dict:
        edges = ((box - np.array([left, top] * 2)) / scale).clip(0, [width, height] * 2)
        return {"label": LABELS[label], "score": round(float(score), 6), "box": [round(float(e), 3) for e in edges]}

    found = [read(output, 0.15) for read in readers]
    return [[row(*facts) for facts in zip(f.labels, f.scores, f.boxes, strict=True)] for f in found]


def _plain(picture: scenes.Image, mask: int) -> scenes.Image:
    """Take the noise and the finest shades out, so that the lossless file stays small."""
    return cv2.bilateralFilter(picture, 5, 18, 3) & np.uint8(mask) | np.uint8((256 - mask) // 2)


def _write_png(path: Path, picture: scenes.Image) -> None:
    cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])


def _write_expected(folder: Path, expected: dict[str, dict]) -> None:
    for version, cases in expected.items():
        (folder / f"expected-{version}.json").write_text(json.dumps({"cases": cases}, indent=1) + "\n")
