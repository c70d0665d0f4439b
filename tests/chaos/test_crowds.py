"""Whole crowds of devices before a fleet that was robbed or put back from an old copy."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lenskeep.trust import assignment as assignments
from lenskeep.trust.assignment import Assignment, SlotAssignment
from lenskeep.trust.keeping import director, documents
from lenskeep.trust.names import device_path, model_path, target_file
from tests import tinybundle
from tests.chaos.accounts import fleet_says
from tests.fleetrig import FleetServer
from tests.fleetsim.crowd import Process, run_crowd
from tests.fleetsim.enrolment import enrol_many
from tests.fleetsim.journal import Account
from tests.fleetsim.plan import Plan, Told
from tests.repositories import Repository

DEVICES = [f"sim-{n:03d}" for n in range(20)]


@pytest.fixture
def fleet() -> Iterator[FleetServer]:
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder)
    yield server
    server.close()
    shutil.rmtree(folder)


@pytest.fixture
def repository(fleet: FleetServer) -> Repository:
    made = Repository(fleet.repository)
    made.keys["acme"] = tinybundle.key()
    made.publisher("acme", "cap-*")
    for version in ("1.0.0", "1.1.0"):
        made.release("cap-inspect", version)
    return made


def plan(fleet: FleetServer, repository: Repository, folder: Path, **words: object) -> Plan:
    (folder / "root.json").write_bytes(repository.root())
    (folder / "journals").mkdir(exist_ok=True)
    enrol_many(str(fleet.socket), folder / "identities", DEVICES)
    usual: dict[str, object] = {
        "seed": random.randrange(1 << 31), "seconds": 4.0, "speed": 60.0, "wait_s": 1.0, "step_s": 5.0, "spread_s": 0.2,
    }  # fmt: skip
    made = Plan(
        host="127.0.0.1", port=fleet.port, identities=str(folder / "identities"), names=DEVICES,
        journals=str(folder / "journals"), root=str(folder / "root.json"), **(usual | words),  # type: ignore[arg-type]
    )  # fmt: skip
    print("seed", made.seed)
    return made


def assign_all(repository: Repository, version: str) -> None:
    wanted = {device: {"main": ("cap-inspect", version)} for device in DEVICES}
    repository.change(lambda work: director.assign(work, wanted, repository.signers(), repository.now_s))


def running(fleet: FleetServer) -> set[str]:
    return {row.running.get("main", "") for row in fleet.client.devices()}


@pytest.mark.attack(94)
def test_a_stolen_director_key_moves_no_device_of_the_crowd_to_a_version_that_nobody_released(
    fleet: FleetServer, repository: Repository, tmp_path: Path
) -> None:
    fleet.start()
    digest = hashlib.sha256(b"the thief's own").hexdigest()
    wanted = {"main": SlotAssignment(target=model_path("cap-inspect", "6.6.6"), sha256=digest)}
    files = {name: assignments.write(Assignment(device=name, generation=9, slots=wanted)) for name in DEVICES}
    assign_all(repository, "1.0.0")

    def lie(body: object) -> None:
        for name, data in files.items():
            file = hashlib.sha256(data).hexdigest()
            body.targets[device_path(name)] = documents.target_of(device_path(name), len(data), file)  # type: ignore[attr-defined]
            (repository.folder / target_file(device_path(name), file)).write_bytes(data)
        body.version += 1  # type: ignore[attr-defined]

    repository.overwrite("director", lie, "online", file=f"{repository.document('director').version + 1}.director.json")
    told = run_crowd(plan(fleet, repository, tmp_path))
    assert told.counts.get("assignments refused") == len(DEVICES), told.counts
    assert running(fleet) == {"cap-inspect@1.0.0"}


async def test_a_fleet_put_back_from_an_old_copy_agrees_with_its_devices_and_takes_none_of_them_back(
    fleet: FleetServer, repository: Repository, tmp_path: Path
) -> None:
    fleet.start()
    day = plan(fleet, repository, tmp_path, vitals_share=0.0)
    await live(day)
    fleet.close()
    copy = shutil.copytree(fleet.folder / "state", tmp_path / "copy")
    fleet.start()
    assign_all(repository, "1.1.0")
    await live(day)
    assert running(fleet) == {"cap-inspect@1.1.0"}
    fleet.kill(signal.SIGKILL)
    shutil.rmtree(fleet.folder / "state")
    shutil.copytree(copy, fleet.folder / "state")
    fleet.start()
    told = await live(day)
    assert told.counts["went back"] > 0
    assert running(fleet) == {"cap-inspect@1.1.0"}, "the devices are believed, and none was taken back"
    drained = run_crowd(plan(fleet, repository, tmp_path, drain=True, seconds=30.0, wait_s=0.0))
    assert not drained.open_devices
    accounts = [Account.read(path) for path in (tmp_path / "journals").iterdir()]
    has = fleet_says(fleet.database)
    gone = sum(count for (_, _, kind, count) in has.happenings if kind == "other")
    told_and_kept = sum(count for (what, _), count in has.windows.items() if what == "windows")
    told_and_kept += sum(count for (_, _, kind, _), count in has.happenings.items() if kind != "other")
    told_and_kept += sum(has.trials.values())
    assert gone > 0
    assert told_and_kept + gone == sum(len(account.made) for account in accounts), "what is gone is counted"


async def live(day: Plan) -> Told:
    return await asyncio.to_thread(Process(day).told)
