"""A technician's day at a real device, through the command line alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import tinybundle
from tests.device import Device, bundle_bytes

NAME = "cap-inspect"


@dataclass
class Said:
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


Shell = Callable[..., Said]


@pytest.fixture
def lenskeep(make_device: Callable[..., Device]) -> Shell:
    """A shell in the device's folder."""
    device = make_device(probation_s=1.0)
    device.start()
    environment = os.environ | {"LENSKEEP_DEVICE": str(device.socket)}

    def run(*words: str | Path) -> Said:
        command = [sys.executable, "-m", "lenskeep.cli.main", *map(str, words)]
        done = subprocess.run(command, env=environment, cwd=device.folder, capture_output=True, text=True, timeout=60)
        return Said(done.returncode, done.stdout, done.stderr)

    run.device = device  # type: ignore[attr-defined]
    return run


def data(said: Said) -> Any:
    """What an envelope holds."""
    assert said.code == 0, said.err + said.out
    return json.loads(said.out)["data"]


def stick(folder: Path) -> Path:
    """A stick with two good versions, one with a flipped byte, one by a stranger, one with a wrong golden output."""
    place = folder / "stick"
    place.mkdir()
    for version in ("1.0.0", "1.1.0"):
        (place / f"{NAME}-{version}.lkb").write_bytes(bundle_bytes(version))
    flipped = bytearray(bundle_bytes("1.2.0"))
    flipped[len(flipped) // 2] ^= 1
    (place / "flipped.lkb").write_bytes(flipped)
    golden = {"cases": [{"image": "golden/a.png", "scores": {"good": 0.0, "bad": 1.0}}], "produced_by": "hand"}
    (place / "wrong.lkb").write_bytes(bundle_bytes("1.3.0", golden=golden))
    (place / "other.lkb").write_bytes(bundle_bytes("1.0.0", name="weld-seam"))
    return place


def test_a_technicians_day(lenskeep: Shell) -> None:
    device: Device = lenskeep.device  # type: ignore[attr-defined]
    place = stick(device.folder)
    (device.folder / "plant.pub").write_text(tinybundle.key().public.pem)

    assert "EMPTY" in lenskeep("status").out
    assert "LK-4001" in lenskeep("usb", place).out  # nobody is trusted yet
    assert lenskeep("import", place / f"{NAME}-1.0.0.lkb").code == 4
    assert lenskeep("keys", "trust", "plant.pub", "--for", "cap-*").code == 0

    found = lenskeep("usb", place).out
    assert found.count("new here") == 3 and "other.lkb  LK-4003" in found and "flipped.lkb  LK-40" in found
    assert lenskeep("models").out.startswith("No model is on this device yet.")

    assert "passed, golden 1/1" in lenskeep("import", place / f"{NAME}-1.0.0.lkb").out
    assert "works on this device" in lenskeep("check", f"{NAME}@1.0.0").out
    settled = lenskeep("activate", f"{NAME}@1.0.0", "--wait")
    assert settled.code == 0 and "It has settled." in settled.out

    rest = lenskeep("import", place)
    assert rest.code == 8  # the one with the wrong golden output is stored, refused, and named
    assert "LK-8001" in rest.err and "flipped.lkb" in rest.err and "is here already" in rest.err
    refused = lenskeep("activate", f"{NAME}@1.3.0")
    assert refused.code == 8 and "LK-8001" in refused.err
    status = data(lenskeep("status", "--json"))
    assert (status["verdict"], status["slots"][0]["active"]) == ("RUNNING", f"{NAME}@1.0.0")

    trial = lenskeep("activate", f"{NAME}@1.1.0", "--trial", "60s", "--reason", "new lot")
    assert "goes back by itself" in trial.out
    device.until(lambda: device.slot().previous_warm, "the version before stays warm")
    assert "on trial, goes back by itself in" in lenskeep("status").out
    assert lenskeep("confirm").code == 0
    back = lenskeep("rollback")
    assert back.code == 0 and f"Back to {NAME}@1.0.0" in back.out
    again = lenskeep("rollback")
    assert again.code == 6 and "LK-8102" in again.err

    unconfirmed = lenskeep("activate", f"{NAME}@1.1.0", "--trial", "1s", "--wait")
    assert unconfirmed.code == 9 and "LK-8107" in unconfirmed.err

    assert lenskeep("remove", f"{NAME}@1.0.0", "--yes").code == 6  # it runs
    assert lenskeep("remove", f"{NAME}@1.3.0", "--yes").code == 0
    assert lenskeep("export", f"{NAME}@1.0.0", "copy.lkb").code == 0
    assert (device.folder / "copy.lkb").read_bytes() == bundle_bytes("1.0.0")
    assert lenskeep("keys", "revoke", "plant", "--reason", "laptop lost").code == 0
    assert lenskeep("activate", f"{NAME}@1.1.0").code == 4
    assert data(lenskeep("status", "--json"))["slots"][0]["active"] == f"{NAME}@1.0.0"  # what runs goes on


def test_what_is_asked_about_the_device_is_answered(lenskeep: Shell) -> None:
    device: Device = lenskeep.device  # type: ignore[attr-defined]
    device.trust()
    device.settle("1.0.0")
    checks = data(lenskeep("doctor", "--json"))
    assert all(check["passed"] for check in checks)
    cameras = data(lenskeep("camera", "list", "--json"))["cameras"]
    assert [camera["name"] for camera in cameras] == ["cam-1"]
    tested = data(lenskeep("camera", "test", "cam-1", "--seconds", "0.5", "--json"))
    assert tested["ok"] and tested["frames"] > 5
    assert lenskeep("camera", "snapshot", "cam-1", "--out", "a.jpg").code == 0
    assert (device.folder / "a.jpg").read_bytes().startswith(b"\xff\xd8")
    assert lenskeep("watch", "--times", "2", "--every", "0.1").out.count(f"{NAME}@1.0.0") == 2
    assert f"activate {NAME}@1.0.0 succeeded" in lenskeep("logs").out
    assert f"{NAME}@1.0.0" in lenskeep("history").out
    assert "trust key" in lenskeep("audit").out
    measured = data(lenskeep("bench", NAME, "--frames", "300", "--json"))["report"]
    assert measured["passed"] and measured["p99_ms"] > 0
    parts = data(lenskeep("bugreport", "--json"))["parts"]
    assert "status.json" in parts and not [part for part in parts if "failed" in part]
    assert data(lenskeep("version", "--json"))["device"]
    assert lenskeep("status", "--check").code == 0
    device.kill()
    assert lenskeep("status").code == 3
    assert lenskeep("status", "--check").code == 2
