"""What the benches of the fleet share: a server with a repository, devices that are let in, and processes of them."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests import tinybundle
from tests.fleetrig import FleetServer
from tests.fleetsim.crowd import Process
from tests.fleetsim.enrolment import enrol_many
from tests.fleetsim.plan import Plan
from tests.repositories import Repository

READY_S = 120.0
EACH_READY_S = 0.02  # of the crowd's own time for a handshake


@dataclass
class Ground:
    """A running fleet with its repository, and the devices that it lets in."""

    fleet: FleetServer
    repository: Repository
    folder: Path
    names: list[str]
    started: list[Process] = field(default_factory=list)
    _process: psutil.Process | None = None

    def plan(self, names: list[str], **words: object) -> Plan:
        """Return a plan for some of the devices."""
        wanted = {"seed": 1, "seconds": 0.0, "root": str(self.folder / "root.json")} | words
        return Plan(
            host="127.0.0.1", port=self.fleet.port, identities=str(self.folder / "identities"), names=names,
            **wanted,  # type: ignore[arg-type]
        )  # fmt: skip

    def start(self, plan: Plan, processes: int) -> list[Process]:
        """Start processes of devices."""
        crowd = [Process(plan.part(index, processes)) for index in range(processes)]
        self.started += crowd
        return crowd

    @property
    def server(self) -> psutil.Process:
        assert self.fleet.process is not None
        if self._process is None or self._process.pid != self.fleet.process.pid:
            self._process = psutil.Process(self.fleet.process.pid)
        return self._process

    def connections(self) -> int:
        """Return how many connections the server holds."""
        return len(list(Path(f"/proc/{self.server.pid}/fd").iterdir()))

    def until_held(self, count: int) -> float:
        """Wait until so many connections stand; return how long that took."""
        began = time.monotonic()
        while self.connections() < count:
            assert time.monotonic() < began + READY_S + count * EACH_READY_S, (
                f"{self.connections()} of {count}\n{self.fleet.log()}"
            )
            time.sleep(0.1)
        return time.monotonic() - began

    def until_quiet(self, share: float = 0.1) -> None:
        """Wait until the server has next to nothing to do."""
        deadline = time.monotonic() + READY_S
        while self.server.cpu_percent(1.0) > share * 100:
            assert time.monotonic() < deadline, "the server does not come to rest"


@contextmanager
def ground(devices: int, identities: Path | None = None) -> Iterator[Ground]:
    """Make a fleet with a repository of two versions, and let devices in."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    fleet = FleetServer(folder)
    stack = ExitStack()
    try:
        repository = Repository(fleet.repository)
        repository.keys["acme"] = tinybundle.key()
        repository.publisher("acme", "cap-*")
        for version in ("1.0.0", "1.1.0"):
            repository.release("cap-inspect", version)
        (folder / "root.json").write_bytes(repository.root())
        (folder / "online.key").write_bytes(repository.keys["online"].pem())
        fleet.config.write_text(fleet.config.read_text() + f'[online]\nkeys = ["{folder}/online.key"]\n')
        fleet.start()
        names = [f"sim-{n:05d}" for n in range(devices)]
        enrol_many(str(fleet.socket), folder / "identities", names)
        made = Ground(fleet, repository, folder, names)
        stack.callback(lambda: [one.kill() for one in made.started if one.child.poll() is None])
        yield made
    finally:
        stack.close()
        fleet.close()
        shutil.rmtree(folder, ignore_errors=True)
