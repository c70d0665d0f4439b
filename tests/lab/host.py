"""A host that Lenskeep is installed on: what a person at it would type, and what systemd says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lenskeep.cli.client import Address, Client
from lenskeep.errors import LenskeepError
from lenskeep.messages.control import ActivationRequest, KeyRequest
from tests import tinybundle
from tests.device import WAIT_S, bundle_bytes
from tests.lab.container import Container, until

UNIT = "lenskeep.service"
MOUNT_IMAGE = """
mkdir /image
mount -t tmpfs -o size=2g image /image
mkdir /image/changed /image/work /image/root
mount -t overlay overlay -o lowerdir=/,upperdir=/image/changed,workdir=/image/work /image/root
"""
READ_LEDGER = """
import json, sqlite3
metrics = sqlite3.connect("file:/var/lib/lenskeep/metrics.sqlite?mode=ro", uri=True)
print(json.dumps(metrics.execute("SELECT run, sequence, (SELECT sum(frames) FROM span) FROM position").fetchone()))
"""


class Ledger(NamedTuple):
    """Frames counted so far, up to a result of a runner's run. Both grow alike while nothing is lost or doubled."""

    run: str
    sequence: int
    frames: int


class Host:
    """The container with its service."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.run = container.run
        self.path = container.path

    # --- the program --------------------------------------------------------------------------------------------

    def install(self, version: str, *words: str, fails: bool = False) -> str:
        """Run the installer of the checkout with a release that was built before; for the device without more words."""
        wheel = f"/releases/lenskeep-{version}-py3-none-any.whl"
        return self.run("/checkout/scripts/install", "--wheels", "/libraries", "--wheel", wheel, *words, fails=fails)

    @contextmanager
    def image(self) -> Iterator[str]:
        """A system image that is mounted for a while."""
        self.run("sh", "-ec", MOUNT_IMAGE)
        yield "/image/root"
        self.run("umount", "/image/root", "/image")
        self.run("rmdir", "/image")

    def configure(self, text: str) -> None:
        """Write the configuration as an editor does: into the same file."""
        self.path("/etc/lenskeep/device.toml").write_text(text)

    @property
    def client(self) -> Client:
        """The typed client, as the host's root."""
        return Client(Address(path=self.path("/run/lenskeep/lenskeep.sock")))

    def settle(self, version: str, folder: Path) -> None:
        """Bring a bundle through trial, swap and probation."""
        client = self.client
        client.trust_key(KeyRequest(name="plant-release", pem=tinybundle.key().public.pem, patterns=["*"]))
        file = folder / f"cap-inspect-{version}.lkb"
        file.write_bytes(bundle_bytes(version))
        for operation in (
            client.wait(client.upload(file, lambda _done, _total: None), WAIT_S, lambda _seen: None),
            client.wait(
                client.activate(ActivationRequest(bundle=f"cap-inspect@{version}")), WAIT_S, lambda _seen: None
            ),
        ):
            assert operation.state == "succeeded", operation
        until(lambda: client.slot("main").state == "settled", "the version settles")

    def ledger(self) -> Ledger:
        """What the daemons have written down, read in one transaction from the host's disk."""
        run, sequence, frames = json.loads(self.run("/usr/bin/python3", "-c", READ_LEDGER))
        return Ledger(run, sequence, frames)

    def fresh_ledger(self) -> Ledger:
        """Wait until something new is written down."""
        old = self.ledger()

        def fresh() -> Ledger | None:
            now = self.ledger()
            return now if now != old else None

        return until(fresh, "new results are written down")

    def newest(self) -> int:
        """The number of the newest result."""
        return self.client.results(limit=1).results[-1].sequence

    def judges(self) -> bool:
        """Say whether the daemon answers and results come."""
        try:
            return self.newest() > 0
        except (LenskeepError, IndexError):
            return False

    # --- systemd ------------------------------------------------------------------------------------------------

    def show(self, name: str, unit: str = UNIT) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit)

    def daemon(self, unit: str = UNIT) -> int:
        """The pid of the daemon, as the container counts; 0 when there is none."""
        return int(self.show("MainPID", unit))

    def runner(self) -> int:
        """The pid of the slot's process; 0 when there is none."""
        found = [pid for pid in self.processes() if b"lenskeep.runner" in self._words(pid)]
        assert len(found) < 2, found
        return found[0] if found else 0

    def processes(self) -> list[int]:
        """The pids in the service's control group."""
        listed = self.run("sh", "-c", f"grep -lsF /{UNIT} /proc/[0-9]*/cgroup || true")
        return [int(path.split("/")[2]) for path in listed.split()]

    def _words(self, pid: int) -> list[bytes]:
        try:
            return self.path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return []

    def another_daemon(self, than: int, unit: str = UNIT) -> int:
        """Wait until a new daemon serves, and return its pid."""

        def there() -> int:
            # in one question: between two the process can end, and "active" was still said of the old one
            said = self.run("systemctl", "show", "--property=MainPID,ActiveState", unit)
            shown = dict(line.split("=", 1) for line in said.splitlines())
            pid = int(shown["MainPID"])
            return pid if pid not in (0, than) and shown["ActiveState"] == "active" else 0

        return until(there, "a new daemon serves")

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """The service's journal entries."""
        self.run("journalctl", "--sync")
        return [json.loads(line) for line in self.run("journalctl", "-o", "json", "-u", UNIT, *matches).splitlines()]

    def says(self, text: str) -> bool:
        """Say whether a text stands in the service's journal."""
        return any(text in str(entry.get("MESSAGE", "")) for entry in self.journal())
