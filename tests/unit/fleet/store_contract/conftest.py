"""The engines and blob stores that the contract is held against; each a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.opening import open_engine
from tests.postgresql import Postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    server.start()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest) -> str:
    """Where an empty database is, as the configuration says it."""
    return "sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres").make()


@pytest.fixture
async def engine(address: str, tmp_path: Path) -> AsyncIterator[Engine]:
    async with open_engine(address, "", tmp_path / "fleet.sqlite", {}) as opened:
        yield opened
