"""A pocket device behind the real server, and clients for both of its doors."""

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from lenskeep.config import Config
from tests.pocketdevice import PocketDevice, configuration, served


@pytest.fixture
def device() -> PocketDevice:
    return PocketDevice()


@pytest.fixture
def config() -> Config:
    return configuration()


@pytest.fixture
async def socket_path(device: PocketDevice, config: Config, tmp_path: Path) -> AsyncIterator[Path]:
    async with served(device, config, tmp_path) as path:
        yield path


@pytest.fixture
async def unix(socket_path: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """The technician's own terminal: an administrator."""
    async with aiohttp.ClientSession("http://lenskeep", connector=aiohttp.UnixConnector(str(socket_path))) as session:
        yield session


@pytest.fixture
async def tcp(socket_path: Path, config: Config) -> AsyncIterator[aiohttp.ClientSession]:
    """Somebody on this machine without a token."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{config.control.port}") as session:
        yield session
