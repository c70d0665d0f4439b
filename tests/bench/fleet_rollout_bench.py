"""How soon a thousand connected devices act on a rollout: `python -m tests.bench.fleet_rollout_bench`.

Each device holds a call over its own mTLS connection. News reaches it as the answer; it fetches and verifies timestamp,
snapshot, the director's document and its own assignment, and acts: the moment when it begins to download.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time

import msgspec

from lenskeep.cli.wire import Wire, parse_address
from lenskeep.errors import LenskeepError
from lenskeep.messages.rollouts import Plan as Rollout
from lenskeep.messages.rollouts import RolloutAsk, RolloutDeed, Wave
from lenskeep.trust.keeping import director
from tests.bench import rig
from tests.bench.fleetcrowd import Ground, ground
from tests.fleetsim.plan import Told

WATCH_S = 12.0
PROCESSES = 2


def main() -> int:
    """Measure both ways to begin, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--devices", type=int, default=1000)
    asked = parser.parse_args()
    rows = []
    with ground(asked.devices) as made:
        for title, begin in (
            ("the repository tool", _sign),
            ("a rollout to all", _roll_out),
            ("5 canaries", _canaries),
        ):
            rows.append(_measured(made, title, begin))
    rig.print_table(
        f"From a rollout's start to devices that act on it, {asked.devices} connected, seconds",
        ["started by", "signed", "first knows", "first acts", "all know", "half act", "all act", "server CPU s"], rows,
    )  # fmt: skip
    sys.stdout.write("must: first acts <= 1, all know <= 5; aim 0.2 and 2\n")
    return 0


def _measured(made: Ground, title: str, begin: object) -> list[str]:
    assert callable(begin)
    plan = made.plan(made.names, wait_s=100.0, window_s=600.0, step_s=20.0, spread_s=3.0, running="cap-inspect@0.9.0")
    crowd = made.start(plan, PROCESSES)
    made.until_held(len(made.names))
    made.until_quiet()
    cpu_s = sum(made.server.cpu_times()[:2])
    began = time.monotonic()
    begin(made)
    signed = time.monotonic()
    time.sleep(WATCH_S)
    cpu_s = sum(made.server.cpu_times()[:2]) - cpu_s
    for one in crowd:
        one.stop()
    told = Told.merged([one.told() for one in crowd])
    _end_rollouts(made)
    know = _first_times(told, "news", began)
    act = _first_times(told, "downloading", began)
    count = len(made.names)
    whole = [f"{know[-1]:.2f}" if len(know) == count else f"{len(know)} of {count}"]
    half = [f"{act[count // 2]:.2f}" if len(act) > count // 2 else "-"]
    every = [f"{act[-1]:.2f}" if len(act) == count else f"{len(act)} of {count}"]
    first = [f"{know[0]:.2f}", f"{act[0]:.2f}" if act else "-"]
    return [title, f"{signed - began:.2f}", *first, *whole, *half, *every, f"{cpu_s:.2f}"]


def _first_times(told: Told, what: str, began: float) -> list[float]:
    found: dict[str, float] = {}
    for event in told.events:
        if what in (event.what, event.value) and event.at_s > began:
            found.setdefault(event.device, event.at_s - began)
    return sorted(found.values())


def _end_rollouts(made: Ground) -> None:
    wire = Wire(parse_address(str(made.fleet.socket)))
    for number in (1, 2):
        with contextlib.suppress(LenskeepError):  # it is over, or there is none
            wire.ask(
                "POST", f"/v1/fleet/rollouts/{number}/abort", body=msgspec.json.encode(RolloutDeed(reason="measured"))
            )


def _sign(made: Ground) -> None:
    """Assign to all in one document, with the repository tool's own hands."""
    wanted = {name: {"main": ("cap-inspect", "1.0.0")} for name in made.names}
    repository = made.repository
    repository.change(lambda work: director.assign(work, wanted, repository.signers(), time.time()))


def _roll_out(made: Ground) -> None:
    """Start a rollout of one wave at the operators' door."""
    _start(made, Rollout(bundle="cap-inspect@1.1.0", slot="main", waves=[Wave(take="100%")], soak_s=0))


def _canaries(made: Ground) -> None:
    """Start a rollout with a small first wave."""
    waves = [Wave(take="5"), Wave(take="100%")]
    _start(made, Rollout(bundle="cap-inspect@1.0.0", slot="main", waves=waves, again=True))


def _start(made: Ground, plan: Rollout) -> None:
    ask = RolloutAsk(plan=plan)
    wire = Wire(parse_address(str(made.fleet.socket)))
    wire.ask("POST", "/v1/fleet/rollouts", body=msgspec.json.encode(ask))


if __name__ == "__main__":
    sys.exit(main())
