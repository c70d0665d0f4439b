"""Accidents on a real device: killed processes, damaged files, full disks, clocks that lie. The line comes up and nothing
that was acknowledged is lost."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lenskeep.errors import LenskeepError, StorageFullError
from lenskeep.messages.control import ActivationRequest, CheckRequest
from tests import runnerchild, tinybundle
from tests.device import Device, bundle_bytes

MakeDevice = Callable[..., Device]


def counted(device: Device) -> int:
    """Frames in the durable windows."""
    return sum(window.frames for window in device.client.windows(since_s=3600, seconds=60))


# --- killed processes -------------------------------------------------------------------------------------------------


def test_daemon_killed_with_9_at_full_rate_loses_no_result_and_the_runner_goes_on(make_device: MakeDevice) -> None:
    device = make_device(pace="fast", fps=0.0, slot="result_ring = 200000")
    device.start()
    device.trust()
    device.settle("1.0.0")
    pid = device.runner_pid()
    device.kill()
    time.sleep(1.0)  # the line goes on without a daemon
    device.start()
    assert device.runner_pid() == pid
    assert device.slot().runner == "adopted"
    device.until(lambda: len(device.results()) == 1000, "results come again")
    newest = device.results()[-1].sequence
    device.until(lambda: counted(device) >= newest, "what was made meanwhile is counted")
    device.kill(signal.SIGTERM)
    assert "were lost" not in device.log()


def test_daemon_killed_during_a_swap_finishes_it_after_the_restart(make_device: MakeDevice) -> None:
    device = make_device()
    device.start()
    device.trust()
    device.settle("1.0.0")
    device.bring("1.1.0")
    device.client.hold("main", True)
    operation = device.client.activate(ActivationRequest(bundle="cap-inspect@1.1.0"))
    device.kill()
    device.start()
    assert device.slot().state == "swapping"
    assert device.client.operation(operation.id).state == "running"  # the wish stands, and so does its name
    device.client.hold("main", False)
    assert device.finished(operation).state == "succeeded"
    device.runs("cap-inspect@1.1.0", "settled")


def test_daemon_killed_in_probation_watches_again_and_settles(make_device: MakeDevice) -> None:
    device = make_device(probation_s=3.0)
    device.start()
    device.trust()
    device.settle("1.0.0")
    device.bring("1.1.0")
    device.activate("1.1.0")
    device.kill()
    device.start()
    assert device.slot().state == "probation"
    device.runs("cap-inspect@1.1.0", "settled")


def test_runner_killed_with_9_is_started_again_with_the_same_version(device: Device) -> None:
    device.settle("1.0.0")
    before = device.runner_pid()
    os.kill(before, signal.SIGKILL)
    device.until(lambda: device.runner_pid() not in (0, before), "another process serves the slot")
    device.runs("cap-inspect@1.0.0", "settled")


@pytest.mark.attack(130)
def test_runner_killed_in_probation_comes_back_with_the_previous_version(make_device: MakeDevice) -> None:
    device = make_device(probation_s=60.0)
    device.start()
    device.trust()
    device.bring("1.0.0")
    device.activate("1.0.0")
    device.client.confirm(None)
    device.bring("1.1.0")
    device.activate("1.1.0")
    device.runs("cap-inspect@1.1.0", "probation")
    os.kill(device.runner_pid(), signal.SIGKILL)
    slot = device.runs("cap-inspect@1.0.0", "rolled_back")
    assert slot.reason.startswith("LK-8106")


@pytest.mark.attack(130)
def test_a_crash_loop_puts_the_last_good_version_back(device: Device) -> None:
    device.settle("1.0.0")
    device.settle("1.1.0")
    for _ in range(3):
        pid = device.until(device.runner_pid, "the process is there")
        device.until(lambda: device.slot().active, "the slot runs")
        os.kill(pid, signal.SIGKILL)
        device.until(lambda old=pid: device.runner_pid() not in (0, old), "it is started again")
    slot = device.runs("cap-inspect@1.0.0", "rolled_back")
    assert slot.reason.startswith("LK-8108")


@pytest.mark.attack(130)
def test_a_model_that_fails_on_live_frames_goes_back_by_itself(device: Device) -> None:
    device.settle("1.0.0")
    grey = runnerchild.failing_model(16)
    golden = {"cases": [{"image": "golden/a.png", "scores": {"good": 0.9, "bad": 0.1}}], "produced_by": "hand"}
    assert device.bring("1.1.0", model=grey, golden=golden).state == "succeeded"
    device.activate("1.1.0")
    slot = device.runs("cap-inspect@1.0.0", "rolled_back")
    assert slot.reason.startswith("LK-8103")


def test_a_runner_that_freezes_is_ended_and_started_again(device: Device) -> None:
    device.settle("1.0.0")
    pid = device.runner_pid()
    os.kill(pid, signal.SIGSTOP)
    device.until(lambda: device.runner_pid() not in (0, pid), "another process serves the slot", timeout_s=40)
    device.runs("cap-inspect@1.0.0")


@pytest.mark.attack(33)
def test_daemon_killed_at_random_points_of_imports_leaves_whole_bundles_only(make_device: MakeDevice) -> None:
    seed = 20261120
    print(f"seed {seed}")
    dice = random.Random(seed)
    device = make_device()
    device.start()
    device.trust()
    acknowledged: set[str] = set()
    for number in range(6):
        version = f"1.{number}.0"
        path = device.folder / "bundle.lkb"
        path.write_bytes(bundle_bytes(version))

        def upload(version: str = version, path: Path = path) -> None:
            try:
                device.client.upload(path, lambda _done, _total: None)
                acknowledged.add(version)
            except LenskeepError:
                pass  # the daemon was killed before it had answered

        sender = threading.Thread(target=upload)
        sender.start()
        time.sleep(dice.random() * 0.06)
        device.kill()
        sender.join()
        device.start()
        bundles = {bundle.version: bundle for bundle in device.client.bundles()}
        assert acknowledged <= set(bundles)
        for found in bundles.values():
            detail = device.client.bundle(f"cap-inspect@{found.version}")
            for file in detail.files:
                stored = device.folder / "state" / "blobs" / file["sha256"][:2] / file["sha256"]
                assert stored.stat().st_size == file["size_bytes"]
        assert list((device.folder / "state" / "staging").iterdir()) == []
    device.until(lambda: all(b.state == "qualified" for b in device.client.bundles()), "what was stored is tried")


# --- damaged files ----------------------------------------------------------------------------------------------------


@pytest.mark.attack(92)
def test_registry_damaged_starts_from_the_pointer_file_and_says_so(make_device: MakeDevice) -> None:
    device = make_device()
    device.start()
    device.trust()
    device.settle("1.0.0")
    device.kill(signal.SIGTERM)
    registry = device.folder / "state" / "registry.sqlite"
    registry.write_bytes(b"\0" * 4096 + os.urandom(8192))
    for suffix in ("-wal", "-shm"):
        registry.with_name(registry.name + suffix).unlink(missing_ok=True)
    device.start()
    slot = device.until(lambda: device.slot().active and device.slot(), "the slot runs from its pointer file")
    assert slot.active == "cap-inspect@1.0.0"
    assert "LK-5002" in {check.code for check in device.client.health()}
    assert list((device.folder / "state").glob("registry.sqlite.damaged-*"))


@pytest.mark.attack(74)
def test_a_model_file_damaged_on_disk_is_not_run(make_device: MakeDevice) -> None:
    device = make_device()
    device.start()
    device.trust()
    device.settle("1.0.0")
    device.bring("1.1.0")
    digest = device.client.bundle("cap-inspect@1.1.0").bundle.model_sha256
    stored = device.folder / "state" / "blobs" / digest[:2] / digest
    stored.chmod(0o600)
    data = bytearray(stored.read_bytes())
    data[len(data) // 2] ^= 1
    stored.write_bytes(data)
    for prepared in (device.folder / "state" / "prepared").glob(f"{digest[:32]}*"):
        prepared.unlink()
    refused = device.activate("1.1.0")
    assert refused.state == "failed" and refused.error is not None and refused.error.code == "LK-5003"
    assert device.runs("cap-inspect@1.0.0").state == "rolled_back"


# --- full disks, several at once, clocks ------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 MiB."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100m", "small", folder], check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.attack(32)
def test_disk_full_refuses_the_import_keeps_the_line_and_recovers(make_device: MakeDevice, small_disk: Path) -> None:
    device = make_device()
    device.config.write_text(device.config.read_text().replace(f"{device.folder}/state", f"{small_disk}/state"))
    device.start()
    device.trust()
    device.settle("1.0.0")
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 16))
    with pytest.raises(StorageFullError):
        device.bring("1.1.0")
    device.runs("cap-inspect@1.0.0", "settled")
    filler.unlink()
    assert device.bring("1.1.0").state == "succeeded"


@pytest.mark.attack(34)
def test_two_imports_of_one_bundle_at_once_store_it_once(device: Device) -> None:
    path = device.folder / "bundle.lkb"
    path.write_bytes(bundle_bytes("1.0.0"))
    outcomes: list[object] = []

    def upload() -> None:
        outcomes.append(device.finished(device.client.upload(path, lambda _done, _total: None)).state)

    senders = [threading.Thread(target=upload) for _ in range(4)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert outcomes == ["succeeded"] * 4
    assert [bundle.version for bundle in device.client.bundles()] == ["1.0.0"]


@pytest.mark.attack(16)
def test_an_upload_that_breaks_off_changes_nothing(device: Device) -> None:
    data = bundle_bytes("1.0.0")
    head = f"POST /v1/imports HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nContent-Length: {len(data)}\r\n\r\n"
    with socket.socket(socket.AF_UNIX) as cable:
        cable.connect(str(device.socket))
        cable.sendall(head.encode() + data[: len(data) // 2])
    device.until(lambda: not list((device.folder / "state" / "staging").iterdir()), "staging is empty again")
    assert device.client.bundles() == []
    assert device.bring("1.0.0").state == "succeeded"


WRONG_CLOCK = """
import time
real = time.time
offset = {shown_s} - real()
time.time = lambda: real() + offset
"""


@pytest.mark.attack(91)
@pytest.mark.parametrize("shown_s", [86_400.0, 4_083_955_200.0], ids=["1970", "2099"])
def test_a_clock_that_lies_is_named_and_the_line_runs(make_device: MakeDevice, shown_s: float) -> None:
    """The wall clock of the daemon and of all its children is off; the monotonic one is not."""
    device = make_device()
    (device.folder / "sitecustomize.py").write_text(WRONG_CLOCK.format(shown_s=shown_s))
    device.environment = {"PYTHONPATH": str(device.folder)}
    device.start()
    device.trust()
    device.settle("1.0.0")
    status = device.client.status()
    assert not status.clock_trusted
    assert "LK-6001" in {fault.code for fault in status.faults}
    assert device.finished(device.client.check(CheckRequest(bundle="cap-inspect@1.0.0"))).state == "succeeded"


# --- cameras ----------------------------------------------------------------------------------------------------------


def test_a_camera_that_is_missing_stops_the_verdict_by_name_and_comes_back(make_device: MakeDevice) -> None:
    device = make_device(source="folder:/tmp/replaced", fps=20.0)
    pictures = device.folder / "pictures"
    device.config.write_text(device.config.read_text().replace("/tmp/replaced", str(pictures)))
    device.start()
    device.trust()
    device.bring("1.0.0")
    device.activate("1.0.0")
    status = device.until(
        lambda: (s := device.client.status()).verdict == "STOPPED" and s.slots[0].faults and s, "the camera is missed"
    )
    assert status.slots[0].faults[0].code == "LK-2001"
    pictures.mkdir()
    (pictures / "1.png").write_bytes(tinybundle.png())
    device.runs("cap-inspect@1.0.0")


def test_an_orderly_restart_in_probation_goes_on_with_the_new_version(make_device: MakeDevice) -> None:
    device = make_device(probation_s=3.0)
    device.start()
    device.trust()
    device.settle("1.0.0")
    device.bring("1.1.0")
    device.activate("1.1.0")
    device.kill(signal.SIGTERM)
    device.start()
    device.runs("cap-inspect@1.1.0", "settled")


def test_power_lost_in_probation_comes_back_with_the_previous_version(make_device: MakeDevice) -> None:
    device = make_device(probation_s=60.0)
    device.start()
    device.trust()
    device.bring("1.0.0")
    device.activate("1.0.0")
    device.client.confirm(None)
    device.bring("1.1.0")
    device.activate("1.1.0")
    pid = device.runner_pid()
    device.kill()
    os.kill(pid, signal.SIGKILL)
    for path in (device.folder / "run").iterdir():  # a reboot empties it
        path.unlink()
    device.start()
    slot = device.runs("cap-inspect@1.0.0", "rolled_back")
    assert slot.reason.startswith("LK-8106")
    device.client.confirm(None)  # seen, and what runs now is right
    assert device.client.status().verdict == "RUNNING"
