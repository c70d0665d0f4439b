"""Let an hour of a fleet's life pass as slowly as you like: `python -m tests.chaos --seconds 600 --devices 200 --seed 7`."""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
from pathlib import Path

from tests import tinybundle
from tests.chaos.hour import Hour
from tests.fleetrig import FleetServer
from tests.repositories import Repository


def main() -> int:
    """Run it, print what came of it, keep everything where something did not agree."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--devices", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    (folder / "fleet").mkdir()
    (folder / "crowd").mkdir()
    fleet = FleetServer(folder / "fleet")
    try:
        repository = Repository(fleet.repository)
        repository.keys["acme"] = tinybundle.key()
        repository.publisher("acme", "cap-*")
        for version in ("1.0.0", "1.1.0"):
            repository.release("cap-inspect", version)
        fleet.start()
        hour = Hour(fleet, repository, folder / "crowd", seed=asked.seed, devices=asked.devices, seconds=asked.seconds)
        outcome = asyncio.run(hour.live())
    finally:
        fleet.close()
    print(outcome)
    if outcome.differences:
        print(f"kept: {folder}")
        return 1
    shutil.rmtree(folder)
    print("every record is there once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
