"""The record of a real device: what its life writes, and what happens when somebody works on its files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lenskeep.bundle.keys import admit
from lenskeep.errors import LenskeepError
from lenskeep.messages.control import ActivationRequest
from lenskeep.trust import recordfile
from tests.device import Device, bundle_bytes

SEED = 7


def lenskeep(device: Device, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run one command line in the device's folder."""
    command = [sys.executable, "-m", "lenskeep.cli.main", *map(str, words)]
    environment = os.environ | {"LENSKEEP_DEVICE": str(device.socket)}
    return subprocess.run(
        command, env=environment, cwd=device.folder, capture_output=True, text=True, timeout=60, check=False
    )


def verdict(device: Device, *words: str | Path) -> dict[str, Any]:
    """What `lenskeep audit verify` says, with its exit code."""
    said = lenskeep(device, "audit", "verify", *words, "--json")
    return json.loads(said.stdout)["data"] | {"exit": said.returncode}  # type: ignore[no-any-return]


def registry(device: Device) -> Path:
    return device.folder / "state" / "registry.sqlite"


def tamper(device: Device, statement: str) -> None:
    """Work on the running device's database with SQLite, as somebody with a shell would."""
    with contextlib.closing(sqlite3.connect(registry(device), timeout=10)) as database, database:
        triggers = [row[0] for row in database.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'")]
        database.execute("DROP TRIGGER record_is_not_changed")
        database.execute("DROP TRIGGER record_is_not_removed")
        database.execute(statement)
        for trigger in triggers:
            database.execute(trigger)


def codes(device: Device) -> set[str]:
    return {check.code for check in device.client.health() if not check.passed}


def test_a_devices_life_is_on_record_and_its_export_proves_itself_on_a_laptop(device: Device) -> None:
    device.settle("1.0.0")
    device.settle("1.1.0")
    device.client.hold("main", True)
    device.client.hold("main", False)
    device.client.pin("cap-inspect@1.0.0", True)
    flipped = bytearray(bundle_bytes("1.2.0"))
    flipped[-3000] ^= 1
    bad = device.folder / "flipped.lkb"
    bad.write_bytes(flipped)
    with pytest.raises(LenskeepError):
        device.client.upload(bad, lambda _done, _total: None)
    device.finished(device.client.rollback("main", "too many NG"))
    head = lenskeep(device, "audit", "head", "-o", "head.json")
    assert head.returncode == 0, head.stderr
    device.kill(signal.SIGTERM)
    device.start()
    (device.folder / "cam.pub").write_text(device.client.record_head().public_key)
    assert lenskeep(device, "audit", "export", "-o", "record.jsonl").returncode == 0

    found = verdict(device, "record.jsonl", "--key", "cam.pub", "--witness", "head.json")
    assert (found["exit"], found["whole"], found["witnesses"]) == (0, True, 1)
    said = [json.loads(line) for line in (device.folder / "record.jsonl").read_text().splitlines()]
    by_action = {entry["action"]: entry for entry in said if entry["kind"] == "entry"}
    assert by_action.keys() >= {
        "begin record", "configuration", "start", "stop", "trust key", "import", "refuse import", "trial", "activate",
        "swapped", "confirm", "rollback", "hold", "resume", "pin",
    }  # fmt: skip
    assert (by_action["hold"]["before"], by_action["hold"]["after"]) == ("free", "held")
    assert by_action["rollback"]["reason"] == "too many NG"
    assert " model " in by_action["swapped"]["after"]
    refused = by_action["refuse import"]
    assert refused["reason"].startswith("LK-40") and "sha256" in refused["before"]
    assert by_action["start"]["reason"] == "after an orderly stop"
    assert verdict(device)["whole"]


def test_the_record_is_shown_by_default_and_packed_for_people(device: Device) -> None:
    device.settle("1.0.0")
    assert "trust key" in lenskeep(device, "audit").stdout
    assert "trust key" in lenskeep(device, "audit", "--limit", "50", "--json").stdout
    assert lenskeep(device, "audit", "pack", "device", "-o", "evidence.html").returncode == 0
    page = (device.folder / "evidence.html").read_text()
    assert "cap-inspect@1.0.0" in page and "Verified" in page and "<script" not in page
    assert lenskeep(device, "audit", "export", "--format", "csv", "-o", "record.csv").returncode == 0
    assert (device.folder / "record.csv").read_text().startswith('"sequence","at"')
    # of a day long gone nothing is shown, and the chain still holds
    assert lenskeep(device, "audit", "export", "--until", "2001-01-01", "-o", "none.jsonl").returncode == 0
    found = verdict(device, "none.jsonl")
    assert found["whole"] and found["entries"] == 1 and found["left_out"] > 5
    wrong = lenskeep(device, "audit", "verify", "record.csv")
    assert wrong.returncode == 4 and "LK-4404" in wrong.stderr


@pytest.mark.parametrize(
    ("statement", "sequence", "kind"),
    [
        ("UPDATE record SET actor = 'unix:nobody' WHERE sequence = 3", 3, "edited"),
        ("DELETE FROM record WHERE sequence = 3", 3, "missing"),
    ],
)
def test_direct_sql_on_the_running_devices_registry_is_found(
    device: Device, statement: str, sequence: int, kind: str
) -> None:
    device.settle("1.0.0")
    assert verdict(device)["exit"] == 0
    tamper(device, statement)
    found = verdict(device)
    assert (found["exit"], found["finding"]["sequence"], found["finding"]["kind"]) == (4, sequence, kind)
    assert "LK-4400" in codes(device)
    assert lenskeep(device, "audit", "export", "-o", "record.jsonl").returncode == 0
    assert verdict(device, "record.jsonl")["finding"]["sequence"] == sequence
    assert device.runs("cap-inspect@1.0.0"), "the line runs on"


@pytest.mark.attack(92)
def test_a_registry_restored_from_an_old_copy_is_found_at_the_start_and_the_line_runs(device: Device) -> None:
    device.settle("1.0.0")
    device.kill(signal.SIGTERM)
    old = device.folder / "old.sqlite"
    shutil.copy(registry(device), old)  # after an orderly stop the write-ahead log is empty
    device.start()
    device.client.pin("cap-inspect@1.0.0", True)
    device.kill(signal.SIGTERM)
    for path in registry(device).parent.glob("registry.sqlite*"):
        path.unlink()
    shutil.copy(old, registry(device))
    device.start()
    assert "LK-4401" in codes(device)
    found = verdict(device)
    assert (found["exit"], found["finding"], len(found["gaps"])) == (4, None, 1)
    assert device.runs("cap-inspect@1.0.0")


@pytest.mark.attack(92)
def test_a_deleted_registry_begins_a_record_that_names_the_last_signed_entry_and_the_line_runs(device: Device) -> None:
    device.settle("1.0.0")
    last = device.client.record_head().sequence
    device.kill(signal.SIGTERM)
    for path in registry(device).parent.glob("registry.sqlite*"):
        path.unlink()
    device.start()
    assert "LK-4402" in codes(device)
    found = verdict(device)
    assert found["finding"] is None and found["gaps"][0]["first"] == 0 and found["gaps"][0]["last"] >= last
    assert device.runs("cap-inspect@1.0.0")


def test_a_device_killed_at_random_moments_of_its_work_keeps_a_whole_record(
    make_device: Callable[..., Device],
) -> None:
    device, chance = make_device(), random.Random(SEED)
    device.start()
    device.trust()
    device.settle("1.0.0")
    device.settle("1.1.0")
    key = admit(device.client.record_head().public_key)
    for number in range(6):
        version = "1.0.0" if number % 2 == 0 else "1.1.0"
        with contextlib.suppress(LenskeepError):
            device.client.activate(ActivationRequest(bundle=f"cap-inspect@{version}", reason=f"round {number}"))
        time.sleep(chance.random() * 0.3)
        device.kill()
        device.start()
        found = device.client.verify_record()
        assert found.whole, f"seed {SEED}, round {number}: {found.finding} {found.gaps}"
    with (device.folder / "record.jsonl").open("w+b") as file:
        device.client.export_record(file)
        file.seek(0)
        assert recordfile.verify(file, key=key).whole
