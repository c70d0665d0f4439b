"""A fleet and two sites on hosts of their own: cables that are pulled, a slow link, lost packets, kill -9 on each."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lenskeep.trust.keeping import director
from tests import tinybundle
from tests.chaos.accounts import devices_say, settled
from tests.chaos.network import FarFleet, Site, missing
from tests.fleetsim.crowd import Process
from tests.fleetsim.enrolment import enrol_many
from tests.fleetsim.habits import CALM, Chances
from tests.fleetsim.plan import Plan
from tests.repositories import Repository

DEVICES = 10  # at each site
SECONDS = 20.0
CHANCES = Chances(fail=0.1, revert=0.1, lying_clock=0.2, duplicate=0.05, late=0.05, drop_answer=0.05, restart=0.02)

pytestmark = pytest.mark.lab


@pytest.fixture
def fleet() -> Iterator[FarFleet]:
    if reason := missing():
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FarFleet(folder)
    yield server
    server.close()
    shutil.rmtree(folder)


@pytest.fixture
def sites(fleet: FarFleet) -> Iterator[list[Site]]:
    made = [Site(fleet.host, number) for number in (1, 2)]
    yield made
    for one in made:
        one.close()


def test_an_hour_of_pulled_cables_and_kills_on_every_host_loses_and_doubles_nothing(
    fleet: FarFleet, sites: list[Site], tmp_path: Path
) -> None:
    seed = random.randrange(1 << 31)
    print("seed", seed)
    dice = random.Random(seed)
    repository = Repository(fleet.repository)
    repository.keys["acme"] = tinybundle.key()
    repository.publisher("acme", "cap-*")
    repository.release("cap-inspect", "1.1.0")
    (tmp_path / "root.json").write_bytes(repository.root())
    (tmp_path / "journals").mkdir()
    fleet.start()
    names = [f"sim-{n:03d}" for n in range(DEVICES * len(sites))]
    enrol_many(str(fleet.socket), tmp_path / "identities", names)
    plans = [
        Plan(
            host=site.fleet_address, port=fleet.port, identities=str(tmp_path / "identities"),
            names=names[index :: len(sites)], seed=seed, seconds=0, speed=3600 / SECONDS,
            journals=str(tmp_path / "journals"), root=str(tmp_path / "root.json"), wait_s=3.0, step_s=60.0,
            chances=CHANCES,
        )
        for index, site in enumerate(sites)
    ]  # fmt: skip
    sites[0].slow_down("2mbit")
    print("packets are lost:", sites[1].lose(5))
    crowd = [Process(plan, command=site.command) for plan, site in zip(plans, sites, strict=True)]
    try:
        wanted = {name: {"main": ("cap-inspect", "1.1.0")} for name in names[::2]}
        repository.change(lambda work: director.assign(work, wanted, repository.signers(), repository.now_s))
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            time.sleep(dice.uniform(0.2, 1.5))
            index = dice.randrange(len(sites))
            match dice.choice(("cable", "cable", "fleet", "devices")):
                case "cable":
                    sites[index].pull_cable()
                    time.sleep(dice.uniform(0.1, 2.0))
                    sites[index].plug_cable()
                case "fleet":
                    fleet.kill()
                    fleet.start()
                case "devices":
                    crowd[index].kill()
                    crowd[index] = Process(plans[index], command=sites[index].command)
        for one in crowd:
            one.stop()
        for one in crowd:
            one.told()
        crowd = [
            Process(
                msgspec.structs.replace(plan, drain=True, seconds=40.0, wait_s=0.0, chances=CALM), command=site.command
            )
            for plan, site in zip(plans, sites, strict=True)
        ]
        for one in crowd:
            assert not one.told().open_devices, fleet.log()
    finally:
        for one in crowd:
            if one.child.poll() is None:
                one.kill()
    assert not settled(tmp_path / "journals", fleet.database)
    books, _ = devices_say(tmp_path / "journals")
    count = sum(n for (what, _), n in books.windows.items() if what == "windows")
    print("windows accounted for", count)
    assert count > len(names) * 10
