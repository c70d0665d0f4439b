"""The registry is deleted, cut short or emptied: what is lost is said, the line runs, and the stick brings it back."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.device import Device


def deleted(registry: Path) -> None:
    registry.unlink()


def cut_short(registry: Path) -> None:
    with registry.open("r+b") as file:
        file.truncate(registry.stat().st_size // 2 + 100)


def emptied(registry: Path) -> None:
    registry.write_bytes(b"")


def overwritten(registry: Path) -> None:
    registry.write_bytes(b"\xff" * registry.stat().st_size)


@pytest.mark.attack(92)
@pytest.mark.parametrize("harm", [deleted, cut_short, emptied, overwritten])
def test_a_lost_registry_is_said_the_line_runs_and_the_bundle_comes_back_from_the_stick(
    make_device: Callable[..., Device], harm: Callable[[Path], None]
) -> None:
    device = make_device()
    device.start()
    device.trust()
    device.settle("1.0.0")
    device.settle("1.1.0")
    device.kill(signal.SIGTERM)
    registry = device.folder / "state" / "registry.sqlite"
    for suffix in ("-wal", "-shm"):
        registry.with_name(registry.name + suffix).unlink(missing_ok=True)
    harm(registry)
    device.start()
    # lost: history, keys, versions that no slot needs. Not lost: what runs, and what the record's signed head says
    device.runs("cap-inspect@1.1.0", "empty")
    found = {check.code for check in device.client.health()}
    assert "LK-4402" in found or "LK-4401" in found
    assert ("LK-5002" in found) == bool(list(registry.parent.glob("registry.sqlite.damaged-*")))
    device.trust()
    assert device.bring("1.1.0").state == "succeeded"
    assert device.activate("1.1.0").state == "succeeded"
    device.runs("cap-inspect@1.1.0", "settled")
    assert device.finished(device.client.start_scrub()).result["damaged"] == []
