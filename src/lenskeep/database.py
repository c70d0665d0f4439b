"""One SQLite file with one write door, a second connection for reading, and numbered schema steps.

Rules. Every change goes through `async with database.write() as tx`: a lock, then BEGIN IMMEDIATE; nothing slow is
awaited inside. Two coroutines that share one connection without the lock roll each other's work back. SQLite's own
exceptions are translated here and nowhere else. WAL always; `synchronous=FULL` unless the caller says otherwise, so
that what was committed survives a power cut.
"""

from __future__ import annotations

import asyncio
import re
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import aiosqlite

from lenskeep.errors import DeviceError, RegistryCorruptError, StorageError, StorageFullError

Row = sqlite3.Row


class Transaction:
    """What may be done between BEGIN and COMMIT."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection

    async def run(self, sql: str, *values: Any) -> int:
        """Execute one statement and return how many rows it changed."""
        cursor = await self.connection.execute(sql, values)
        return cursor.rowcount

    async def insert(self, sql: str, *values: Any) -> int:
        """Execute one INSERT and return the new row's id."""
        cursor = await self.connection.execute(sql, values)
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    async def many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute one statement for every row."""
        await self.connection.executemany(sql, rows)

    async def one(self, sql: str, *values: Any) -> Row | None:
        """Return the first row, or None."""
        cursor = await self.connection.execute(sql, values)
        return await cursor.fetchone()

    async def all(self, sql: str, *values: Any) -> list[Row]:
        """Return every row."""
        cursor = await self.connection.execute(sql, values)
        return list(await cursor.fetchall())


class Database:
    """An open database; made by `open_database`."""

    def __init__(self, path: Path, writer: aiosqlite.Connection, reader: aiosqlite.Connection) -> None:
        self.path = path
        self._writer = writer
        self._reader = reader
        self._door = asyncio.Lock()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[Transaction]:
        """Change things: all of it is durable when the block ends, or none of it happened."""
        async with self._door:
            with _translated(self.path):
                await self._writer.execute("BEGIN IMMEDIATE")
                try:
                    yield Transaction(self._writer)
                    await self._writer.execute("COMMIT")
                except BaseException:
                    # also for a cancelled task: the next writer must find no open transaction
                    if self._writer.in_transaction:
                        await asyncio.shield(self._writer.execute("ROLLBACK"))
                    raise

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """Look at the newest committed state; never waits for a writer."""
        with _translated(self.path):
            yield Transaction(self._reader)


@asynccontextmanager
async def open_database(
    path: Path, schema: str, *, synchronous: Literal["FULL", "NORMAL"] = "FULL", cache_kib: int = 256
) -> AsyncIterator[Database]:
    """Open a database file, check it, and bring its schema up to date.

    Args:
        schema: the package that holds the numbered steps, e.g. `lenskeep.registry.schema`.
        cache_kib: pages held in memory; a quarter of it, 1 MB at least, is written before they go into the file.
    Raises: RegistryCorruptError when the file is not a sound database; StorageError, StorageFullError.
    """
    with _translated(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        async with aiosqlite.connect(path, isolation_level=None) as writer:
            await _prepare(writer, synchronous, cache_kib)
            await _check(writer, path)
            await _migrate(writer, schema)
            async with aiosqlite.connect(path, isolation_level=None) as reader:
                await _prepare(reader, synchronous, cache_kib)
                await reader.execute("PRAGMA query_only=ON")
                yield Database(path, writer, reader)


async def _prepare(connection: aiosqlite.Connection, synchronous: str, cache_kib: int) -> None:
    connection.row_factory = sqlite3.Row
    checkpoint_kib = max(1024, cache_kib // 4)
    for pragma in (
        "busy_timeout=5000",
        "journal_mode=WAL",
        f"synchronous={synchronous}",
        "foreign_keys=ON",
        f"cache_size=-{cache_kib}",
        f"wal_autocheckpoint={checkpoint_kib // 4}",
        f"journal_size_limit={checkpoint_kib * 4096}",
    ):
        await connection.execute(f"PRAGMA {pragma}")


async def _check(connection: aiosqlite.Connection, path: Path) -> None:
    rows = list(await (await connection.execute("PRAGMA quick_check(1)")).fetchall())
    if not rows or rows[0][0] != "ok":
        raise RegistryCorruptError(f"{path} is damaged: {rows[0][0] if rows else 'no answer'}.")


async def _migrate(connection: aiosqlite.Connection, schema: str) -> None:
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS schema_step (number INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT"
    )
    rows = await (await connection.execute("SELECT number FROM schema_step")).fetchall()
    done = {row[0] for row in rows}
    steps = {int(name[:4]): name for name in _step_names(schema)}
    if done and max(done) > max(steps):
        raise DeviceError(
            "The registry was written by a newer version of Lenskeep.",
            hint="Install that version again, or a newer one.",
        )
    for number in sorted(set(steps) - done):
        text = (resources.files(schema) / steps[number]).read_text(encoding="utf-8")
        await connection.execute("BEGIN IMMEDIATE")
        for statement in _statements(text):
            await connection.execute(statement)
        await connection.execute("INSERT INTO schema_step VALUES (?, ?)", (number, steps[number]))
        await connection.execute("COMMIT")


def schema_steps(schema: str) -> dict[int, tuple[str, list[str]]]:
    """Return the numbered steps of a schema: the name and the statements of each."""
    texts = {name: (resources.files(schema) / name).read_text(encoding="utf-8") for name in _step_names(schema)}
    return {int(name[:4]): (name, list(_statements(text))) for name, text in sorted(texts.items())}


@contextmanager
def raw(path: Path, *, read_only: bool = False) -> Iterator[sqlite3.Connection]:
    """Open a file as it is, for work beside the service; blocks. Raises: RegistryCorruptError, StorageError."""
    with _translated(path):
        place = f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}"
        with closing(sqlite3.connect(place, uri=True)) as connection:
            yield connection


@dataclass(frozen=True, slots=True)
class Table:
    """A table of a schema, with its columns in their order."""

    name: str
    columns: tuple[str, ...]
    numbered: str  # the column whose numbers the engine gives; empty = none


def schema_tables(schema: str) -> list[Table]:
    """Return the tables that the steps of a schema make; those that others refer to come before them."""
    with closing(sqlite3.connect(":memory:")) as scratch:
        for _, statements in schema_steps(schema).values():
            for statement in statements:
                scratch.execute(statement)
        made = scratch.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY rowid").fetchall()
        found = []
        for name, sql in made:
            columns = [row[1] for row in scratch.execute(f"PRAGMA table_info({name})")]
            numbered = re.search(r"(\w+) INTEGER PRIMARY KEY", sql)
            found.append(Table(name, tuple(columns), numbered[1] if numbered else ""))
        return found


def _step_names(schema: str) -> Iterator[str]:
    return (entry.name for entry in resources.files(schema).iterdir() if entry.name.endswith(".sql"))


def _statements(text: str) -> Iterator[str]:
    statement = ""
    for line in text.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            raise StorageFullError(
                f"The disk is full; {path.name} could not be written. Nothing was changed."
            ) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise RegistryCorruptError(f"{path} is damaged: {error}.") from error
        if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise StorageError(f"{path} cannot be written: {error}.") from error
        raise
