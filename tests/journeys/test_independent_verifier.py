"""A device's record holds before a second verifier that shares no code with it, and what was done to it does not."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.device import Device
from tests.independent import verify_record

SCRIPT = Path(verify_record.__file__)


def judged(record: Path, key: Path) -> subprocess.CompletedProcess[str]:
    """Run the script as somebody without Lenskeep would: isolated, with its own imports only."""
    command = [sys.executable, "-I", SCRIPT, key]
    with record.open("rb") as file:
        return subprocess.run(command, stdin=file, capture_output=True, text=True, timeout=30, check=False)


@pytest.fixture
def exported(device: Device) -> tuple[Path, Path]:
    """The record of a short life, and the device's public key."""
    device.settle("1.0.0")
    device.client.hold("main", True)
    device.client.hold("main", False)
    path, key = device.folder / "record.jsonl", device.folder / "device.pub"
    with path.open("wb") as file:
        device.client.export_record(file)
    key.write_text(device.client.record_head().public_key)
    return path, key


def test_the_independent_verifier_accepts_a_devices_record_whole_and_with_entries_left_out(
    device: Device, exported: tuple[Path, Path]
) -> None:
    path, key = exported
    said = judged(path, key)
    assert said.returncode == 0, said.stderr
    assert int(said.stdout) == len(path.read_bytes().splitlines()) - 2 >= 5

    command = [sys.executable, "-m", "lenskeep.cli.main", "--device", str(device.socket), "audit", "export"]
    short = device.folder / "none.jsonl"
    subprocess.run([*command, "--until", "2001-01-01", "-o", short], check=True, capture_output=True)
    assert b'"left-out"' in short.read_bytes()
    assert judged(short, key).returncode == 0


def test_the_independent_verifier_finds_what_was_done_to_a_record(exported: tuple[Path, Path]) -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    dice = random.Random(seed)
    path, key = exported
    lines = path.read_bytes().splitlines()
    pem = key.read_bytes()
    for _ in range(300):
        spoiled = [json.loads(line) for line in lines]
        at = dice.randrange(1, len(spoiled) - 1)
        how = dice.randrange(5)
        if how == 0:
            del spoiled[at]
        elif how == 1:
            spoiled.insert(at, spoiled[at])
        elif how == 2:
            other = dice.choice([n for n in range(1, len(spoiled) - 1) if n != at])
            spoiled[at], spoiled[other] = spoiled[other], spoiled[at]
        elif how == 3:
            del spoiled[at:-1]
        else:
            field = dice.choice(verify_record.FIELDS)
            old = spoiled[at][field]
            spoiled[at][field] = not old if isinstance(old, bool) else old + 1 if isinstance(old, int) else old + "x"
        with pytest.raises(Exception):  # noqa: B017 - whatever stops the script stops it with exit code 1
            verify_record.verify(spoiled, pem)
    assert verify_record.verify([json.loads(line) for line in lines], pem)
