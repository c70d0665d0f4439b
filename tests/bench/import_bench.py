"""Verify and store a 100 MB bundle, beside `sha256sum`, `cp` and `sync` of the same file on the same disk.

`python -m tests.bench.import_bench [--rounds N]`
Three sides, in turn: the shell's three commands; the importer's own work (reader, staging, commit) in a bare process;
the whole way through the running daemon's socket, without the trial that follows. Wall time, because the disk counts.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import numpy

from lenskeep.bundle.archive import BundleReader, Limits
from lenskeep.messages.control import Operation
from lenskeep.registry.blobs import Blobs
from tests import tinybundle
from tests.bench import rig
from tests.device import Device, bundle_bytes


def large_bundle(number: int) -> bytes:
    """A bundle with 100 MB of ballast, which is signed and stored like a model; each number is another version."""
    ballast = numpy.random.default_rng(number).bytes(100_000_000)

    return bundle_bytes(f"1.{number}.0", extra={"weights.bin": ballast})


def shell(path: Path, folder: Path) -> float:
    """Seconds of the three commands."""
    target = folder / "copy"
    begun = time.perf_counter()
    script = f"sha256sum {path} >/dev/null && cp {path} {target} && sync {target}"
    subprocess.run(["sh", "-c", script], check=True)
    took = time.perf_counter() - begun
    target.unlink()
    return took


def bare_import(path: Path, folder: Path) -> float:
    """Seconds of reader, staging and commit."""
    blobs = Blobs(folder / "bare", free_bytes_min=0)
    blobs.prepare_in_thread()
    staging = blobs.stage()
    begun = time.perf_counter()
    reader = BundleReader(tinybundle.trust(), tinybundle.NOW_S, Limits(), staging.open_member)
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(1 << 20):
            reader.feed(chunk)
    verified = reader.finish()
    blobs.commit_in_thread([(staging.path_of(file.name), file.sha256) for file in verified.files])
    took = time.perf_counter() - begun
    staging.close()
    shutil.rmtree(folder / "bare")
    return took


def through_daemon(device: Device, path: Path) -> tuple[float, Operation]:
    """Seconds from the first byte sent to the answer that the bundle is verified and stored."""
    begun = time.perf_counter()
    operation = device.client.upload(path, lambda _done, _total: None)
    return time.perf_counter() - begun, operation


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    folder = Path(tempfile.mkdtemp(prefix="lk-bench-"))
    device = Device(folder)
    sides: dict[str, list[float]] = {
        "sha256sum + cp + sync": [],
        "reader + staging + commit": [],
        "through the daemon": [],
    }
    try:
        device.start()
        device.trust()
        for number in range(rounds + 1):
            path = folder / "large.lkb"
            path.write_bytes(large_bundle(number))
            os.sync()
            took = [shell(path, folder), bare_import(path, folder)]
            through, operation = through_daemon(device, path)
            device.finished(operation)
            device.client.remove(f"cap-inspect@1.{number}.0")
            if number:  # the first round warms the caches
                for side, seconds in zip(sides.values(), [*took, through], strict=True):
                    side.append(seconds)
        size_mb = path.stat().st_size / 1e6
        digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    finally:
        device.close()
        shutil.rmtree(folder, ignore_errors=True)
    base = sides["sha256sum + cp + sync"]
    rows = [
        (
            name,
            f"{rig.median(times) * 1000:.0f} ms",
            f"{rig.median([a / b for a, b in zip(times, base, strict=True)]):.2f}",
        )
        for name, times in sides.items()
    ]
    title = f"Verify and store {size_mb:.0f} MB ({digest}…), {rounds} rounds, medians"
    rig.print_table(title, ("side", "time", "over the shell"), rows)


if __name__ == "__main__":
    main()
