"""Files that change on the disk after they were stored: found, never run, never handed out, and made whole again."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lenskeep.errors import LenskeepError
from lenskeep.messages.control import ActivationRequest, Operation
from tests.device import Device

MakeDevice = Callable[..., Device]


def blob(device: Device, version: str) -> Path:
    """Where the model of a version lies."""
    digest = device.client.bundle(f"cap-inspect@{version}").bundle.model_sha256
    return device.folder / "state" / "blobs" / digest[:2] / digest


def rot(path: Path) -> None:
    """Change one bit, as a disk does."""
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def forget_prepared(device: Device, version: str) -> None:
    for path in (device.folder / "state" / "prepared").glob(f"{blob(device, version).name[:32]}*"):
        path.unlink()


def scrubbed(device: Device) -> Operation:
    return device.finished(device.client.start_scrub())


def codes(device: Device) -> set[str]:
    return {check.code for check in device.client.health()}


def recorded(device: Device, action: str) -> list[Any]:
    return [entry for entry in device.client.audit(limit=100) if entry.action == action]


def reboot(device: Device) -> None:
    """Power off and on: nothing of this boot is left."""
    pid = device.runner_pid()
    device.kill()
    if pid:
        os.kill(pid, signal.SIGKILL)
    device.until(lambda: device.runner_pid() == 0, "the process is gone")
    for path in (device.folder / "run").iterdir():
        path.unlink()
    device.start()


@pytest.fixture
def two(device: Device) -> Device:
    """1.1.0 runs, 1.0.0 ran before."""
    device.settle("1.0.0")
    device.settle("1.1.0")
    return device


def test_a_scrub_of_whole_files_says_so_and_the_line_goes_on(two: Device) -> None:
    done = scrubbed(two)
    assert done.state == "succeeded", done.error
    assert done.result["files"] >= 4 and done.result["damaged"] == []
    view = two.client.scrub()
    assert (view.state, view.whole_passes >= 1, view.damaged) == ("resting", True, [])
    two.runs("cap-inspect@1.1.0", "settled")


@pytest.mark.attack(74)
def test_bit_rot_under_the_active_version_is_loud_and_what_runs_goes_on_and_the_next_start_runs_the_one_before(
    two: Device,
) -> None:
    path = blob(two, "1.1.0")
    rot(path)
    assert scrubbed(two).result["damaged"][0]["bundles"] == ["cap-inspect@1.1.0"]
    assert not path.exists()  # set aside: nobody serves or runs it
    assert "LK-5003" in codes(two) and recorded(two, "damage")[0].subject == "cap-inspect@1.1.0"
    two.runs("cap-inspect@1.1.0", "settled")  # from memory
    reboot(two)
    slot = two.runs("cap-inspect@1.0.0", "rolled_back")
    assert slot.reason.startswith("LK-5003")
    assert recorded(two, "rollback")[0].reason.startswith("LK-5003")


@pytest.mark.attack(74)
def test_a_model_that_rots_while_the_device_is_off_is_not_started_and_the_one_before_runs(two: Device) -> None:
    path = blob(two, "1.1.0")
    forget_prepared(two, "1.1.0")
    two.kill(signal.SIGTERM)
    rot(path)
    two.start()
    slot = two.runs("cap-inspect@1.0.0", "rolled_back")
    assert slot.reason.startswith("LK-5003")
    two.until(lambda: "LK-5003" in codes(two), "it is said")
    two.until(lambda: not path.exists(), "and the file is set aside")


@pytest.mark.attack(74)
def test_a_file_that_is_not_the_model_rots_and_the_version_is_not_activated(two: Device) -> None:
    assert two.bring("1.2.0", extra={"card.md": b"# a card"}).state == "succeeded"
    golden = next(f for f in two.client.bundle("cap-inspect@1.2.0").files if f["name"] == "card.md")["sha256"]
    rot(two.folder / "state" / "blobs" / golden[:2] / golden)
    refused = two.activate("1.2.0")
    assert refused.state == "failed" and refused.error is not None and refused.error.code == "LK-5003"
    two.runs("cap-inspect@1.1.0", "rolled_back")


@pytest.mark.attack(74)
def test_going_back_to_a_warm_version_waits_for_no_disk_and_its_damage_is_found_afterwards(two: Device) -> None:
    assert two.slot().previous_warm
    rot(blob(two, "1.0.0"))
    assert two.finished(two.client.rollback(None)).state == "succeeded"
    two.runs("cap-inspect@1.0.0", "rolled_back")
    two.until(lambda: "LK-5003" in codes(two), "its damage is found beside")


@pytest.mark.attack(74)
def test_going_back_passes_over_a_damaged_version_to_an_older_whole_one(two: Device) -> None:
    two.settle("1.2.0")
    rot(blob(two, "1.1.0"))
    forget_prepared(two, "1.1.0")
    os.kill(two.runner_pid(), signal.SIGKILL)  # the process that comes has nothing warm
    two.until(lambda: not two.slot().previous_warm and two.slot().active == "cap-inspect@1.2.0", "it is back, cold")
    assert two.finished(two.client.rollback(None)).state == "succeeded"
    two.runs("cap-inspect@1.0.0", "rolled_back")


def test_importing_the_bundle_again_makes_a_damaged_version_whole(two: Device) -> None:
    path = blob(two, "1.1.0")
    rot(path)
    scrubbed(two)
    assert "LK-5003" in codes(two)
    assert two.bring("1.1.0").state == "succeeded"
    assert path.exists() and "LK-5003" not in codes(two)
    assert recorded(two, "repair")[0].subject == "cap-inspect@1.1.0"
    assert scrubbed(two).result["damaged"] == []
    reboot(two)
    two.runs("cap-inspect@1.1.0")


def test_importing_again_heals_damage_that_nobody_has_found_yet(two: Device) -> None:
    rot(blob(two, "1.0.0"))
    assert two.bring("1.0.0").state == "succeeded"
    assert scrubbed(two).result["damaged"] == []


def test_a_damaged_file_is_not_handed_out(two: Device) -> None:
    rot(blob(two, "1.0.0"))
    with pytest.raises(LenskeepError):
        two.client.export("cap-inspect@1.0.0", io.BytesIO(), lambda _done, _total: None)
    two.until(lambda: "LK-5003" in codes(two), "it is said")
    with pytest.raises(LenskeepError):
        two.client.export("cap-inspect@1.0.0", io.BytesIO(), lambda _done, _total: None)


def test_a_prepared_model_that_rots_is_made_anew(two: Device) -> None:
    prepared = next((two.folder / "state" / "prepared").glob(f"{blob(two, '1.0.0').name[:32]}*"))
    rot(prepared)
    scrubbed(two)
    assert recorded(two, "damage")
    two.until(lambda: prepared.exists() and "LK-5003" not in codes(two), "a trial prepared it anew")
    two.runs("cap-inspect@1.1.0", "settled")


def test_a_scrub_goes_on_where_a_killed_daemon_was(make_device: MakeDevice) -> None:
    device = make_device(more="[metrics]\n")
    device.start()
    device.trust()
    device.settle("1.0.0")
    rot(blob(device, "1.0.0"))
    device.client.start_scrub()
    device.kill()
    device.start()
    scrubbed(device)
    assert "LK-5003" in codes(device)


def test_the_command_shows_reads_and_fails_when_something_is_damaged(two: Device) -> None:
    def scrub(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lenskeep.cli.main", "scrub", *words],
            env=os.environ | {"LENSKEEP_DEVICE": str(two.socket)}, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip

    said = scrub("--now")
    assert said.returncode == 0 and "No damage is known" in said.stdout, said.stderr
    rot(blob(two, "1.0.0"))
    said = scrub("--now")
    assert said.returncode != 0 and "cap-inspect@1.0.0" in said.stdout and "import the bundle again" in said.stdout
    assert '"damaged": [' in scrub("--json").stdout or '"damaged":[' in scrub("--json").stdout


@pytest.mark.attack(75)
def test_a_file_that_is_swapped_again_and_again_while_it_is_activated_never_runs_with_other_bytes(
    make_device: MakeDevice,
) -> None:
    """Another model of the same size takes the stored one's place and leaves it, in a loop, through activations."""
    device = make_device(probation_s=1.0)
    device.start()
    device.trust()
    device.settle("1.0.0")
    device.bring("1.1.0")
    path = blob(device, "1.1.0")
    right, wrong = path.read_bytes(), blob(device, "1.0.0").read_bytes()
    forget_prepared(device, "1.1.0")
    spare = path.with_name("spare")
    outcomes = set()
    until = time.monotonic() + 8.0
    while time.monotonic() < until:
        spare.write_bytes(right)
        spare.replace(path)
        operation = device.client.activate(ActivationRequest(bundle="cap-inspect@1.1.0"))
        for _ in range(40):
            for data in (wrong, right):
                spare.write_bytes(data)
                spare.replace(path)
        done = device.finished(operation)
        outcomes.add((done.state, done.error.code if done.error else ""))
        slot = device.slot()
        if slot.active == "cap-inspect@1.1.0":
            digest = path.name
            assert slot.active_digest == digest
            assert {result.digest for result in device.results() if result.bundle == slot.active} <= {
                digest[:16],
                digest,
            }
            device.finished(device.client.rollback(None))
            device.runs("cap-inspect@1.0.0")
        if any(check.code == "LK-5003" for check in device.client.health()):
            device.bring("1.1.0")
    assert outcomes <= {("succeeded", ""), ("failed", "LK-5003")}, outcomes
