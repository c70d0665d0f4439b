"""A real daemon and a real fleet: what one tells, the other knows, at once, once, and after either was put back."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lenskeep.trust.keeping import releases
from tests import runnerchild, tinybundle
from tests.device import Device, bundle_bytes
from tests.fleetrig import FleetServer, running_fleet
from tests.journeys.test_fleet_membership import lenskeep
from tests.repositories import Repository

ID = "cam-1"
MORE = f'[device]\nid = "{ID}"\n[fleet]\npoll_s = 1.0\nwait_s = 3.0'


@pytest.fixture
def fleet() -> Iterator[FleetServer]:
    with running_fleet() as server:
        yield server


@pytest.fixture
def device() -> Iterator[Device]:
    folder = Path(tempfile.mkdtemp(prefix="lk-"))
    made = Device(folder, more=MORE)
    yield made
    made.close()
    shutil.rmtree(folder)


def one(path: Path, sql: str) -> int:
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database, database:
        return int(database.execute(sql).fetchone()[0] or 0)


def heard(device: Device) -> bool:
    now = device.client.status().fleet
    return now is not None and now.level


# --- news, wishes and commands ----------------------------------------------------------------------------------------


def with_repository(fleet: FleetServer, *versions: str, **facts: object) -> Repository:
    """A repository in the fleet's folder that lists some versions."""
    made = Repository(fleet.repository, time.time())
    made.keys["acme"] = tinybundle.key()
    made.publisher("acme", "cap-*")
    files = []
    for version in versions:
        files.append(fleet.folder / f"cap-inspect-{version}.lkb")
        files[-1].write_bytes(bundle_bytes(version, **facts))
    made.change(lambda work: releases.publish(work, files, made.signers(), made.now_s))
    return made


def member(fleet: FleetServer, device: Device, repository: Repository) -> None:
    """Enrol a device that follows this repository."""
    (device.folder / "root.json").write_bytes(repository.root())
    device.config.write_text(device.config.read_text() + f'\n[trust]\nroot = "{device.folder}/root.json"\n')
    device.start()
    lenskeep("enrol", fleet.url, "--token", fleet.token(ID), device=device)
    device.until(lambda: heard(device), "the fleet is heard")


def stands(fleet: FleetServer) -> dict[str, str | int]:
    """What the fleet has of the slot."""
    with closing(sqlite3.connect(f"file:{fleet.database}?mode=ro", uri=True)) as database, database:
        database.row_factory = sqlite3.Row
        row = database.execute("SELECT * FROM slot_now WHERE device = ? AND slot = 'main'", (ID,)).fetchone()
    return dict(row) if row is not None else {}


def test_news_arrive_while_the_fleet_holds_its_answer_and_every_step_is_heard_there(
    fleet: FleetServer, device: Device
) -> None:
    device.config.write_text(
        device.config.read_text().replace("poll_s = 1.0\nwait_s = 3.0", "poll_s = 60\nwait_s = 50")
    )
    repository = with_repository(fleet, "1.0.0", "2.0.0")
    member(fleet, device, repository)
    repository.assign(ID, main="cap-inspect@1.0.0")
    device.runs("cap-inspect@1.0.0", "settled")
    device.until(lambda: stands(fleet).get("state") == "followed", "the fleet hears that it is followed")
    time.sleep(2.5)  # the fleet holds its answer
    began_s = time.monotonic()
    repository.assign(ID, main="cap-inspect@2.0.0")
    device.until(lambda: device.client.repository().assignments[0].bundle == "cap-inspect@2.0.0", "the device knows")
    knows_s = time.monotonic() - began_s
    device.runs("cap-inspect@2.0.0", "settled")
    device.until(lambda: stands(fleet).get("state") == "followed" and stands(fleet)["generation"] == 2, "all is told")
    print(f"known after {knows_s:.2f} s, settled and told after {time.monotonic() - began_s:.2f} s")
    assert knows_s < 5.0


def test_a_paused_device_follows_nothing_until_it_is_resumed_and_says_why(fleet: FleetServer, device: Device) -> None:
    repository = with_repository(fleet, "1.0.0")
    member(fleet, device, repository)
    asked = fleet.client.ask_device(ID, "pause", "")
    device.until(lambda: (now := device.client.status().fleet) and now.paused, "it is paused")
    device.until(lambda: {one.id: one.state for one in fleet.client.asked_of(ID)}[asked.id] == "done", "it says so")
    repository.assign(ID, main="cap-inspect@1.0.0")
    device.until(lambda: "paused" in str(stands(fleet).get("reason")), "the fleet hears why it waits")
    device.kill()
    device.start()
    assert stands(fleet)["state"] == "new"
    fleet.client.ask_device(ID, "resume", "")
    device.runs("cap-inspect@1.0.0", "settled")


