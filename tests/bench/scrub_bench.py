"""What the slow reading of stored files costs the line: p99 between two results beside it, over p99 without.

`python -m tests.bench.scrub_bench [--rounds N] [--seconds S] [--cores 2,1]`
One runner at full load; spans without, beside a reading at the default rate, and beside one as fast as it goes
(`lenskeep scrub --now`) take turns in it. The reader is the device's own process and has the runner's cores to share.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from lenskeep.config import Storage
from lenskeep.daemon.scrubber import NOW_BYTES_S
from lenskeep.messages.runner import SlotPlan
from tests.bench import models, rig

SETTLE_S = 0.3
SIDES = {"without": 0.0, "4 MiB/s": Storage().scrub_mb_s * (1 << 20), "--now": NOW_BYTES_S}


@contextmanager
def reading(rate_bytes_s: float, cores: int) -> Iterator[dict[str, float]]:
    """Let the device's reader read large files on these cores; yields what it took in the end: bytes, CPU seconds."""
    took = {"bytes": 0.0, "cpu_s": 0.0}
    if not rate_bytes_s:
        yield took
        return
    stored = rig.version("rn50", 0)
    order = f"read {stored.model_sha256} {stored.model_path}\n".encode()
    taskset = ["taskset", "-c", ",".join(str(core) for core in sorted(rig.cores_here(cores)))]
    with subprocess.Popen(
        [*taskset, sys.executable, "-m", "lenskeep.daemon.scrubreader", str(rate_bytes_s)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        sink, source = child.stdin, child.stdout

        def go_on() -> None:
            for line in source:
                assert line.startswith(b"whole"), line
                try:
                    sink.write(order)
                    sink.flush()
                except (BrokenPipeError, ValueError):
                    return

        sink.write(order)
        sink.flush()
        listener = threading.Thread(target=go_on, daemon=True)
        listener.start()
        yield took
        took["bytes"] = _bytes_read(child.pid)
        took["cpu_s"] = sum(psutil.Process(child.pid).cpu_times()[:2])
        child.kill()
        listener.join()


def _bytes_read(pid: int) -> float:
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("rchar")))


def measure(cores: int, rounds: int, seconds: float) -> list[list[object]]:
    """Take turns; return one row per side."""
    clip = rig.clip("mjpeg", 1280, 720)
    assert clip is not None, "ffmpeg is needed for the clip"
    spans: dict[str, list[tuple[int, int]]] = {side: [] for side in SIDES}
    read, cpu_s = dict.fromkeys(SIDES, 0.0), dict.fromkeys(SIDES, 0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        slot = SlotPlan(
            slot="bench", socket_path=str(folder / "s"), cameras=[rig.file_camera(clip)],
            bundle=rig.version("mnv2", 0), threads=1,
        )  # fmt: skip
        with rig.Recorded(slot, folder, cores) as runner:
            runner.more(10)
            rig.listen_for(runner, 2)
            for _ in range(rounds):
                for side, rate in SIDES.items():
                    with reading(rate, cores) as took:
                        rig.listen_for(runner, SETTLE_S)
                        begin = time.monotonic_ns()
                        rig.listen_for(runner, seconds)
                        spans[side].append((begin, time.monotonic_ns()))
                    read[side] += took["bytes"]
                    cpu_s[side] += took["cpu_s"]
            times_ns = runner.times_ns()
    ends_ns, intervals_ms = times_ns[1:], np.diff(times_ns) / 1e6
    rows: list[list[object]] = []
    base = 0.0
    for side, found in spans.items():
        inside = np.zeros(len(ends_ns), bool)
        for begin, end in found:
            inside |= (ends_ns >= begin) & (ends_ns <= end)
        chosen = intervals_ms[inside]
        p99 = rig.p99(chosen)
        base = base or p99
        lasted_s = rounds * (seconds + SETTLE_S)
        fps = len(chosen) / (rounds * seconds)
        rows.append([cores, side, f"{np.median(chosen):.2f}", f"{p99:.2f}", f"{p99 / base:.3f}", f"{fps:.1f}",
                     f"{read[side] / lasted_s / (1 << 20):.1f}", f"{100 * cpu_s[side] / lasted_s:.1f}"])  # fmt: skip
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--cores", default="2,1")
    arguments = parser.parse_args()
    models.cache_dir()
    rows = []
    for cores in (int(word) for word in arguments.cores.split(",")):
        rows += measure(cores, arguments.rounds, arguments.seconds)
    rig.print_table(
        "The line beside a reading of stored files (MobileNetV2, 720p MJPEG, full load)",
        ["cores", "reading", "p50 ms", "p99 ms", "p99 ratio", "fps", "MiB/s read", "reader CPU %"],
        rows,
    )


if __name__ == "__main__":
    main()
