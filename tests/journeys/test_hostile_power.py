"""The power goes at every single step of an import: before and after each rename, each sync, each commit.

The daemon ends itself by kill -9 at the step that is asked for; a start later the registry must be whole.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lenskeep.errors import LenskeepError
from tests.device import Device, bundle_bytes

# Read by the interpreter at its start (sitecustomize). It counts once a file names this very process.
STEPS = """
import os, pathlib, signal, sqlite3

armed, trail = pathlib.Path({folder!r}) / "armed", pathlib.Path({folder!r}) / "trail"
counted, order = 0, ""

def step(what):
    global counted, order
    try:
        said = armed.read_text()
    except OSError:
        return
    pid, last = said.split()
    if int(pid) != os.getpid():
        return
    if said != order:
        counted, order = 0, said
    counted += 1
    with open(trail, "a") as file:
        file.write(what + "\\n")
    if counted == int(last):
        os.kill(os.getpid(), signal.SIGKILL)

def around(real, name):
    def call(*words, **more):
        step("before " + name)
        done = real(*words, **more)
        step("after " + name)
        return done
    return call

for name in ("fsync", "rename", "replace", "link", "unlink"):
    setattr(os, name, around(getattr(os, name), name))

class Connection(sqlite3.Connection):
    def execute(self, sql, *words):
        if not sql.strip().upper().startswith("COMMIT"):
            return super().execute(sql, *words)
        return around(super().execute, "commit")(sql, *words)

    def commit(self):
        return around(super().commit, "commit")()

real_connect = sqlite3.connect
sqlite3.connect = lambda *words, **more: real_connect(*words, **({{"factory": Connection}} | more))
"""


def arm(device: Device, last: int) -> None:
    assert device.daemon is not None
    path = device.folder / "armed.new"
    path.write_text(f"{device.daemon.pid} {last}")
    path.rename(device.folder / "armed")


def disarm(device: Device) -> list[str]:
    """Count no more; return the steps that were taken."""
    (device.folder / "armed").unlink()
    trail = device.folder / "trail"
    steps = trail.read_text().split("\n")[:-1] if trail.exists() else []
    trail.unlink(missing_ok=True)
    return steps


def assert_whole(device: Device, acknowledged: set[str]) -> None:
    """Everything that is listed has all its bytes; nothing half lies around; what was acknowledged is there."""
    bundles = {bundle.version: bundle for bundle in device.client.bundles()}
    assert acknowledged <= set(bundles)
    for version in bundles:
        for file in device.client.bundle(f"cap-inspect@{version}").files:
            stored = device.folder / "state" / "blobs" / file["sha256"][:2] / file["sha256"]
            assert stored.stat().st_size == file["size_bytes"]
    assert list((device.folder / "state" / "staging").iterdir()) == []


@pytest.mark.attack(33)
@pytest.mark.timeout(300)
def test_power_cut_at_every_step_of_an_import_leaves_a_whole_registry(make_device: Callable[..., Device]) -> None:
    device = make_device()
    (device.folder / "sitecustomize.py").write_text(STEPS.format(folder=str(device.folder)))
    device.environment = {"PYTHONPATH": str(device.folder)}
    device.start()
    device.trust()
    acknowledged: set[str] = set()
    assert device.bring("1.0.0").state == "succeeded"  # later ones share its unchanged files
    arm(device, 1 << 30)
    assert device.bring("1.0.1").state == "succeeded"
    acknowledged |= {"1.0.0", "1.0.1"}
    steps = disarm(device)
    print(f"{len(steps)} steps: {steps}")
    assert {"before rename", "after fsync", "before commit", "after commit"} <= set(steps)

    def upload(path: Path, version: str) -> None:
        try:
            device.client.upload(path, lambda _done, _total: None)
            acknowledged.add(version)
        except LenskeepError:
            pass  # it was killed before it had answered

    # "after" one step and "before" the next is the same state, so that half of them will do
    for last in [number for number, step in enumerate(steps, 1) if step.startswith("before")] + [len(steps)]:
        version = f"1.{last}.0"
        path = device.folder / "bundle.lkb"
        path.write_bytes(bundle_bytes(version))
        arm(device, last)
        sender = threading.Thread(target=upload, args=(path, version))
        sender.start()
        assert device.daemon is not None
        device.daemon.wait(timeout=30)
        sender.join()
        disarm(device)
        device.start()
        assert_whole(device, acknowledged)
    device.until(lambda: all(b.state == "qualified" for b in device.client.bundles()), "what was stored is tried")
