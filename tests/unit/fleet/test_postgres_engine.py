"""What an administrator gets wrong, and what a database does on a bad day: a clear fault, and nothing half done."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lenskeep.errors import ConfigError, DeviceError, LenskeepError, StoreBusyError, StoreUnreachableError
from lenskeep.fleet.store import dialect, postgres
from lenskeep.fleet.store.engine import steps
from lenskeep.fleet.store.opening import SCHEMA, check_address, open_engine, read_secret
from lenskeep.fleet.store.postgres import PostgresEngine, open_postgres
from tests.ports import free_port
from tests.postgresql import Postgres


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    started = Postgres()
    started.start()
    yield started
    started.close()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("SELECT a FROM b WHERE c = ? AND d = ?", "SELECT a FROM b WHERE c = $1 AND d = $2"),
        ("SELECT '?', ? FROM b WHERE c = 'it''s ?' OR d = ?", "SELECT '?', $1 FROM b WHERE c = 'it''s ?' OR d = $2"),
        ("SELECT 1", "SELECT 1"),
    ],
)
def test_marks_are_numbered_and_quoted_text_is_left_alone(ours: str, theirs: str) -> None:
    assert dialect.marks(ours) == theirs


def test_an_address_is_shown_without_user_password_and_parameters() -> None:
    assert dialect.place("postgresql://me:sesame@db.example:5433/fleet?sslmode=require") == "db.example:5433/fleet"


@pytest.mark.parametrize(
    "address", ["postgresql://u:sesame@h/d", "postgresql://h/d?password=sesame", "mysql://h/sesame", "postgresql://h", "sesame", "http://["]
)  # fmt: skip
def test_an_address_that_is_none_or_holds_a_password_is_refused_without_repeating_it(address: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_address(address)
    assert "sesame" not in str(caught.value)


def test_a_secret_comes_from_a_file_a_credential_or_the_environment(tmp_path: Path) -> None:
    (tmp_path / "db").write_text("sesame\n")
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path), "DB": "sesame"}
    assert {read_secret(word, environment, "k") for word in (f"{tmp_path}/db", "credential:db", "env:DB")} == {"sesame"}
    for word in ("env:NO", "credential:../db", "credential:no", f"{tmp_path}/no"):
        with pytest.raises(ConfigError):
            read_secret(word, environment, "k")


async def test_a_database_that_is_away_is_unreachable_and_its_password_is_in_no_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(postgres, "AGAIN_S", (0.01,))
    monkeypatch.setenv("DB", "sesame")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(StoreUnreachableError) as caught:
        async with open_engine(f"postgresql://me@127.0.0.1:{free_port()}/fleet", "env:DB", tmp_path / "x", os.environ):
            pass
    assert "sesame" not in str(caught.value) + caplog.text


async def test_a_database_that_is_not_there_is_the_configurations_fault(server: Postgres, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        async with open_engine(server.url("nowhere"), "", tmp_path / "x", {}):
            pass


async def test_a_fault_in_the_middle_leaves_nothing_and_the_door_open(server: Postgres) -> None:
    async with open_postgres(server.make(), None, SCHEMA) as engine:

        async def write(name: str, *, fails: bool) -> None:
            async with engine.write() as tx:
                await tx.run("INSERT INTO device_group VALUES (?, 'all')", name)
                await asyncio.sleep(0.01)
                if fails:
                    raise OSError("of the caller's own")

        said = await asyncio.gather(
            *(write(f"g{number}", fails=number % 2 == 0) for number in range(6)), return_exceptions=True
        )
        assert [type(each) for each in said] == [OSError, type(None)] * 3
        slow = asyncio.create_task(write("slow", fails=False))
        await asyncio.sleep(0.005)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        with pytest.raises(Exception, match="duplicate"):
            await write("g1", fails=False)
        async with engine.read() as tx:
            assert [row["name"] for row in await tx.all("SELECT name FROM device_group ORDER BY name")] == [
                "g1",
                "g3",
                "g5",
            ]


async def test_a_statement_whose_failure_was_caught_never_passes_for_a_commit(server: Postgres) -> None:
    async with open_postgres(server.make(), None, SCHEMA) as engine:
        with pytest.raises(RuntimeError, match="went on"):
            async with engine.write() as tx:
                await tx.run("INSERT INTO device_group VALUES ('a', 'all')")
                try:
                    await tx.run("INSERT INTO device_group VALUES ('a', 'all')")
                except Exception:
                    pass


async def test_read_and_write_at_two_replicas_never_lose_an_update(server: Postgres) -> None:
    url = server.make()
    async with open_postgres(url, None, SCHEMA) as one, open_postgres(url, None, SCHEMA) as two:
        async with one.write() as tx:
            await tx.run("INSERT INTO conductor VALUES (1, 'x', 0)")

        async def add(engine: PostgresEngine) -> None:
            async with engine.write() as tx:
                row = await tx.one("SELECT steady_ms FROM conductor WHERE id = 1")
                await tx.run("UPDATE conductor SET steady_ms = ? WHERE id = 1", row["steady_ms"] + 1)

        await asyncio.gather(*(add(engine) for engine in (one, two) for _ in range(40)))
        async with two.read() as tx:
            assert (await tx.one("SELECT steady_ms FROM conductor"))["steady_ms"] == 80


async def test_connections_that_a_restart_broke_are_replaced_and_news_is_heard_again(server: Postgres) -> None:
    url, heard = server.make(), asyncio.Event()
    async with open_postgres(url, None, SCHEMA) as one, open_postgres(url, None, SCHEMA) as two:
        two.listen("commands", lambda _device: heard.set())
        server.stop()
        server.start()
        async with one.write() as tx:
            await tx.tell("commands", "cam-1")
        async with asyncio.timeout(5):
            await heard.wait()


async def test_one_replica_leads_until_it_is_silent(server: Postgres) -> None:
    url = server.make()
    async with open_postgres(url, None, SCHEMA) as one, open_postgres(url, None, SCHEMA) as two:
        assert await one.lead("conductor", 0.4)
        assert not await two.lead("conductor", 0.4)
        assert await one.lead("conductor", 0.4)
        await asyncio.sleep(0.5)
        assert await two.lead("conductor", 5)
        assert not await one.lead("conductor", 5)


async def test_a_database_of_a_newer_version_is_refused(server: Postgres) -> None:
    url = server.make()
    async with open_postgres(url, None, SCHEMA) as engine, engine.write() as tx:
        await tx.run("INSERT INTO schema_step VALUES (9999, 'later')")
    with pytest.raises(DeviceError, match="newer"):
        async with open_postgres(url, None, SCHEMA):
            pass


async def test_a_step_that_another_replica_overtook_is_done_again_and_other_faults_are_not() -> None:
    class Memory:
        tried = 0

        async def busy(self) -> int:
            self.tried += 1
            if self.tried < 3:
                raise StoreBusyError("overtaken")
            return self.tried

        async def away(self) -> None:
            self.tried += 1
            raise StoreUnreachableError("away")

    memory = steps(Memory)()
    assert await memory.busy() == 3
    with pytest.raises(LenskeepError):
        await memory.away()
    assert memory.tried == 4


@pytest.mark.parametrize("turns", range(4))
async def test_a_server_that_stops_as_news_arrive_stops(server: Postgres, turns: int) -> None:
    """The moment between the news and the end decides, so several are tried."""
    async with asyncio.timeout(20), open_postgres(server.make(), None, SCHEMA) as engine:
        await asyncio.sleep(0.1)
        engine._wake()
        for _ in range(turns):
            await asyncio.sleep(0)
