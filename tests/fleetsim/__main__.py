"""A fleet of simulated devices: `python -m tests.fleetsim --fleet HOST:PORT --devices 1000 --seed 7 --seconds 60`.

Names are `sim-00001` and so on; with `--operator SOCKET` they are enrolled first, into `--identities FOLDER`, where
later runs find them. What came of it is printed as a table, with `--json` as JSON.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import msgspec

from tests.fleetsim.crowd import run_crowd
from tests.fleetsim.enrolment import enrol_many
from tests.fleetsim.habits import CALM, ROUGH
from tests.fleetsim.plan import Plan, Told


def main() -> int:
    """Parse the words and run."""
    asked = _parser().parse_args()
    print(f"seed {asked.seed}", file=sys.stderr, flush=True)
    host, _, port = asked.fleet.removeprefix("https://").rpartition(":")
    names = [f"{asked.prefix}-{n:05d}" for n in range(asked.devices)]
    with tempfile.TemporaryDirectory(prefix="lk-sim-") as folder:
        identities = Path(asked.identities or folder)
        if asked.operator:
            enrol_many(asked.operator, identities, names)
        plan = Plan(
            host=host, port=int(port), identities=str(identities), names=names, seed=asked.seed,
            seconds=asked.seconds, speed=asked.speed, journals=asked.journals, root=asked.root, wait_s=asked.wait,
            window_s=asked.window, step_s=asked.step, spread_s=asked.spread, drain=asked.drain, backlog=asked.backlog,
            slow_version=asked.slow_version, slow_hardware=asked.slow_hardware,
            worse_version=asked.worse_version, worse_hardware=asked.worse_hardware, chances=ROUGH if asked.rough else CALM,
        )  # fmt: skip
        told = run_crowd(plan, asked.processes)
    print(msgspec.json.encode(told).decode() if asked.json else _table(told))
    return 1 if told.open_devices else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fleetsim", description=__doc__)
    parser.add_argument("--fleet", required=True, metavar="HOST:PORT")
    parser.add_argument("--operator", default="", metavar="SOCKET", help="enrol the devices here first")
    parser.add_argument("--identities", default="", help="folder with keys and certificates")
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--prefix", default="sim")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--speed", type=float, default=1.0, help="how many of their seconds pass in one of ours")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--journals", default="", help="folder for what devices keep; without it they keep nothing")
    parser.add_argument("--root", default="", help="the repository's first root: verify, and follow assignments")
    parser.add_argument("--wait", type=float, default=0.0, help="hold calls for so many seconds")
    parser.add_argument("--window", type=float, default=60.0, help="seconds between two records of a device")
    parser.add_argument("--step", type=float, default=5.0, help="seconds that a step of an assignment takes")
    parser.add_argument("--spread", type=float, default=1.0, help="seconds over which the first calls are spread")
    parser.add_argument("--backlog", type=int, default=0, help="records that each device comes with")
    parser.add_argument("--slow-version", default="", metavar="NAME@VERSION")
    parser.add_argument("--slow-hardware", default="")
    parser.add_argument("--worse-version", default="", metavar="NAME@VERSION", help="its golden score is lower …")
    parser.add_argument("--worse-hardware", default="", help="… on this class")
    parser.add_argument("--rough", action="store_true", help="fail, lie, repeat, forget, hang up")
    parser.add_argument("--drain", action="store_true", help="produce nothing; end when the fleet has everything")
    parser.add_argument("--json", action="store_true")
    return parser


def _table(told: Told) -> str:
    lines = [f"{name:30} {count}" for name, count in sorted(told.counts.items())]
    lines.append(f"{'call p50 / p99 ms':30} {told.latency_ms(0.5):.1f} / {told.latency_ms(0.99):.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
