"""Moves, backups and restores: nothing is lost, nothing is mixed, and what goes wrong changes nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from lenskeep.database import schema_tables
from lenskeep.errors import StoreNotEmptyError
from lenskeep.fleet.store.copying import copy
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.opening import SCHEMA, open_engine
from lenskeep.fleet.store.sqlite import open_sqlite
from tests.fleetstore import NOW_MS, Filled, report
from tests.postgresql import Postgres

PASSPHRASE = "correct horse battery"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_copy_in_either_direction_answers_every_question_as_before(
    engine: Engine, kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    filled = Filled(engine)
    await filled.fill()
    target = "sqlite" if kind == "sqlite" else request.getfixturevalue("postgres").make()
    async with open_engine(target, "", tmp_path / "target.sqlite", {}) as other:
        tallies = await copy(engine, other)
        assert {tally.table for tally in tallies if tally.rows} >= {
            "device",
            "report",
            "inbox",
            "telemetry",
            "rollout_step",
        }
        asked, copied = await Filled(engine).look(), Filled(other)
        told = await copied.look()
        for name, answer in asked.items():
            if name != "happenings":  # a NUL in a text becomes the replacement sign in every copy
                assert told[name] == answer, name
        # it goes on: numbers that the engine gives are above those that were brought
        await copied.store.note_alarm("cam-2", "LK-7000", "new", now_ms=NOW_MS + 99)
        assert len(await copied.store.deeds(1000)) == len(asked["deeds"])
        await copied.store.revoke("cam-2", reason="r", by="ann", now_ms=NOW_MS + 99)
        with pytest.raises(StoreNotEmptyError):
            await copy(engine, other)


async def test_a_copy_that_breaks_off_leaves_the_target_empty(postgres: Postgres, tmp_path: Path) -> None:
    async with open_sqlite(tmp_path / "fleet.sqlite", SCHEMA) as source:
        await Filled(source).fill()
        async with open_engine(postgres.make(), "", tmp_path / "x", {}) as target:
            seen: list[str] = []

            def told(tally: object) -> None:
                seen.append(str(tally))
                if len(seen) == 8:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                await copy(source, target, told)
            async with target.read() as tx:
                for table in schema_tables(SCHEMA):
                    assert await tx.one(f"SELECT 1 FROM {table.name} LIMIT 1") is None
            assert len(await copy(source, target)) == len(schema_tables(SCHEMA))


async def test_a_copy_is_one_moment_though_the_source_goes_on(postgres: Postgres, tmp_path: Path) -> None:
    async with (
        open_engine(postgres.make(), "", tmp_path / "x", {}) as source,
        open_sqlite(tmp_path / "copy.sqlite", SCHEMA) as target,
    ):
        filled = Filled(source)
        await filled.fill()
        written = 0

        async def during() -> None:
            nonlocal written
            written += 1
            await filled.store.take(report("cam-2", 100 + written), now_ms=NOW_MS, kept=500)

        before = len(await filled.store.devices())
        async with source.snapshot() as seen:
            async for _ in seen.rows("device", ["name"]):
                await during()
            counted = [len(rows) async for rows in seen.rows("report", ["counter"])]
        await copy(source, target)
        assert sum(counted) + written == sum([len(rows) async for rows in _rows(target)])
        assert len(await Filled(target).store.devices()) == before


async def _rows(engine: Engine):  # type: ignore[no-untyped-def]
    async with engine.snapshot() as seen:
        async for rows in seen.rows("report", ["counter"]):
            yield rows


class Machine:
    """A fleet's machine, as its administrator uses it."""

    def __init__(self, folder: Path, database: str = "sqlite") -> None:
        self.folder = folder
        folder.mkdir()
        self.config = folder / "fleet.toml"
        self.config.write_text(
            f'[storage]\nstate_dir = "{folder}/state"\nruntime_dir = "{folder}/run"\ndatabase = "{database}"\n'
        )
        self.database = folder / "state" / "fleet.sqlite"

    def do(self, *words: str, code: int = 0) -> str:
        command = [sys.executable, "-m", "lenskeep.cli.main", "fleet", *words, "--config", str(self.config)]
        environment = os.environ | {"LENSKEEP_PASSPHRASE": PASSPHRASE, "WRONG": "wrong but long enough"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def authority(self) -> Path:
        folder = self.folder / "state" / "authority"
        script = (
            "import sys,pathlib;from lenskeep.clock import Clock;from lenskeep.fleet.authority import open_authority;"
            "open_authority(pathlib.Path(sys.argv[1]), Clock(), 365)"
        )
        subprocess.run([sys.executable, "-c", script, folder], check=True)
        return folder


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_a_backup_brings_a_lost_fleet_back_with_its_authority(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    database = "sqlite" if kind == "sqlite" else request.getfixturevalue("postgres").make()
    old = Machine(tmp_path / "old", database)
    authority = old.authority()
    async with open_engine(database, "", old.database, {}) as engine:
        await Filled(engine).fill()
        asked = await Filled(engine).look()
    said = old.do("backup", str(tmp_path / "fleet.lkf"), "--passphrase", "env:LENSKEEP_PASSPHRASE")
    assert "the same" in said
    assert "LK-2" not in old.do("backup", str(tmp_path / "fleet.lkf"), code=1)  # never overwritten
    assert b"PRIVATE KEY-----" in (tmp_path / "fleet.lkf").read_bytes()
    assert (authority / "authority.key").read_bytes() not in (tmp_path / "fleet.lkf").read_bytes()
    assert (tmp_path / "fleet.lkf").stat().st_mode & 0o077 == 0

    new = Machine(tmp_path / "new", "sqlite" if kind == "sqlite" else request.getfixturevalue("postgres").make())
    new.do("restore", str(tmp_path / "fleet.lkf"), "--passphrase", "env:WRONG", code=1)
    new.do("restore", str(tmp_path / "fleet.lkf"), "--passphrase", "env:LENSKEEP_PASSPHRASE")
    new.do("restore", str(tmp_path / "fleet.lkf"), code=1)  # not empty any more
    assert (new.folder / "state/authority/authority.key").read_bytes() == (authority / "authority.key").read_bytes()
    text = new.config.read_text()
    address = text.split('database = "')[1].split('"')[0]
    async with open_engine(address, "", new.database, {}) as engine:
        told = await Filled(engine).look()
    for name, answer in asked.items():
        if name != "happenings":
            assert told[name] == answer, name


async def test_a_move_says_what_was_copied_and_refuses_a_database_in_use(postgres: Postgres, tmp_path: Path) -> None:
    machine = Machine(tmp_path / "fleet")
    async with open_sqlite(machine.database, SCHEMA) as engine:
        await Filled(engine).fill()
    target = postgres.make()
    said = json.loads(machine.do("migrate", "--from", "sqlite", "--to", target, "--json"))
    with closing(sqlite3.connect(machine.database)) as file, file:
        for table, told in said["tables"].items():
            assert file.execute(f"SELECT count(*) FROM {table}").fetchone()[0] == told["rows"], table
    assert "LK-7043" in machine.do("migrate", "--from", "sqlite", "--to", target, code=1)


@pytest.mark.parametrize("spoiled", [b"", b"no database at all" * 100, b"SQLite format 3\0" + b"\1" * 5000])
def test_a_backup_that_is_none_is_refused(spoiled: bytes, tmp_path: Path) -> None:
    (tmp_path / "spoiled.lkf").write_bytes(spoiled)
    said = Machine(tmp_path / "fleet").do("restore", str(tmp_path / "spoiled.lkf"), code=1)
    assert said.startswith("LK-")


def test_a_password_in_an_address_is_refused_and_never_repeated(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "fleet", "postgresql://me:sesame@127.0.0.1:1/fleet")
    said = machine.do("backup", str(tmp_path / "b.lkf"), code=1)
    assert "LK-1010" in said
    assert "sesame" not in said
