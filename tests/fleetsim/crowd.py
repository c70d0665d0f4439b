"""Processes of simulated devices: started, stopped, killed, and asked what came of it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from tests.fleetsim.device import Crowd, SimDevice
from tests.fleetsim.habits import samples
from tests.fleetsim.plan import Plan, Told, read_told

WAIT_S = 60.0  # a bound against hanging
SLOWER = 3.0


class Process:
    """One process of devices. What it starts, it ends."""

    def __init__(self, plan: Plan, *, command: list[str] | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lk-crowd-")
        self._told = Path(self._folder.name) / "told.json"
        path = Path(self._folder.name) / "plan.json"
        path.write_bytes(msgspec.json.encode(plan))
        self.child = subprocess.Popen(
            [*(command or []), sys.executable, "-m", "tests.fleetsim.crowd", str(path), str(self._told)],
            cwd=Path(__file__).parents[2],
        )

    def kill(self) -> None:
        """End it as a power cut would; what it had to tell is gone."""
        self.child.kill()
        self.child.wait(WAIT_S)
        self._folder.cleanup()

    def storm(self) -> None:
        """Let all its devices lose their connections and come back at once."""
        self.child.send_signal(signal.SIGUSR1)

    def stop(self) -> None:
        """Ask it to end."""
        self.child.send_signal(signal.SIGTERM)

    def told(self, seconds: float = WAIT_S) -> Told:
        """Wait for its end and return what it has to tell."""
        try:
            code = self.child.wait(seconds)
            if code == -signal.SIGTERM:  # it was told to end before it had begun
                return Told()
            assert code == 0, f"a process of devices ended with {code}"
            return read_told(self._told)
        finally:
            if self.child.poll() is None:
                self.child.kill()
                self.child.wait()
            self._folder.cleanup()


def run_crowd(plan: Plan, processes: int = 1) -> Told:
    """Run a whole plan and return what came of it."""
    crowd = [Process(plan.part(index, processes)) for index in range(processes)]
    return Told.merged([one.told(plan.seconds + WAIT_S if plan.seconds else 3600.0) for one in crowd])


async def live(plan: Plan) -> Told:
    """Let the devices of a plan live in this process until it is over."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopping.set)
    crowd = Crowd(plan, samples(plan.seed), samples(plan.seed, slower=SLOWER))
    dice = random.Random(f"{plan.seed} {time.time_ns()}" if plan.journals else f"{plan.seed}")
    devices = [SimDevice(name, crowd, random.Random(dice.random())) for name in plan.names]

    def storm() -> None:
        crowd.note("", "storm", str(len(devices)))
        for one in devices:
            one.cut_off()

    loop.add_signal_handler(signal.SIGUSR1, storm)
    gc.collect()
    gc.freeze()
    tasks = [asyncio.create_task(one.run(stopping.is_set)) for one in devices]
    everyone = asyncio.gather(*tasks)
    over = asyncio.create_task(stopping.wait())
    await asyncio.wait({everyone, over}, timeout=plan.seconds or None, return_when=asyncio.FIRST_COMPLETED)
    stopping.set()
    if not everyone.done():
        for task in tasks:
            task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await everyone
    await over
    waiting = [one.name for one in devices if plan.drain and not one.finished]
    return Told(counts=dict(crowd.counts), call_us=crowd.calls.to_bytes(), events=crowd.events, open_devices=waiting)


def main() -> None:
    """Be a process of devices: PLAN TOLD, two files."""
    plan = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)
    try:
        import uvloop
    except ImportError:
        told = asyncio.run(live(plan))
    else:
        told = uvloop.run(live(plan))
    part = Path(sys.argv[2]).with_suffix(".part")
    part.write_bytes(msgspec.json.encode(told))
    part.rename(sys.argv[2])


if __name__ == "__main__":
    main()
