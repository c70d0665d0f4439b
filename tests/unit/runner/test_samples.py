"""The sample models beside their golden sets, run as plainly as a script can; and the script that writes clips."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import msgspec
import numpy as np
import onnxruntime
import pytest

from lenskeep.bundle.manifest import Provenance
from lenskeep.runner.belt import LABELS

SAMPLES = Path(__file__).resolve().parents[3] / "scripts" / "samples"
CLASSIFIERS = {"cap-inspect-1.0.0": "1.0.0", "cap-inspect-1.1.0": "1.1.0", "cap-inspect-slow-1.0.0": "1.1.0"}


def session(reference: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(SAMPLES / "models" / f"{reference}.onnx"), options)


def cases(name: str, version: str) -> dict[str, dict]:
    return json.loads((SAMPLES / "golden" / name / f"expected-{version}.json").read_text())["cases"]


def tensor(picture: np.ndarray) -> np.ndarray:
    return picture[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255


@pytest.mark.parametrize("reference", CLASSIFIERS)
def test_a_classifier_gives_the_scores_that_torch_gave(reference: str) -> None:
    classifier = session(reference)
    for image, expected in cases("cap-inspect", CLASSIFIERS[reference]).items():
        picture = cv2.imread(str(SAMPLES / "golden" / "cap-inspect" / image))
        squeezed = cv2.resize(picture, (96, 96), interpolation=cv2.INTER_LINEAR)
        scores = classifier.run(["scores"], {"images": tensor(squeezed)})[0][0]
        wanted = [expected["scores"][label] for label in LABELS]
        assert scores == pytest.approx(wanted, abs=1e-3), image
        if not image.startswith("moving"):
            assert LABELS[scores.argmax()] == image.partition("-")[0]


def sure_boxes(output: np.ndarray, version: str) -> list[tuple[str, float, np.ndarray]]:
    """Rows above 0.5 as (label, score, box) in the golden picture's pixels; neighbours of a better row left out."""
    if version == "1.0.0":
        scores, labels = output[4:].max(0), output[4:].argmax(0)
        corners = np.concatenate((output[:2] - output[2:4] / 2, output[:2] + output[2:4] / 2)).T
        sizes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), 1)
        kept = cv2.dnn.NMSBoxes(sizes.tolist(), scores.tolist(), 0.5, 0.5) if (scores > 0.5).any() else []
    else:
        corners, scores, labels = output[:, :4], output[:, 4], output[:, 5].astype(int)
        kept = np.flatnonzero(scores > 0.5)
    return [
        (LABELS[labels[n]], float(scores[n]), ((corners[n] - [0, 40, 0, 40]) * 2).clip(0, [640, 480] * 2)) for n in kept
    ]


@pytest.mark.parametrize("version", ["1.0.0", "1.1.0"])
def test_a_detector_gives_the_boxes_that_torch_gave(version: str) -> None:
    detector = session(f"cap-detect-{version}")
    for image, expected in cases("cap-detect", version).items():
        picture = cv2.imread(str(SAMPLES / "golden" / "cap-detect" / image))
        inner = cv2.resize(picture, (320, 240), interpolation=cv2.INTER_LINEAR)
        padded = cv2.copyMakeBorder(inner, 40, 40, 0, 0, cv2.BORDER_CONSTANT, value=(114, 114, 114))
        found = sure_boxes(detector.run(["output0"], {"images": tensor(padded)})[0][0], version)
        found.sort(key=lambda row: -row[1])
        wanted = sorted(expected["boxes"], key=lambda row: -row["score"])
        assert [label for label, _, _ in found] == [row["label"] for row in wanted], image
        for (_, score, box), row in zip(found, wanted, strict=True):
            assert score == pytest.approx(row["score"], abs=1e-3)
            assert box == pytest.approx(row["box"], abs=0.05)


def test_every_sample_model_comes_with_facts_that_a_manifest_takes() -> None:
    models = sorted((SAMPLES / "models").glob("*.onnx"))
    assert len(models) == 5
    for model in models:
        facts = msgspec.json.decode(model.with_suffix(".json").read_bytes(), type=Provenance)
        assert facts.dataset_sha256
        assert min(facts.metrics.get(key, 1.0) for key in ("accuracy", "precision", "recall", "map50")) >= 0.97


@pytest.mark.parametrize("suffix", [".avi", ".mp4"])
def test_a_clip_shows_the_frames_of_its_line(tmp_path: Path, suffix: str) -> None:
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        pytest.skip("needs the ffmpeg program")
    clip = tmp_path / f"clip{suffix}"
    command = [sys.executable, SAMPLES / "make_clip.py", clip, "--frames", "9", "--size", "320x240", "--station"]
    subprocess.run([str(part) for part in command], check=True)
    reader = cv2.VideoCapture(str(clip))
    count = 0
    while reader.read()[0]:
        count += 1
    reader.release()
    assert count == 9
