"""What the control plane costs: from exec to the API answering, to the first result, at rest, and after a long run.

`python -m tests.bench.daemon_bench [--rounds N] [--seconds N]`
The bare sides are scripts that import and open the same packages and do the one thing that counts, and nothing else.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.bench import rig
from tests.device import Device

BARE_CONTROL = """
import asyncio, sys, sqlite3
import aiohttp.web, aiosqlite, msgspec, psutil, prometheus_client
from cryptography.hazmat.primitives.asymmetric import ec
async def main():
    databases = [await aiosqlite.connect(f"{sys.argv[1]}/{name}") for name in ("a", "b", "c", "d")]
    for database in databases:
        await database.execute("PRAGMA journal_mode=WAL")
    async def hello(request):
        return aiohttp.web.json_response({})
    app = aiohttp.web.Application()
    app.router.add_get("/v1/whoami", hello)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    await aiohttp.web.UnixSite(runner, f"{sys.argv[1]}/lenskeep.sock").start()
    await asyncio.sleep(60)
asyncio.run(main())
"""

BARE_RESULT = """
import sys, cv2, numpy, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(open(sys.argv[1], "rb").read(), options, providers=["CPUExecutionProvider"])
image = numpy.zeros((480, 640, 3), numpy.uint8)
tensor = cv2.dnn.blobFromImage(image, 1 / 255, (16, 16), swapRB=True)
session.run(None, {"images": tensor})
"""


def until(question: Callable[[], object], seconds: float = 30.0) -> float:
    """Ask without pause until the answer is yes; return how long it took."""
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        if question():
            return time.perf_counter() - begun
        time.sleep(0.002)
    raise TimeoutError


def answers(device: Device) -> bool:
    """Say whether the API answers."""
    try:
        device.client.whoami()
    except Exception:  # whatever it says, it does not answer yet
        return False
    return True


def start_of_daemon(device: Device) -> tuple[float, float]:
    """Milliseconds from exec to the API, and to the first result of the line, by the result's own times."""
    begun_s, begun = time.time(), time.perf_counter()
    log = (device.folder / "daemon.log").open("ab")
    device.daemon = subprocess.Popen(
        [sys.executable, "-m", "lenskeep.daemon", "--config", device.config], stdout=log, stderr=log
    )
    log.close()
    until(lambda: answers(device))
    api_ms = (time.perf_counter() - begun) * 1000
    until(lambda: device.client.results(limit=1).results)
    first = device.client.results(limit=1000).results[0]
    return api_ms, first.captured_ms + first.total_us / 1000 - begun_s * 1000


def start_of_bare_control(folder: Path) -> float:
    """Milliseconds from exec of the bare control script until it answers."""
    pocket = Path(tempfile.mkdtemp(prefix="lk-bare-", dir=folder))
    begun = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", BARE_CONTROL, str(pocket)])
    try:
        until(lambda: (pocket / "lenskeep.sock").exists())
        return (time.perf_counter() - begun) * 1000
    finally:
        process.kill()
        process.wait()


def start_of_bare_result(model: Path) -> float:
    """Milliseconds of a script that loads the model and judges one picture."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", BARE_RESULT, str(model)], check=True)
    return (time.perf_counter() - begun) * 1000


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lk-bench-"))
    device = Device(folder, fps=30.0)
    try:
        device.start()
        device.trust()
        device.settle("1.0.0")
        digest = device.client.bundles()[0].model_sha256
        model = folder / "state" / "blobs" / digest[:2] / digest
        starts(device, folder, model, arguments.rounds)
        rest(device, arguments.seconds)
    finally:
        device.close()
        shutil.rmtree(folder, ignore_errors=True)


def starts(device: Device, folder: Path, model: Path, rounds: int) -> None:
    """Print the table of starts."""
    sides: dict[str, list[float]] = {"api": [], "bare_api": [], "result": [], "bare_result": []}
    for number in range(rounds + 1):
        assert device.daemon is not None
        device.daemon.terminate()
        device.daemon.wait()
        api_ms, result_ms = start_of_daemon(device)
        taken = (api_ms, start_of_bare_control(folder), result_ms, start_of_bare_result(model))
        if number:
            for side, value in zip(sides.values(), taken, strict=True):
                side.append(value)
    rows = [
        ("exec to API answering", *_pair(sides["api"], sides["bare_api"])),
        ("exec to first result", *_pair(sides["result"], sides["bare_result"])),
    ]
    rig.print_table(f"Start, {rounds} rounds, medians", ("what", "Lenskeep", "bare script", "ratio"), rows)


def _pair(ours: list[float], bare: list[float]) -> tuple[str, str, str]:
    ratio = rig.median([a / b for a, b in zip(ours, bare, strict=True)])
    return f"{rig.median(ours):.0f} ms", f"{rig.median(bare):.0f} ms", f"{ratio:.2f}"


def rest(device: Device, seconds: float) -> None:
    """Print what the daemon takes while a line of 30 frames a second runs and nobody looks."""
    assert device.daemon is not None
    process = psutil.Process(device.daemon.pid)
    time.sleep(5)
    before, begun = process.cpu_times(), time.perf_counter()
    time.sleep(seconds)
    after, took = process.cpu_times(), time.perf_counter() - begun
    share = (after.user + after.system - before.user - before.system) / took
    memory = process.memory_full_info()
    rows = [
        ("resident memory", f"{memory.rss / 2**20:.1f} MiB ({memory.rss / 1e6:.1f} MB)"),
        ("of it private", f"{memory.uss / 2**20:.1f} MiB"),
        ("share of a core, 30 results/s, nobody looking", f"{share:.2%}"),
    ]
    rig.print_table(f"The daemon at rest, {seconds:.0f} s", ("what", "figure"), rows)


if __name__ == "__main__":
    main()
