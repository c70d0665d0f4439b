"""A real PostgreSQL for tests: a cluster of its own in a folder, ended with whoever started it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.ports import free_port

_PLACES = [*sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]


def programs() -> Path | None:
    """The folder of PostgreSQL's programs."""
    found = shutil.which("initdb")
    places = [*_PLACES, *([Path(found).resolve().parent] if found else [])]
    return next((place for place in places if (place / "initdb").exists() and (place / "createdb").exists()), None)


class Postgres:
    """One server on loopback, in a folder that its user may reach."""

    def __init__(self, *, durable: bool = False) -> None:
        found = programs()
        if found is None:
            pytest.skip("PostgreSQL's programs are not installed (apt: postgresql)")
        self._programs = found
        self.folder = Path(tempfile.mkdtemp(prefix="lenskeep-postgresql-"))
        self.port = free_port()
        self.durable = durable
        self._names = 0
        if os.getuid() == 0:
            try:
                user = pwd.getpwnam("postgres")
            except KeyError:
                pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self._run(
            "initdb",
            "-D",
            self.folder / "data",
            "-A",
            "trust",
            "-U",
            "postgres",
            "--no-sync",
            "--locale=C",
            "-E",
            "UTF8",
        )

    def _run(self, program: str, *words: object) -> None:
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        done = subprocess.run(
            [*user, self._programs / program, *map(str, words)],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == 0, done.stdout.decode()

    def start(self, *more: str) -> None:
        """Start it; `more` are settings, e.g. "ssl=on"."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        options += " -c max_connections=60" + ("" if self.durable else " -c fsync=off")
        options += "".join(f" -c {setting}" for setting in more)
        with (self.folder / "out").open("ab") as out:
            user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
            words = [
                self._programs / "pg_ctl",
                "-D",
                self.folder / "data",
                "-w",
                "-o",
                options,
                "-l",
                self.folder / "log",
                "start",
            ]
            done = subprocess.run([*user, *map(str, words)], cwd=self.folder, stdout=out, stderr=out)
        assert done.returncode == 0, (self.folder / "log").read_text()

    def stop(self) -> None:
        if (self.folder / "data" / "postmaster.pid").exists():
            self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def own(self, path: Path, mode: int) -> None:
        """Give a file to the server's user."""
        path.chmod(mode)
        if os.getuid() == 0:
            user = pwd.getpwnam("postgres")
            os.chown(path, user.pw_uid, user.pw_gid)

    def kill(self) -> None:
        """kill -9, of the server and of what it started."""
        leader = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        children = [int(pid) for pid in Path(f"/proc/{leader}/task/{leader}/children").read_text().split()]
        for pid in (leader, *children):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        deadline = time.monotonic() + 10
        while any(
            Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]
            for pid in (leader, *children)
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for left in (self.folder / "data" / "postmaster.pid", *self.folder.glob(".s.PGSQL.*")):
            left.unlink(missing_ok=True)  # where nobody reaps the dead, the new server thinks that the old one lives

    def make(self) -> str:
        """Make an empty database and return its address."""
        self._names += 1
        name = f"fleet{self._names}"
        self._run("createdb", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", name)
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"
