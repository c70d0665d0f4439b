"""What the benches share: versions of the usual sizes, clips, a runner that notes when each result was made, tables."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from lenskeep.messages.runner import BundleRef, CameraPlan, SlotPlan
from lenskeep.runner.runtime import ort
from tests.bench import models
from tests.runnerchild import RunnerChild, manifest_json

LABELS = [f"class-{n}" for n in range(models.CLASSES)]
CLIP_FRAMES = 120


def sha256(path: Path) -> str:
    """Hash a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepared(path: Path) -> Path:
    """Return the model optimised for this machine, as the trial leaves it."""
    target = path.with_name(f"{path.stem}-ort{ort.__version__}.opt")
    if not target.exists():
        options = ort.SessionOptions()
        options.log_severity_level = 4
        part = target.with_suffix(f".{os.getpid()}.onnx")
        options.optimized_model_filepath = str(part)
        ort.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        part.rename(target)
    return target


def version(kind: str, number: int, *, seed: int = 1, optimised: bool = True) -> BundleRef:
    """Return a stored version of a model of this size; versions with another seed have other bytes."""
    path = models.model(kind, seed)
    ref = f"1.{number}.0"
    fast = prepared(path) if optimised else None
    return BundleRef(
        name=kind, version=ref, digest=hashlib.sha256(f"{kind}{ref}".encode()).hexdigest(),
        manifest_json=manifest_json(kind, ref, models.INPUT_PX[kind], LABELS),
        model_path=str(path), model_sha256=sha256(path), prepared_path=str(fast or ""),
        prepared_sha256=sha256(fast) if fast else "",
    )  # fmt: skip


def clip(codec: str, width_px: int, height_px: int) -> Path | None:
    """Return a clip of the moving belt, `mjpeg` or `h264`; None when it needs ffmpeg and there is none."""
    path = models.cache_dir() / f"belt-{height_px}-{codec}.{'avi' if codec == 'mjpeg' else 'mp4'}"
    if path.exists():
        return path
    if shutil.which("ffmpeg") is None:
        return None
    from lenskeep.runner.belt import Belt

    how = {
        "mjpeg": ["-c:v", "mjpeg", "-q:v", "4", "-pix_fmt", "yuvj420p"],
        "h264": ["-c:v", "libx264", "-preset", "fast", "-b:v", "4500k", "-g", "30", "-pix_fmt", "yuv420p"],
    }[codec]
    part = path.with_name(f"part-{os.getpid()}-{path.name}")
    belt = Belt(7, width_px, height_px, loop_frames=CLIP_FRAMES)
    with subprocess.Popen(
        ["ffmpeg", "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{width_px}x{height_px}",
         "-r", "30", "-i", "-", *how, str(part)], stdin=subprocess.PIPE,
    ) as encoder:  # fmt: skip
        assert encoder.stdin is not None
        for index in range(CLIP_FRAMES):
            encoder.stdin.write(belt.frame(index).tobytes())
    assert encoder.returncode == 0
    part.rename(path)
    return path


def file_camera(path: Path, fps: float = 0.0) -> CameraPlan:
    """A clip in a loop: as fast as it goes, or at a pace."""
    return CameraPlan(name="cam", source=f"file:{path}", pace="realtime" if fps else "fast", fps=fps)


class Recorded(RunnerChild):
    """A runner that also writes down the moment of every result, in nanoseconds of the machine's monotonic clock."""

    def __init__(self, slot: SlotPlan, folder: Path, cores: int) -> None:
        self.times_path = folder / "times.npy"
        self.times_path.unlink(missing_ok=True)
        super().__init__(slot, folder, module="tests.bench.recorder", cores=cores)
        self.acknowledging = True

    def times_ns(self) -> np.ndarray:
        """End the runner and return the moments, one per result in order."""
        self.__exit__()
        times: np.ndarray = np.load(self.times_path)
        return times


def listen_for(child: RunnerChild, seconds: float, *, forget: bool = True) -> None:
    """Take in results for a while, and forget them."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        child.listen(0.05)
        if forget:
            child.results.clear()


def cores_here(limit: int) -> set[int]:
    """Return the first cores this process may use."""
    return set(sorted(os.sched_getaffinity(0))[:limit])


def median(values: Sequence[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def p99(values: Sequence[float] | np.ndarray) -> float:
    """The value that one in a hundred exceeds."""
    return float(np.quantile(np.asarray(values), 0.99))


def print_table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table with what it was measured on."""
    cells = [[str(cell) for cell in row] for row in [head, *rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    sys.stdout.write("\n".join([f"\n{title}", where(), "", *lines, ""]))
    sys.stdout.flush()


def where() -> str:
    """Say what the figures were measured on."""
    load = os.getloadavg()[0]
    return (
        f"{os.cpu_count()} cores, load {load:.1f}, Python {platform.python_version()}, "
        f"onnxruntime {ort.__version__}, OpenCV {cv2.__version__}"
    )


def bare(command: Sequence[str], cores: int) -> dict[str, float]:
    """Run a bare script on so many cores; return what it measured."""
    allowed = cores_here(cores)
    done = subprocess.run(
        [sys.executable, *command],
        check=True,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: os.sched_setaffinity(0, allowed),
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def rounds(count: int, *sides: Callable[[], dict[str, float]]) -> list[list[dict[str, float]]]:
    """Run the sides in turn, so that a neighbour on the machine disturbs them alike."""
    answers: list[list[dict[str, float]]] = [[] for _ in sides]
    for _ in range(count):
        for answer, side in zip(answers, sides, strict=True):
            answer.append(side())
    return answers
