"""How the runner's memory grows over many swaps, and whether any frame is lost or judged twice meanwhile.

`python -m tests.bench.memory_bench [--kind mnv2] [--swaps 200]`
Memory is read some seconds after a swap, when what was released has been given back: once after a few swaps, with
one version active and one warm behind it, and again after all of them.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import pairwise
from pathlib import Path

from lenskeep.messages.runner import Result, SlotPlan, Swap, Swapped
from tests.bench import models, rig
from tests.runnerchild import RunnerChild

FIRST_SWAPS = 5
QUIET_S = 6.0


def swap(child: RunnerChild, kind: str, number: int) -> None:
    """Exchange to another version; versions alternate between two sets of weights."""
    child.say(Swap(op=f"op{number}", bundle=rig.version(kind, number, seed=1 + number % 2)))
    answer = child.answer(f"op{number}")
    assert isinstance(answer, Swapped), answer


def settled_mb(child: RunnerChild) -> float:
    """Wait until the memory has been trimmed; return what the process holds."""
    keep = len(child.results)
    rig.listen_for(child, QUIET_S, forget=False)
    assert len(child.results) > keep
    return child.beat().rss_mb


def odd_frames(results: list[Result]) -> tuple[int, int]:
    """Count frames that are missing and frames that came twice."""
    missing = sum(max(0, after.frame - before.frame - 1) for before, after in pairwise(results))
    twice = sum(after.frame <= before.frame for before, after in pairwise(results))
    return missing, twice


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", default="mnv2")
    parser.add_argument("--swaps", type=int, default=200)
    asked = parser.parse_args()
    clip = rig.clip("mjpeg", 1280, 720)
    assert clip is not None, "ffmpeg is needed for the clip"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slot = SlotPlan(
            slot="bench", socket_path=str(folder / "s"), cameras=[rig.file_camera(clip)],
            bundle=rig.version(asked.kind, 0),
        )  # fmt: skip
        with RunnerChild(slot, folder) as child:
            for number in range(1, FIRST_SWAPS + 1):
                swap(child, asked.kind, number)
            before_mb = settled_mb(child)
            for number in range(FIRST_SWAPS + 1, asked.swaps + 1):
                swap(child, asked.kind, number)
            after_mb = settled_mb(child)
            child.more(1)
            missing, twice = odd_frames(child.results)
    model_mb = models.model(asked.kind).stat().st_size / 2**20
    rig.print_table(
        f"{asked.swaps} swaps at full rate, {asked.kind} ({model_mb:.0f} MB)",
        ["figure", "measured", "must", "aim"],
        [
            [f"memory after {FIRST_SWAPS} swaps, MB", f"{before_mb:.0f}", "", ""],
            [f"memory after {asked.swaps} swaps, MB", f"{after_mb:.0f}", "", ""],
            ["growth over one model's size, %", f"{100 * (after_mb - before_mb) / model_mb:.0f}", "20", "5"],
            ["frames judged", len(child.results), "", ""],
            ["frames lost", missing, "0", "0"],
            ["frames judged twice", twice, "0", "0"],
        ],
    )


if __name__ == "__main__":
    main()
