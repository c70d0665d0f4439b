"""One booted system for all tests of the lab; they use it in the order in which they are written."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import wheels
from tests.lab.container import CannotBootError, Container, missing
from tests.lab.host import Host

ENDS = """
def _end(*_): raise OSError("a disk that only the new release minds")
globals()["_hear" if "_hear" in globals() else "_build"] = _end
"""
RELEASES = {"0.1.1": "", "0.1.2": "", "0.1.3": "import lenskeep.nowhere", "0.1.4": ENDS}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with releases that work, one that cannot be loaded, and one that ends once its database is open."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("releases")
    try:
        libraries = wheels.libraries()
        for version, spoil in RELEASES.items():
            wheels.build(libraries, folder, version, spoil)
    except wheels.NoWheelsError as error:
        pytest.skip(f"needs the libraries: {error}")
    return folder


@pytest.fixture(scope="session")
def host(built: Path) -> Iterator[Host]:
    """A booted system with nothing of ours on it yet."""
    container = Container(
        {"/checkout": wheels.ROOT, "/libraries": wheels.libraries() / "libraries", "/releases": built}
    )
    try:
        container.boot()
    except CannotBootError as error:
        pytest.skip(str(error))
    yield Host(container)
    container.close()
