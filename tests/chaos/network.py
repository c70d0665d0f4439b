"""Several hosts on one machine: a network namespace for the fleet and one for each site, with a cable between them.

A cable that is pulled says nothing to either end, and packets that are dropped are sent again by the kernel: what
the relay cannot show. Needs root and `ip`; loss needs `nft`, slowness `tc` with tbf.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.fleetrig import WAIT_S, FleetServer


def missing() -> str:
    """Say why namespaces cannot be had here; empty when they can."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return "needs root and ip"
    name = f"lkprobe{os.getpid() % 10000}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"needs network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", name], check=True)
    return ""


class Site:
    """A host at the other end of a cable to the fleet."""

    def __init__(self, fleet: str, number: int) -> None:
        tag = f"{os.getpid() % 10000}x{number}"
        self.name, self._far, self._near = f"lks{tag}", f"vf{tag}", f"vs{tag}"
        self._fleet = fleet
        self.fleet_address, self._address = f"10.77.{number}.1", f"10.77.{number}.2"
        _ip("netns", "add", self.name)
        _ip("link", "add", self._far, "netns", fleet, "type", "veth", "peer", "name", self._near, "netns", self.name)
        _ip("-n", fleet, "addr", "add", f"{self.fleet_address}/24", "dev", self._far)
        _ip("-n", self.name, "addr", "add", f"{self._address}/24", "dev", self._near)
        for name, device in ((fleet, self._far), (self.name, self._near), (self.name, "lo")):
            _ip("-n", name, "link", "set", device, "up")

    @property
    def command(self) -> list[str]:
        """Return what to put before a command to run it there."""
        return ["ip", "netns", "exec", self.name]

    def pull_cable(self) -> None:
        """Cut the link; nobody is told."""
        _ip("-n", self._fleet, "link", "set", self._far, "down")

    def plug_cable(self) -> None:
        _ip("-n", self._fleet, "link", "set", self._far, "up")

    def slow_down(self, rate: str) -> None:
        """Make the link as slow as a bad radio."""
        words = ["tc", "qdisc", "replace", "dev", self._near, "root", "tbf", "rate", rate]
        subprocess.run([*self.command, *words, "burst", "16kbit", "latency", "300ms"], check=True)

    def lose(self, percent: int) -> bool:
        """Drop so many of the packets that arrive; say whether that could be done."""
        if shutil.which("nft") is None:
            return False
        rules = (
            f'table netdev loss {{ chain in {{ type filter hook ingress device "{self._near}" priority 0;\n'
            f"numgen random mod 100 < {percent} drop\n}} }}"
        )
        done = subprocess.run(
            [*self.command, "nft", "-f", "-"], input=rules, text=True, capture_output=True, check=False
        )
        return done.returncode == 0

    def close(self) -> None:
        _ip("netns", "del", self.name)


class FarFleet(FleetServer):
    """A fleet server on a host of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.host = f"lkf{os.getpid() % 10000}"
        self.config.write_text(self.config.read_text().replace('"127.0.0.1"', '"0.0.0.0"', 1))
        _ip("netns", "add", self.host)
        _ip("-n", self.host, "link", "set", "lo", "up")

    def start(self) -> None:
        with (self.folder / "fleet.log").open("ab") as log:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.host, sys.executable, "-m", "lenskeep.fleet", "--config", self.config],
                stdout=log, stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + WAIT_S
        while not self._there():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def _there(self) -> bool:
        try:
            self.client.authority()
        except Exception:  # whatever it says, it does not answer yet
            return False
        return True

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill(signal.SIGTERM)
        _ip("netns", "del", self.host)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
