"""What one look at a repository costs: 500 devices the first time, and again with nothing new; python-tuf beside it.

`python -m tests.bench.trust_bench [DEVICES]`
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

from lenskeep.messages.trust import Verdict
from lenskeep.trust.client import look
from lenskeep.trust.names import device_path
from tests.bench import rig
from tests.forger import Forger

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
