"""From exec to the first result: the runner beside a bare script that imports, loads, opens the clip and judges one frame.

`python -m tests.bench.start_bench [--kind mnv2] [--rounds N]`
The runner's moment is when its first result reaches the daemon's end of the socket. Both load the prepared model.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from lenskeep.messages.runner import SlotPlan
from tests.bench import models, rig
from tests.runnerchild import RunnerChild

BARE = """
import os, sys
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
import cv2, numpy, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
options.log_severity_level = 4
session = ort.InferenceSession(sys.argv[2], options, providers=["CPUExecutionProvider"])
size = session.get_inputs()[0].shape[2]
good, image = cv2.VideoCapture(sys.argv[1]).read()
tensor = cv2.dnn.blobFromImage(image, 1 / 255, (size, size), swapRB=True)
print(session.run(None, {"images": tensor})[0][0].argmax(), flush=True)
"""


def bare(clip: Path, model: Path) -> dict[str, float]:
    """Time the script."""
    begun = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", BARE, str(clip), str(model)], stdout=subprocess.PIPE) as script:
        assert script.stdout is not None
        assert script.stdout.readline()
        return {"ms": (time.perf_counter() - begun) * 1000}


def runner(slot: SlotPlan, folder: Path) -> dict[str, float]:
    """Time the runner."""
    begun = time.perf_counter()
    with RunnerChild(slot, folder) as child:
        listening = time.perf_counter() - begun
        child.until(lambda: child.results)
        return {"ms": (time.perf_counter() - begun) * 1000, "listening_ms": listening * 1000}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", default="mnv2")
    parser.add_argument("--rounds", type=int, default=9)
    asked = parser.parse_args()
    clip = rig.clip("mjpeg", 1280, 720)
    assert clip is not None, "ffmpeg is needed for the clip"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slot = SlotPlan(
            slot="bench", socket_path=str(folder / "s"), cameras=[rig.file_camera(clip)],
            bundle=rig.version(asked.kind, 0),
        )  # fmt: skip
        model = rig.prepared(models.model(asked.kind))
        ours, theirs = rig.rounds(asked.rounds, lambda: runner(slot, folder), lambda: bare(clip, model))
    mine, bares = [one["ms"] for one in ours], [one["ms"] for one in theirs]
    ratios = [one / other for one, other in zip(mine, bares, strict=True)]
    rig.print_table(
        f"From exec to the first result, {asked.kind}, {asked.rounds} rounds",
        ["runner ms", "socket there ms", "bare script ms", "ratio", "best over best", "must", "aim"],
        [[f"{rig.median(mine):.0f}", f"{rig.median([one['listening_ms'] for one in ours]):.0f}",
          f"{rig.median(bares):.0f}", f"{rig.median(ratios):.2f}", f"{min(mine) / min(bares):.2f}", "1.5", "1.1"]],
    )  # fmt: skip


if __name__ == "__main__":
    main()
