"""What one look at a repository costs: 500 devices the first time, and again with nothing new; python-tuf beside it.

`python -m tests.bench.trust_bench [DEVICES]`
`python -m tests.bench.trust_bench shared [DEVICES]` the same in a large fleet (100,000), what a device fetches after a
change, and what signing costs; it writes a file for each device and takes some minutes.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from lenskeep.messages.trust import Look, Refusal, Verdict
from lenskeep.trust.client import look
from lenskeep.trust.keeping import director, settling
from lenskeep.trust.keeping.director import Wanted
from lenskeep.trust.keeping.workspace import writing
from lenskeep.trust.names import bin_of, device_path
from lenskeep.trust.source import FolderSource
from tests.bench import rig
from tests.forger import Forger
from tests.repositories import Repository

MODEL = "models/cap-inspect/1.0.0.lkb"
ROUNDS = 25


class Memory(FetcherInterface):
    """A repository in memory: a source for our client, a fetcher for python-tuf."""

    def __init__(self, folder: Path) -> None:
        files = (path for path in folder.rglob("*") if path.is_file())
        self.files = {str(path.relative_to(folder)): path.read_bytes() for path in files}

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """Answer our client."""
        return self.files.get(name)

    def _fetch(self, url: str) -> Iterator[bytes]:
        if url not in self.files:
            raise DownloadHTTPError(url, 404)
        yield self.files[url]


def main() -> None:
    """Measure and print."""
    if sys.argv[1:2] == ["shared"]:
        with tempfile.TemporaryDirectory() as folder:
            measure_shared(Path(folder), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000)
        return
    devices = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), devices)


def measure(folder: Path, devices: int) -> None:
    """Measure both clients by turns, so that what else the machine does meets both."""
    forger = Forger(folder / "repository")
    forger.add("cap-team", MODEL, b"the bundle")
    for number in range(devices):
        forger.assign(f"cam-{number}")
    forger.publish()
    memory, ours, theirs = Memory(forger.folder), folder / "ours", folder / "theirs"
    device, root = f"cam-{devices // 2}", forger.root()

    def look_once(stored: dict[str, bytes]) -> dict[str, bytes]:
        verdict = look(forger.look(stored, device=device, paths=[MODEL]), memory, ours)
        assert isinstance(verdict, Verdict)
        assert verdict.assignment is not None
        return verdict.stored

    def tuf_once() -> None:
        theirs.mkdir(exist_ok=True)
        updater = Updater(str(theirs), "metadata/", str(theirs), "targets/", memory, bootstrap=root)
        updater.refresh()
        assignment = updater.get_targetinfo(device_path(device))
        assert assignment is not None
        assert updater.get_targetinfo(MODEL) is not None
        if updater.find_cached_target(assignment) is None:
            updater.download_target(assignment)

    stored = look_once({})
    cold, again, tuf_cold, tuf_again = [], [], [], []
    for _ in range(ROUNDS):
        shutil.rmtree(ours)
        cold.append(cpu_ms(lambda: look_once({})))
        shutil.rmtree(ours)
        again.append(cpu_ms(lambda: look_once(stored)))
        shutil.rmtree(theirs, ignore_errors=True)
        tuf_cold.append(cpu_ms(tuf_once))
        tuf_again.append(cpu_ms(tuf_once))
    start = [started_ms("import lenskeep.trust.__main__") - started_ms("pass") for _ in range(5)]
    tuf_start = [started_ms("import tuf.ngclient") - started_ms("pass") for _ in range(5)]
    rig.print_table(
        f"One look at a repository of {devices} devices (director.json: {len(stored['director.json']) >> 10} kB), CPU ms",
        ["figure", "measured", "stock python-tuf", "must"],
        [
            ["cold: from the provisioned root", f"{rig.median(cold):.1f}", f"{rig.median(tuf_cold):.1f}", "30"],
            ["nothing new", f"{rig.median(again):.1f}", f"{rig.median(tuf_again):.1f}", "10"],
            ["start of the process", f"{rig.median(start):.0f}", f"{rig.median(tuf_start):.0f}", ""],
        ],
    )


class Counting(FolderSource):
    """A repository in a folder that counts what it gives away."""

    given = 0

    def read(self, name: str, bytes_max: int) -> bytes | None:
        """Answer our client."""
        data = super().read(name, bytes_max)
        self.given += len(data or b"")
        return data


def measure_shared(folder: Path, devices: int) -> None:
    """Measure a fleet whose list is shared out to bins: what is signed, and what a device fetches after one change."""
    repository, device = Repository(folder / "repository"), f"cam-{devices // 2}"
    repository.publisher("acme", "cap-*")
    for version in ("1.0.0", "1.1.0"):
        repository.release("cap-inspect", version)
    signed = {}
    for number, version in ((devices, "1.0.0"), (5, "1.1.0"), (min(1000, devices), "1.0.0")):
        wanted: dict[str, Wanted] = {f"cam-{one}": {"main": ("cap-inspect", version)} for one in range(number)}
        signed[number] = cpu_ms(lambda: sign(repository, wanted)) / 1e3  # noqa: B023 - called at once
    source, ours = Counting(repository.folder), folder / "ours"

    def look_once(stored: dict[str, bytes], rounds: int = 1) -> tuple[dict[str, bytes], float, int]:
        took = []
        for _ in range(rounds):
            shutil.rmtree(ours, ignore_errors=True)
            source.given = 0
            request = Look(bootstrap=repository.root(), stored=stored, now_s=time.time(), device=device, paths=[MODEL])
            answers: list[Verdict | Refusal] = []
            took.append(cpu_ms(lambda: answers.append(look(request, source, ours))))  # noqa: B023 - called at once
            verdict = answers[0]
            assert isinstance(verdict, Verdict)
            assert verdict.assignment is not None
        return verdict.stored, rig.median(took), source.given

    stored, cold_ms, cold_bytes = look_once({}, ROUNDS)
    sign(repository, {device: {"main": ("cap-inspect", "1.1.0")}})
    _, own_ms, own_bytes = look_once(stored, ROUNDS)
    stored, _, _ = look_once(stored)
    other = next(
        name for name in (f"cam-{one}" for one in range(9)) if bin_of(device_path(name)) != bin_of(device_path(device))
    )
    sign(repository, {other: {"main": ("cap-inspect", "1.1.0")}})
    _, other_ms, other_bytes = look_once(stored, ROUNDS)
    rig.print_table(
        f"A repository of {devices} devices: what a device fetches and what that costs it; what signing costs",
        ["figure", "measured", "kB fetched"],
        [
            ["cold: from the provisioned root, CPU ms", f"{cold_ms:.1f}", f"{cold_bytes / 1000:.0f}"],
            ["after a change about this device, CPU ms", f"{own_ms:.1f}", f"{own_bytes / 1000:.0f}"],
            ["after a change about a device of another bin, CPU ms", f"{other_ms:.1f}", f"{other_bytes / 1000:.0f}"],
            *([f"signing for {number} devices, CPU s", f"{took:.2f}", ""] for number, took in signed.items()),
        ],
    )


def sign(repository: Repository, wanted: dict[str, Wanted]) -> None:
    """Assign, renew, write: what the fleet does in one signing."""
    signers = repository.signers("online")
    with writing(repository.folder) as work:
        director.assign(work, wanted, signers, repository.now_s)
        settling.settle(work, signers, repository.now_s)
        work.commit()


def cpu_ms(work: Callable[[], object]) -> float:
    """Return the processor time that something takes."""
    begun = time.process_time()
    work()
    return (time.process_time() - begun) * 1e3


def started_ms(words: str) -> float:
    """Return the processor time of a fresh interpreter that runs these words."""
    ask = f"import time; {words}; print(time.process_time())"
    told = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    return float(told.stdout) * 1e3


if __name__ == "__main__":
    main()
