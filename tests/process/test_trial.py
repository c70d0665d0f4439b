"""Trials in real child processes: what passes, what is refused with which code, and what the parent of a death sees."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import models
import msgspec
import numpy as np
import pytest
from models import classifier, facts, finder, finder_facts, picture
from onnx import TensorProto, helper

from lenskeep.bundle.manifest import Manifest
from lenskeep.messages.runner import LENGTH_BYTES, FromTrial, TrialPlan, TrialProgress, TrialReport, decoder
from lenskeep.runner.engine import Engine

SEEDS = range(4)


@dataclass
class Outcome:
    """What the parent of a trial sees."""

    code: int
    report: TrialReport | None
    progress: list[TrialProgress] = field(default_factory=list)

    @property
    def told(self) -> TrialReport:
        assert self.report is not None, f"the child ended with {self.code} and no report"
        return self.report


def write_pictures(folder: Path, pictures: dict[str, np.ndarray]) -> dict[str, str]:
    paths = {}
    for name, image in pictures.items():
        path = folder / name.replace("/", "-")
        assert cv2.imwrite(str(path), image)
        paths[name] = str(path)
    return paths


def pictures(count: int = 4, width_px: int = 60, height_px: int = 40) -> dict[str, np.ndarray]:
    return {f"golden/{seed}.png": picture(seed, width_px, height_px) for seed in range(count)}


def golden(plain: dict[str, Any], model: bytes, folder: Path, shown: dict[str, np.ndarray]) -> dict[str, Any]:
    """Answer the pictures with the contract in `plain` and return the facts with these answers as golden."""
    engine = Engine.load(models.store(folder, model, plain), threads=1)
    cases: list[dict[str, Any]] = []
    for name, image in shown.items():
        prepared = engine.prepare(image)
        answer = engine.answer(engine.infer(prepared), prepared.placement)
        if answer.scores is not None:
            named = dict(zip(engine.manifest.labels.names, answer.scores.tolist(), strict=True))
            cases.append({"image": name, "scores": named})
        else:
            boxes = [{"label": d.label, "score": d.score, "box": [d.x1, d.y1, d.x2, d.y2]} for d in answer.detections]
            cases.append({"image": name, "boxes": boxes})
    return plain | {"golden": {"cases": cases, "produced_by": "the engine under the true contract"}}


def run(plan: TrialPlan, folder: Path, timeout_s: float = 60.0) -> Outcome:
    path = folder / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "lenskeep.runner.qualify", str(path), "--report-fd", str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE) as child:
        theirs.close()
        data = b"".join(iter(lambda: ours.recv(65536), b""))
        code = child.wait(timeout_s)
        said = child.stderr.read().decode() if child.stderr else ""
    outcome = Outcome(code, None)
    decode = decoder(FromTrial).decode
    while data:
        size = int.from_bytes(data[:LENGTH_BYTES], "big")
        message, data = decode(data[LENGTH_BYTES : LENGTH_BYTES + size]), data[LENGTH_BYTES + size :]
        if isinstance(message, TrialReport):
            outcome.report = message
        else:
            outcome.progress.append(message)
    print(code, outcome.report, said)
    return outcome


def plan(folder: Path, model: bytes, plain: dict[str, Any], shown: dict[str, np.ndarray], **changes: Any) -> TrialPlan:
    limits: dict[str, Any] = {"threads": 1, "memory_max_mb": 512, "cpu_max_s": 20, "frames": 12}
    return TrialPlan(
        bundle=models.store(folder, model, plain),
        golden=write_pictures(folder, shown),
        prepared_path=str(folder / "prepared.onnx"),
        **(limits | changes),
    )


def test_a_sound_bundle_passes_and_leaves_a_prepared_model_that_loads(tmp_path: Path) -> None:
    plain = golden(facts(), classifier(), tmp_path, pictures())
    asked = plan(tmp_path, classifier(), plain, pictures())
    outcome = run(asked, tmp_path)
    report = outcome.told
    assert outcome.code == 0 and report.passed and report.code == ""
    assert [check.name for check in report.checks] == ["runtime", "provider", "golden", "latency", "memory"]
    assert (report.golden_passed, report.golden_total, report.provider) == (4, 4, "CPU")
    assert report.golden_score > 0.999
    assert 0 < report.p50_ms <= report.p99_ms and report.memory_mb >= 1 and report.load_ms > 0
    assert {"load", "prepare", "golden", "latency"} == {progress.stage for progress in outcome.progress}
    prepared = Path(asked.prepared_path)
    assert hashlib.sha256(prepared.read_bytes()).hexdigest() == report.prepared_sha256
    ref = msgspec.structs.replace(asked.bundle, prepared_path=str(prepared), prepared_sha256=report.prepared_sha256)
    engine = Engine.load(ref, threads=1)
    assert engine.note == "" and engine.digest == asked.bundle.model_sha256
