"""What an installation without a network brings along: the libraries of the lock file and wheels of this checkout."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.lab.container import SYSTEM_PYTHON

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ("requirements.lock", "requirements-fleet-replicas.lock")  # the fleet's smaller one is part of the last
SOURCES = ("src", "config", "pyproject.toml", "README.md")


class NoWheelsError(Exception):
    """They cannot be had here; says why."""


def libraries() -> Path:
    """Return a folder with the libraries that the locks of device and fleet name, fetched once for each state of them.

    Raises: NoWheelsError without a network.
    """
    digest = hashlib.sha256(b"".join((ROOT / lock).read_bytes() for lock in LOCKS)).hexdigest()[:16]
    folder = Path(tempfile.gettempdir()) / f"lenskeep-lab-wheels-{digest}"
    if folder.is_dir():
        return folder
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    _run(SYSTEM_PYTHON, "-m", "venv", part / "venv")
    for lock in LOCKS:
        _pip(
            part,
            "download",
            "--only-binary=:all:",
            "--require-hashes",
            "--no-deps",
            "-r",
            ROOT / lock,
            "-d",
            part / "libraries",
        )
    _pip(part, "install", "hatchling>=1.27")
    part.replace(folder)
    return folder


def build(libraries_folder: Path, into: Path, version: str, spoil: str = "") -> Path:
    """Build a wheel of this checkout under another version number.

    Args:
        spoil: code that is appended to the daemon's and to the fleet's; such a release also has a database of its own shape.
    """
    source = into / f"source-{version}"
    source.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    project = source / "pyproject.toml"
    lines = project.read_text().splitlines(keepends=True)
    project.write_text("".join(f'version = "{version}"\n' if line.startswith("version = ") else line for line in lines))
    if spoil:
        for app in (source / "src/lenskeep/daemon/app.py", source / "src/lenskeep/fleet/app.py"):
            app.write_text(f"{app.read_text()}\n{spoil}\n")
        (source / "src/lenskeep/fleet/store/schema/0999_later.sql").write_text("CREATE TABLE later (a INTEGER);\n")
    _pip(libraries_folder, "wheel", "--no-build-isolation", "--no-deps", "-w", into, source)
    return next(into.glob(f"lenskeep-{version}-*.whl"))


def _pip(folder: Path, *words: str | Path) -> None:
    # a venv that was moved still runs its Python; only its scripts name the old place
    _run(folder / "venv/bin/python", "-m", "pip", "--quiet", "--disable-pip-version-check", *words)


def _run(*words: str | Path) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoWheelsError(f"{' '.join(map(str, words[:4]))}: {done.stderr.strip()[-300:]}")
