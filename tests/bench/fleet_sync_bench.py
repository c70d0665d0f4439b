"""What a call of a device costs the fleet: saturated over mTLS beside the empty handler, at an open rate, unchanged.

`python -m tests.bench.fleet_sync_bench [SECONDS]`. The server has one core, the load another one. Records are durable
before the answer, and merging them is in the figure: the time that the whole process takes, until nothing waits.
"""

from __future__ import annotations

import json
import os
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from lenskeep.sketch import Sketch
from tests.bench import rig
from tests.bench.fleetload import call_bytes, let_in
from tests.fleetrig import FleetServer
from tests.ports import free_port

CONNECTIONS, DEVICES_OPEN, RATE_OPEN, ROUNDS = 128, 2000, 1667.0, 3
TICKS = os.sysconf("SC_CLK_TCK")


class Load:
    """A process full of devices."""

    def __init__(self, port: int, folder: Path, names: list[str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.fleetload"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.tell(port=port, folder=str(folder), names=names)

    def wait(self) -> Load:
        """Wait until all are connected."""
        assert self.hear() == "ready"
        return self

    def tell(self, **words: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(words) + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def cpu_s(pid: int) -> float:
    """Return what a process and its threads have used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS


def rss_kib(pid: int) -> int:
    """Return the memory of a process."""
    return next(
        int(line.split()[1]) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "VmRSS" in line
    )


def merged(fleet: FleetServer) -> None:
    """Wait until no record waits to be merged."""
    deadline = time.monotonic() + 60
    with closing(sqlite3.connect(f"file:{fleet.database}?mode=ro", uri=True, timeout=30)) as database, database:
        while database.execute("SELECT count(*) FROM inbox").fetchone()[0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def run(pid: int, loads: list[Load], fleet: FleetServer | None, **words: object) -> dict[str, float]:
    """Let loads run, and return what the server spent on each call."""
    before_s, began_s = cpu_s(pid), time.monotonic()
    for load in loads:
        load.tell(**words)
    told = [json.loads(load.hear()) for load in loads]
    took_s = time.monotonic() - began_s - 1.0  # the load waits a second for late answers
    if fleet is not None:
        merged(fleet)
    used_s, late = cpu_s(pid) - before_s, Sketch()
    for each in told:
        late.merge(Sketch.from_bytes(bytes.fromhex(each["late"])))
    count = sum(each["count"] for each in told)
    return {
        "us": used_s / count * 1e6, "rate": count / took_s, "p50_ms": late.quantile_us(0.5) / 1000,
        "p99_ms": late.quantile_us(0.99) / 1000, "faults": sum(each["faults"] for each in told), "count": count,
        "share": used_s / took_s,
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    with tempfile.TemporaryDirectory(prefix="lk-bench-") as name:
        measure(Path(name), seconds)


def start(folder: Path, per_second: int = 2000) -> FleetServer:
    """Start a fleet server that takes connections fast."""
    fleet = FleetServer(folder)
    with fleet.config.open("a") as config:
        config.write(f"[sync]\nconnections_per_second = {per_second}\n")
    fleet.start()
    return fleet


def measure(folder: Path, seconds: float) -> None:
    """Measure both servers by turns, so that what else the machine does meets both."""
    fleet = start(folder)
    assert fleet.process is not None
    cores = sorted(os.sched_getaffinity(0))
    port = free_port()
    empty = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.fleet_empty", str(folder / "state" / "authority"), str(port)],
        stdout=subprocess.PIPE,
    )
    assert empty.stdout is not None and empty.stdout.readline() == b"ready\n"
    for pid in (fleet.process.pid, empty.pid):
        for task in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(task.name), {cores[0]})
    os.sched_setaffinity(0, {cores[-1]})
    names = let_in(fleet, folder, DEVICES_OPEN)
    ours = Load(fleet.port, folder, names[:CONNECTIONS]).wait()
    theirs = Load(port, folder, names[:CONNECTIONS]).wait()
    closed: dict[str, object] = {"closed": True, "empty": False, "seconds": seconds}
    try:
        for load, pid in ((ours, fleet.process.pid), (theirs, empty.pid)):
            run(pid, [load], None, **closed | {"seconds": 1.0})
        merged(fleet)
        turns = [
            (run(fleet.process.pid, [ours], fleet, **closed), run(empty.pid, [theirs], None, **closed),
             run(fleet.process.pid, [ours], fleet, **closed | {"empty": True}))
            for _ in range(ROUNDS)
        ]  # fmt: skip
        ours.close()
        open_ = Load(fleet.port, folder, names).wait()
        run(fleet.process.pid, [open_], fleet, closed=False, empty=False, seconds=2.0, rate=RATE_OPEN)
        slow = run(fleet.process.pid, [open_], fleet, closed=False, empty=False, seconds=2 * seconds, rate=RATE_OPEN)
        open_.close()
    finally:
        theirs.close()
        empty.terminate()
        empty.wait()
        fleet.close()
    _print(turns, slow)


def _print(turns: list[tuple[dict[str, float], ...]], slow: dict[str, float]) -> None:
    def row(name: str, column: int) -> list[object]:
        us, rate = (statistics.median(turn[column][key] for turn in turns) for key in ("us", "rate"))
        ratio = statistics.median(turn[column]["us"] / turn[1]["us"] for turn in turns)
        faults = int(sum(turn[column]["faults"] for turn in turns))
        return [name, f"{us:.0f}", f"{ratio:.2f}", f"{rate:,.0f}", f"{60e6 / us:,.0f}", faults]

    rig.print_table(
        f"A call over kept mTLS, saturated, {CONNECTIONS} connections; a window with a sketch of each stage"
        f" ({call_bytes():,} bytes with the head), vitals now and then",
        ["", "CPU us a call", "over empty", "calls/s", "devices a core at 60 s", "faults"],
        [row("call with a window: durable, and merged", 0), row("empty handler", 1), row("unchanged call", 2)],
    )
    rig.print_table(
        f"The same at an open rate of {RATE_OPEN:.0f} calls/s, {DEVICES_OPEN} connections",
        ["CPU us a call", "share of a core", "p50 ms", "p99 ms", "devices a core at 60 s", "faults"],
        [[f"{slow['us']:.0f}", f"{slow['share']:.1%}", f"{slow['p50_ms']:.1f}", f"{slow['p99_ms']:.1f}",
          f"{60e6 / slow['us']:,.0f}", int(slow["faults"])]],
    )  # fmt: skip


if __name__ == "__main__":
    main()
