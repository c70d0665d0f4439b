"""The command line run in this process against a pocket device behind its real server."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct

from lenskeep.cli.client import Client
from lenskeep.cli.main import run
from lenskeep.cli.wire import Address
from tests.pocketdevice import PocketDevice, configuration, served


class Said(Struct):
    """What a command printed and how it ended."""

    code: int
    out: str
    err: str


class Desk:
    """A device that runs in a thread of its own, and the command line in front of it."""

    def __init__(self, folder: Path) -> None:
        self.device = PocketDevice()
        self.config = configuration()
        self.socket = folder / "lenskeep.sock"
        self.url = f"http://127.0.0.1:{self.config.control.port}"
        self.client = Client(Address(path=self.socket))
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._ready, self._stop = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    async def _serve(self) -> None:
        async with served(self.device, self.config, self._folder):
            self._ready.set()
            await self._stop.wait()

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def soon(self, call: Callable[..., Any], *arguments: Any) -> None:
        """Let something happen on the device."""
        self._loop.call_soon_threadsafe(call, *arguments)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    desk.start()
    yield desk
    desk.close()


@pytest.fixture
def lenskeep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run one command line, as a shell without a terminal would."""

    def call(*words: str, **environment: str) -> Said:
        capsys.readouterr()
        there = {"LENSKEEP_DEVICE": str(tmp_path / "lenskeep.sock"), "TZ": "UTC"}
        code = run(words, there | environment)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call
