"""The real runner beside the bare sequential loop: frames a second, and how long a frame takes.

`python -m tests.bench.throughput_bench [--kind mnv2] [--seconds S] [--rounds N]`
Throughput: a 1080p clip as fast as it goes. Latency: the same clip at a camera's pace, from the picture in hand to its
result, so that no queue is measured. The bare loop loads the plain model, the runner the prepared one, as each would.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from lenskeep.messages.runner import SlotPlan
from tests.bench import models, rig
from tests.runnerchild import RunnerChild

PACE_FPS = 30.0


def bare(kind: str, clip: Path, seconds: float, fps: float) -> dict[str, float]:
    """Measure the loop that anybody writes."""
    return rig.bare(
        ["-m", "tests.bench.bare_loop", str(clip), str(models.model(kind)), str(seconds), str(fps)], cores=2
    )


def runner(kind: str, clip: Path, seconds: float, fps: float) -> dict[str, float]:
    """Measure the runner with a daemon that reads and acknowledges."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slot = SlotPlan(
            slot="bench",
            socket_path=str(folder / "s"),
            cameras=[rig.file_camera(clip, fps)],
            bundle=rig.version(kind, 0),
        )
        with RunnerChild(slot, folder, cores=2) as child:
            child.more(10)
            begun, first = time.monotonic(), child.results[-1].sequence
            while time.monotonic() - begun < seconds:
                child.listen(0.05)
            spent = time.monotonic() - begun
            results = [result for result in child.results if result.sequence > first]
    total_ms = [result.total_us / 1000 for result in results]
    return {
        "fps": len(results) / spent,
        "latency_p50_ms": rig.median(total_ms),
        "latency_p99_ms": rig.p99(total_ms),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", default="mnv2")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    rows: list[list[object]] = []
    for codec in ("mjpeg", "h264"):
        clip = rig.clip(codec, 1920, 1080)
        if clip is None:
            rows.append([codec, "skipped: ffmpeg is not installed"])
            continue
        for what, fps, must in (("fps", 0.0, ">= 1.2 / 1.0"), ("latency_p99_ms", PACE_FPS, "<= 1.15")):
            ours, theirs = rig.rounds(
                asked.rounds,
                lambda clip=clip, fps=fps: runner(asked.kind, clip, asked.seconds, fps),
                lambda clip=clip, fps=fps: bare(asked.kind, clip, asked.seconds, fps),
            )
            mine, bares = [side[what] for side in ours], [side[what] for side in theirs]
            ratios = [one / other for one, other in zip(mine, bares, strict=True)]
            rows.append(
                [codec, what if not fps else f"{what} at {fps:.0f} fps", f"{rig.median(mine):.1f}",
                 f"{rig.median(bares):.1f}", f"{rig.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}", must]
            )  # fmt: skip
    rig.print_table(
        f"The runner over the bare sequential loop, 1080p, {asked.kind}, {asked.rounds} rounds of {asked.seconds:g} s",
        ["clip", "figure", "runner", "bare", "ratio", "spread", "must"],
        rows,
    )


if __name__ == "__main__":
    main()
