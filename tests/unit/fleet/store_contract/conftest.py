"""The engines and blob stores that the contract is held against; each a real one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from lenskeep.fleet.config import Storage
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.opening import open_engine
from tests.objectstore import KEY_ID, SECRET, ObjectStore
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


@pytest.fixture(scope="session")
def objects() -> Iterator[ObjectStore]:
    server = ObjectStore()
    server.start()
    yield server
    server.close()


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Where files are kept, empty, as the configuration says it."""
    if request.param == "folder":
        return Storage(blobs=f"file://{tmp_path}/shelf")
    objects = request.getfixturevalue("objects")
    (tmp_path / "secret").write_text(SECRET)
    return Storage(
        blobs=objects.make(), blobs_endpoint=objects.endpoint, blobs_key_id=KEY_ID, blobs_secret=f"{tmp_path}/secret"
    )
