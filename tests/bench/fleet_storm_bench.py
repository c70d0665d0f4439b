"""Every device loses its connection at the same moment and comes back at once: `python -m tests.bench.fleet_storm_bench`.

Nobody spreads the crowd: each dials again in the same instant, over full or resumed mTLS, the worst that a switch that
restarts can do. Beside it other devices go on calling once a second, and their waiting is what counts.
"""

from __future__ import annotations

import argparse
import sys
import time

from tests.bench import rig
from tests.bench.fleetcrowd import ground
from tests.fleetsim.plan import Told

OTHERS = 100


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=4000)
    parser.add_argument("--seconds", type=float, default=30.0, help="how long to watch")
    parser.add_argument("--processes", type=int, default=2)
    asked = parser.parse_args()
    with ground(asked.devices + OTHERS) as made:
        all_, others = made.names[OTHERS:], made.names[:OTHERS]
        spread_s = max(5.0, asked.devices / 200)
        crowd = made.start(made.plan(all_, wait_s=110.0, window_s=900.0, spread_s=spread_s, root=""), asked.processes)
        made.until_held(len(all_))
        made.until_quiet(0.1 + len(all_) / 50_000)  # so many who wait come again all the time
        calm = _others(made, others, 8.0)
        watched = made.start(made.plan(others, window_s=1.0, root="", seconds=asked.seconds + 2), 1)[0]
        time.sleep(2.0)
        cpu_s = sum(made.server.cpu_times()[:2])
        began = time.monotonic()
        for one in crowd:
            one.storm()
        during = watched.told(asked.seconds + 30)
        cpu_s = sum(made.server.cpu_times()[:2]) - cpu_s
        for one in crowd:
            one.stop()
        told = Told.merged([one.told() for one in crowd])
    back = sorted(event.at_s - began for event in told.events if event.what == "back")
    took = f"{back[-1]:.1f}" if len(back) == len(all_) else f"{len(back)} of {len(all_)} in {asked.seconds:.0f}"
    rig.print_table(
        f"A storm: {len(all_)} devices lose their mTLS connections and come back at once",
        ["figure", "measured", "must"],
        [
            ["devices that came back", f"{len(back)} of {len(all_)}", "all"],
            ["all back after, s", took, ""],
            ["admitted, most in one second", str(_busiest(back)), "bounded"],
            ["others' calls before, p50 / p99 ms", _pair(calm), ""],
            ["others' calls during, p50 / p99 ms", _pair(during), "p99 <= 1000, aim 250"],
            ["others' calls during that failed", str(_failed(during)), "0"],
            ["server CPU s in it", f"{cpu_s:.1f}", ""],
        ],
    )
    return 0


def _others(made: object, names: list[str], seconds: float) -> Told:
    return made.start(made.plan(names, window_s=1.0, root="", seconds=seconds), 1)[0].told()  # type: ignore[attr-defined]


def _busiest(back: list[float]) -> int:
    counts: dict[int, int] = {}
    for at in back:
        counts[int(at)] = counts.get(int(at), 0) + 1
    return max(counts.values(), default=0)


def _pair(told: Told) -> str:
    return f"{told.latency_ms(0.5):.1f} / {told.latency_ms(0.99):.1f}"


def _failed(told: Told) -> int:
    return sum(count for name, count in told.counts.items() if name.startswith("cut: read") or name == "status 503")


if __name__ == "__main__":
    sys.exit(main())
