"""Nothing is lost and nothing counts twice, whatever the network, the power and the devices do."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tinybundle
from tests.chaos.hour import Hour
from tests.fleetrig import FleetServer
from tests.fleetsim.habits import Chances
from tests.repositories import Repository


@pytest.fixture
def fleet() -> Iterator[FleetServer]:
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder)
    yield server
    server.close()
    shutil.rmtree(folder)


@pytest.fixture
def repository(fleet: FleetServer) -> Repository:
    """The fleet's repository, with two versions."""
    made = Repository(fleet.repository)
    made.keys["acme"] = tinybundle.key()
    made.publisher("acme", "cap-*")
    for version in ("1.0.0", "1.1.0"):
        made.release("cap-inspect", version)
    return made


async def test_an_hour_of_bad_weather_and_kills_on_both_sides_loses_and_doubles_nothing(
    fleet: FleetServer, repository: Repository, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 31)
    print("seed", seed)
    fleet.start()
    outcome = await Hour(fleet, repository, tmp_path, seed=seed, devices=30, seconds=20.0).live()
    print(outcome)
    assert not outcome.differences, fleet.log()
    assert outcome.records["windows accounted for"] > 0
    assert "went back" not in outcome.told.counts


async def test_devices_whose_outboxes_overflow_say_how_much_was_lost_and_the_rest_counts_once(
    fleet: FleetServer, repository: Repository, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 31)
    print("seed", seed)
    fleet.start()
    chances = Chances(drop_answer=0.2, restart=0.05)
    hour = Hour(fleet, repository, tmp_path, seed=seed, devices=10, seconds=8.0, chances=chances, outbox_records=20)
    outcome = await hour.live()
    print(outcome)
    assert not outcome.differences, fleet.log()