def test_a_version_that_takes_itself_back_is_told_with_its_reason_and_not_tried_again(
    fleet: FleetServer, device: Device
) -> None:
    repository = with_repository(fleet, "1.0.0")
    bad = fleet.folder / "cap-inspect-2.0.0.lkb"  # it proves itself in its trial and fails on live pictures
    golden = {"cases": [{"image": "golden/a.png", "scores": {"good": 0.9, "bad": 0.1}}], "produced_by": "hand"}
    bad.write_bytes(bundle_bytes("2.0.0", model=runnerchild.failing_model(16), golden=golden))
    member(fleet, device, repository)
    repository.assign(ID, main="cap-inspect@1.0.0")
    device.runs("cap-inspect@1.0.0", "settled")
    repository.change(lambda work: releases.publish(work, [bad], repository.signers(), repository.now_s))
    repository.assign(ID, main="cap-inspect@2.0.0")
    told = device.until(lambda: (now := stands(fleet)).get("state") in ("rolled_back", "refused") and now, "it is told")
    assert told["state"] == "rolled_back", told
    assert told["code"] == "LK-8103"
    device.until(lambda: stands(fleet)["bundle"] == "cap-inspect@1.0.0", "the fleet hears what runs")
    repository.assign(ID, main="cap-inspect@1.0.0")
    device.until(lambda: stands(fleet)["generation"] == 3 and stands(fleet)["state"] == "followed", "that is what runs")
    asked = [one["action"] for one in steps(device) if one["after"] == "models/cap-inspect/2.0.0.lkb"]
    assert asked[-1] == "assignment rolled_back"
    assert asked.count("assign") == asked.count("assignment rolled_back") == 1


def test_a_person_at_the_device_takes_a_version_back_and_the_fleet_hears_who(
    fleet: FleetServer, device: Device
) -> None:
    repository = with_repository(fleet, "1.0.0", "2.0.0")
    member(fleet, device, repository)
    for version in ("1.0.0", "2.0.0"):
        repository.assign(ID, main=f"cap-inspect@{version}")
        device.runs(f"cap-inspect@{version}", "settled")
    device.finished(device.client.rollback("main", "too many false rejects"))
    told = device.until(lambda: (now := stands(fleet)).get("state") == "rolled_back" and now, "the fleet hears it")
    assert "too many false rejects" in str(told["reason"])
    repository.refresh()
    lenskeep("sync", device=device)
    time.sleep(1.0)
    assert device.slot().active == "cap-inspect@1.0.0", "a person's decision stands until another version is assigned"


def steps(device: Device) -> list[dict[str, str]]:
    """What the record says of assignments."""
    with (
        closing(sqlite3.connect(f"file:{device.folder}/state/registry.sqlite?mode=ro", uri=True)) as database,
        database,
    ):
        database.row_factory = sqlite3.Row
        rows = database.execute("SELECT * FROM record WHERE action LIKE 'assign%' ORDER BY sequence").fetchall()
    return [dict(row) for row in rows]


# --- put back from a copy ---------------------------------------------------------------------------------------------


def told_holds(fleet: FleetServer) -> int:
    """How many times the fleet heard that swaps were held or may go on."""
    return one(fleet.database, "SELECT COUNT(*) FROM happening WHERE text LIKE 'hold by%' OR text LIKE 'resume by%'")


def stir(device: Device, fleet: FleetServer, times: int) -> None:
    """Make the device have something to tell, and wait until the fleet has it."""
    before = told_holds(fleet)
    for number in range(times):
        device.client.hold("main", number % 2 == 0)
    device.until(lambda: told_holds(fleet) >= before + times, f"{times} more are told")


def test_a_fleet_that_was_put_back_and_its_device_agree_again(fleet: FleetServer, device: Device) -> None:
    device.start()
    lenskeep("enrol", fleet.url, "--token", fleet.token(ID), device=device)
    device.until(lambda: heard(device), "the fleet is heard")
    stir(device, fleet, 2)
    fleet.kill()
    kept = fleet.folder / "kept"
    shutil.copytree(fleet.folder / "state", kept)
    fleet.start()
    stir(device, fleet, 6)
    fleet.kill()
    shutil.rmtree(fleet.folder / "state")
    shutil.copytree(kept, fleet.folder / "state")
    fleet.start()
    device.until(lambda: heard(device), "the fleet is heard again")
    stir(device, fleet, 2)
    assert told_holds(fleet) == 4, "what the old copy had, and what came since"
    device.until(lambda: not device.client.status().fleet.waiting, "nothing waits")  # type: ignore[union-attr]


def test_an_outbox_that_was_put_back_tells_nothing_twice_and_goes_on(fleet: FleetServer, device: Device) -> None:
    device.start()
    lenskeep("enrol", fleet.url, "--token", fleet.token(ID), device=device)
    device.until(lambda: heard(device), "the fleet is heard")
    stir(device, fleet, 2)
    device.kill()
    state, kept = device.folder / "state", device.folder / "kept"
    kept.mkdir()
    for path in state.glob("metrics.sqlite*"):
        shutil.copy(path, kept)
    device.start()
    stir(device, fleet, 30)
    device.kill()
    for path in state.glob("metrics.sqlite*"):
        path.unlink()
    for path in kept.iterdir():
        shutil.copy(path, state)
    device.start()
    device.until(lambda: heard(device), "the fleet is heard again")
    stir(device, fleet, 4)
    assert told_holds(fleet) == 36, "each once"
    device.until(lambda: not device.client.status().fleet.waiting, "nothing waits")  # type: ignore[union-attr]


def test_a_daemon_that_belongs_to_a_fleet_stays_small(fleet: FleetServer, device: Device) -> None:
    device.start()
    lenskeep("enrol", fleet.url, "--token", fleet.token(ID), device=device)
    device.until(lambda: heard(device), "the fleet is heard")
    stir(device, fleet, 20)
    device.kill()
    device.start()  # enrolment loads the library of certificates, once
    device.until(lambda: heard(device), "the fleet is heard")
    stir(device, fleet, 20)
    rss_mb = device.client.status().daemon_rss_mb
    print(f"{rss_mb} MB")
    assert rss_mb < 65
