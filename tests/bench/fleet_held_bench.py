"""Connections held for real: 15,000 devices over mTLS that call at the rate of 100,000 (1,667 calls a second).

`python -m tests.bench.fleet_held_bench [CONNECTIONS] [SECONDS]`. Every device has its own key and certificate. Server
and load share the machine's cores; the server has one of them to itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

from tests.bench import rig
from tests.bench.fleet_sync_bench import RATE_OPEN, Load, cpu_s, rss_kib, run, start
from tests.bench.fleetload import let_in

PROCESSES = 3


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 15_000
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 20.0
    with tempfile.TemporaryDirectory(prefix="lk-bench-") as name:
        measure(Path(name), count, seconds)


def measure(folder: Path, count: int, seconds: float) -> None:
    """Connect all, let them call, and print what it took."""
    fleet = start(folder)
    assert fleet.process is not None
    pid, cores, loads = fleet.process.pid, sorted(os.sched_getaffinity(0)), []
    for task in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(task.name), {cores[0]})
    names = let_in(fleet, folder, count)
    bare_kib, bare_s, began_s = rss_kib(pid), cpu_s(pid), time.monotonic()
    os.sched_setaffinity(0, set(cores[1:]) or set(cores))
    try:
        each = -(-count // PROCESSES)
        for first in range(0, count, each):
            loads.append(Load(fleet.port, folder, names[first : first + each]))
        for load in loads:
            load.wait()
        connect_s, connect_cpu_s = time.monotonic() - began_s, cpu_s(pid) - bare_s
        idle_kib = rss_kib(pid)
        words: dict[str, object] = {"closed": False, "empty": False, "rate": RATE_OPEN / len(loads)}
        run(pid, loads, None, **words | {"seconds": count / RATE_OPEN + 1})  # each one calls once before it counts
        told = run(pid, loads, None, **words | {"seconds": seconds})
        busy_kib = rss_kib(pid)
        unchanged = run(pid, loads, None, **words | {"seconds": seconds / 2, "empty": True})
    finally:
        for load in loads:
            load.close()
        fleet.close()
    rig.print_table(
        f"{count} mTLS connections held, {RATE_OPEN:.0f} calls/s asked",
        ["", "calls/s", "CPU us a call", "share of a core", "p50 ms", "p99 ms", "faults"],
        [[name, f"{it['rate']:,.0f}", f"{it['us']:.0f}", f"{it['share']:.1%}", f"{it['p50_ms']:.1f}",
          f"{it['p99_ms']:.1f}", int(it["faults"])] for name, it in (("with a window", told), ("unchanged", unchanged))],
    )  # fmt: skip
    rig.print_table(
        "Holding them", ["KiB each, idle", "KiB each, after calls", "handshakes/s", "CPU ms a handshake"],
        [[f"{(idle_kib - bare_kib) / count:.0f}", f"{(busy_kib - bare_kib) / count:.0f}", f"{count / connect_s:.0f}",
          f"{connect_cpu_s / count * 1e3:.2f}"]],
    )  # fmt: skip


if __name__ == "__main__":
    main()
