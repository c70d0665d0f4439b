"""From a fleet with a repository to a line that runs what it was assigned, and back as a signed report."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lenskeep.errors import UnlistedDeviceError
from lenskeep.trust.keeping import releases
from tests import tinybundle
from tests.device import Device, bundle_bytes
from tests.fleetrig import FleetServer
from tests.repositories import Repository

DAY_S = 86400.0
ID = "cam-1"


@pytest.fixture
def fleet() -> Iterator[FleetServer]:
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder)
    yield server
    server.close()
    shutil.rmtree(folder)


def keep(fleet: FleetServer, *, age_s: float = 0.0) -> Repository:
    """A repository in the fleet's folder, made some time ago, whose online key the fleet has."""
    made = Repository(fleet.repository, time.time() - age_s)
    (fleet.folder / "online.key").write_bytes(made.keys["online"].pem())
    fleet.config.write_text(fleet.config.read_text() + f'[online]\nkeys = ["{fleet.folder}/online.key"]\n')
    return made


def timestamp(fleet: FleetServer) -> int:
    signed = json.loads((fleet.repository / "metadata" / "timestamp.json").read_text())["signed"]
    return int(signed["version"])


def test_a_fleet_renews_what_would_run_out_and_nothing_else(fleet: FleetServer) -> None:
    keep(fleet, age_s=2 * DAY_S)
    before = timestamp(fleet)
    fleet.start()
    deadline = time.monotonic() + 20
    while timestamp(fleet) == before:
        assert time.monotonic() < deadline, fleet.log()
        time.sleep(0.05)
    renewed = timestamp(fleet)
    fleet.close()
    fleet.start()
    time.sleep(0.5)
    assert timestamp(fleet) == renewed, "nothing was due"
    assert not fleet.client.alarms()


def test_a_fleet_that_cannot_renew_says_so_and_goes_on_serving(fleet: FleetServer) -> None:
    keep(fleet, age_s=2 * DAY_S)
    (fleet.folder / "online.key").write_text("no key")
    fleet.start()
    deadline = time.monotonic() + 20
    while not fleet.client.alarms():
        assert time.monotonic() < deadline, fleet.log()
        time.sleep(0.05)
    assert fleet.client.alarms()[0].device == ""
    assert fleet.client.devices() == []


def test_a_device_enrols_runs_what_the_fleet_assigns_and_tells_it_so_until_it_is_revoked(fleet: FleetServer) -> None:
    repository = keep(fleet)
    repository.keys["acme"] = tinybundle.key()
    repository.publisher("acme", "cap-*")
    file = fleet.folder / "cap-inspect-1.0.0.lkb"
    file.write_bytes(bundle_bytes("1.0.0"))
    repository.change(lambda work: releases.publish(work, [file], repository.signers(), repository.now_s))
    repository.assign(ID, main="cap-inspect@1.0.0")
    fleet.start()

    folder = Path(tempfile.mkdtemp(prefix="lk-"))
    (folder / "root.json").write_bytes(repository.root())
    device = Device(folder, more=f'[device]\nid = "{ID}"\n[trust]\nroot = "{folder}/root.json"\n[fleet]\npoll_s = 0.5')
    try:
        device.start()
        from tests.journeys.test_fleet_membership import lenskeep

        lenskeep("enrol", fleet.url, "--token", fleet.token(ID), device=device)
        device.runs("cap-inspect@1.0.0", "settled")
        told = device.until(
            lambda: (found := fleet.client.device(ID)).device.running.get("main") == "cap-inspect@1.0.0" and found,
            "the fleet hears what runs",
        )
        assert told.report is not None
        assert told.report.slots[0].digest == device.slot().active_digest
        assert told.report.trusted.director > 0
        assert told.head_sequence > 0
        fleet.client.revoke(ID, "stolen")
        device.until(
            lambda: any(check.code == UnlistedDeviceError.code for check in device.client.health()),
            "the device says that it is let in no longer",
        )
        device.runs("cap-inspect@1.0.0", "settled")
    finally:
        device.close()
        shutil.rmtree(folder)
