"""What tests of several rooms share."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.device import Device


@pytest.fixture
def make_device() -> Iterator[Callable[..., Device]]:
    """Make devices in short folders (sockets need short paths) and end them afterwards."""
    made: list[Device] = []

    def make(**words: Any) -> Device:
        device = Device(Path(tempfile.mkdtemp(prefix="lk-")), **words)
        made.append(device)
        return device

    yield make
    for device in made:
        device.close()
        shutil.rmtree(device.folder, ignore_errors=True)


@pytest.fixture
def device(make_device: Callable[..., Device]) -> Device:
    """A running device that trusts the key of the tiny bundles."""
    started = make_device()
    started.start()
    started.trust()
    return started
