"""A real systemd in a container whose disk is this machine's own, seen through an overlay: nothing of it is changed.

Rules. The mounts belong to the container's process alone and go with it; a test run that is killed leaves
no mount, though the container's init may outlive it.
Without root, systemd-nspawn or a usable system Python it says so, and the tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

SYSTEM_PYTHON = "/usr/bin/python3"
BOOT_MAX_S = 30.0
MORE = "landlock_create_ruleset landlock_add_rule landlock_restrict_self"  # a machine has them, a container may not
T = TypeVar("T")

# $1: an empty folder for the mounts; the rest is systemd-nspawn's. `exec` keeps the pid that the test knows.
MAKE_DISK = """
set -e
mount -t tmpfs -o size=4g,mode=755 lab "$1"
mkdir "$1/changed" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/changed,workdir=$1/work" "$1/root"
: > "$1/root/etc/machine-id"
rm -f "$1"/root/etc/systemd/system/multi-user.target.wants/*
cd "$1"
shift
exec systemd-nspawn "$@"
"""


class CannotBootError(Exception):
    """This machine does not let us; says why."""


def missing() -> str:
    """Say what the lab lacks here, or nothing."""
    if os.geteuid() != 0:
        return "needs root"
    for tool in ("systemd-nspawn", "nsenter", "unshare", "setpriv", "systemd-analyze", SYSTEM_PYTHON):
        if shutil.which(tool) is None:
            return f"needs {tool}"
    usable = "import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))"
    if subprocess.run([SYSTEM_PYTHON, "-c", usable], capture_output=True, check=False).returncode != 0:
        return f"needs {SYSTEM_PYTHON} 3.11 to 3.13 with venv"
    return ""


def until(question: Callable[[], T], what: str, timeout_s: float = 20.0) -> T:
    """Ask until the answer is yes."""
    deadline = time.monotonic() + timeout_s
    while not (answer := question()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
        time.sleep(0.05)
    return answer


class Container:
    """A booted system. What the tests run in it, they run as its root."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="lenskeep-lab-", dir="/var/tmp"))
        binds = [f"--bind-ro={outside}:{inside}" for inside, outside in folders.items()]
        self._console = (self._folder / "console").open("wb")
        disk = self._folder / "disk"
        disk.mkdir()
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "sh", "-c", MAKE_DISK,
             "sh", disk, "--quiet", f"--directory={disk}/root", f"--machine=lab-{os.getpid()}", "--boot",
             "--register=no", "--keep-unit", "--private-network", "--console=pipe", *binds, f"--system-call-filter={MORE}",
             "systemd.unit=multi-user.target"],
            stdin=subprocess.DEVNULL, stdout=self._console, stderr=self._console, start_new_session=True,
        )  # fmt: skip
        self._changed = Path(f"/proc/{self._process.pid}/root{disk}/changed")
        self._leader = 0

    def boot(self) -> None:
        """Wait until systemd is up. Raises: CannotBootError."""
        deadline = time.monotonic() + BOOT_MAX_S
        while time.monotonic() < deadline and self._process.poll() is None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
            self._leader = int((children.read_text().split() or ["0"])[0])
            if self._leader and self._systemd_is_up():
                return
            time.sleep(0.05)
        said = (self._folder / "console").read_text(errors="replace").strip()[-400:]
        self.close()
        raise CannotBootError(f"the container does not boot here: {said}")

    def _systemd_is_up(self) -> bool:
        asked = subprocess.run(
            [*self._enter(), "systemctl", "is-system-running"], capture_output=True, text=True, check=False
        )
        return asked.stdout.strip() in ("running", "degraded")

    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self._leader}", "--mount", "--pid", "--ipc", "--uts", "--net", "--cgroup", "--"]

    def run(self, *words: str | int, fails: bool = False, timeout_s: float = 100.0) -> str:
        """Run a command inside and return what it printed; an unexpected exit code is a failed test."""
        done = subprocess.run(
            [*self._enter(), *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout_s, check=False,
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        )  # fmt: skip
        assert fails == (done.returncode != 0), f"{words} ended with {done.returncode}\n{done.stdout}"
        return done.stdout.strip()

    def network(self) -> list[str]:
        """Return the words that start a program of this side in the container's network."""
        return ["nsenter", f"--target={self._leader}", "--net", "--"]

    def path(self, inside: str) -> Path:
        """Return where this side sees a path of the container, sockets included."""
        return Path(f"/proc/{self._leader}/root{inside}")

    def changed(self, *folders: str) -> set[str]:
        """Return the files below these folders that differ from the machine's own."""
        return {
            f"/{path.relative_to(self._changed)}"
            for folder in folders
            for path in (self._changed / folder.lstrip("/")).rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def close(self) -> None:
        """Switch it off; the mounts go with it."""
        if self._leader:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._leader, signal.SIGKILL)  # its init: all of its processes end with it
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        self._console.close()
        shutil.rmtree(self._folder, ignore_errors=True)
