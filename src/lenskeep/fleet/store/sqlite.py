"""The fleet's store in one SQLite file, for one server process: news and the lead stay inside it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lenskeep import database
from lenskeep.database import Database, open_database
from lenskeep.fleet.store.engine import Channel, News, Told

ROWS_AT_ONCE = 1000
CACHE_KIB = 32 << 10
INSERTED_AT_ONCE = (50, 10)
_INSERT = re.compile(r"(INSERT INTO .+? VALUES )(\([?, ]+\))(.*)", re.DOTALL)


class SqliteTransaction(database.Transaction):
    """A transaction that remembers what to tell after it."""

    def __init__(self, opened: database.Transaction) -> None:
        super().__init__(opened.connection)
        self.told: list[tuple[Channel, str]] = []

    async def many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """Execute one statement for every row; rows that are inserted go in by groups.

        Each statement that ends gives the interpreter away and has to get it back from the busy loop, while the door
        is closed for others: row by row that took most of a transaction's time.
        """
        left = list(rows)
        head, marks, tail = found.groups() if (found := _INSERT.fullmatch(sql)) else ("", "", "")
        for size in INSERTED_AT_ONCE if head else ():
            while len(left) >= size:
                some, left = left[:size], left[size:]
                await self.run(f"{head}{', '.join([marks] * size)}{tail}", *(value for row in some for value in row))
        if left:
            await super().many(sql, left)

    async def tell(self, channel: Channel, subject: str = "") -> None:
        """Tell this process once it is committed."""
        self.told.append((channel, subject))

    async def count_on(self, table: str, column: str) -> None:
        """Nothing is to be done: SQLite counts on from the highest number that it has."""

    async def rows(self, table: str, columns: Sequence[str]) -> AsyncIterator[list[tuple[Any, ...]]]:
        """Give the rows of a whole table, many at a time."""
        sql = f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608 - names from our own schema
        async with self.connection.execute(sql) as cursor:
            while found := list(await cursor.fetchmany(ROWS_AT_ONCE)):
                yield [tuple(row) for row in found]


class SqliteEngine:
    """An open file; made by `open_sqlite`."""

    def __init__(self, opened: Database) -> None:
        self._database = opened
        self._news = News()

    @property
    def path(self) -> Path:
        """The file."""
        return self._database.path

    @asynccontextmanager
    async def write(self) -> AsyncIterator[SqliteTransaction]:
        """Change things, whole or not at all."""
        async with self._database.write() as opened:
            tx = SqliteTransaction(opened)
            yield tx
        for channel, subject in tx.told:
            self._news.deliver(channel, subject)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[SqliteTransaction]:
        """Look at what is committed."""
        async with self._database.read() as tx:
            yield SqliteTransaction(tx)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[SqliteTransaction]:
        """Look at everything as it was at one moment; for a process that does nothing else with the file."""
        async with self._database.read() as tx:
            await tx.connection.execute("BEGIN")
            try:
                yield SqliteTransaction(tx)
            finally:
                await tx.connection.execute("ROLLBACK")

    def listen(self, channel: Channel, told: Told) -> None:
        """Call this for news of a channel."""
        self._news.listen(channel, told)

    async def lead(self, name: str, seconds: float) -> bool:  # noqa: ARG002 - there is nobody else
        """Lead: a file has one server."""
        return True


@asynccontextmanager
async def open_sqlite(path: Path, schema: str) -> AsyncIterator[SqliteEngine]:
    """Open the file and bring its schema up to date. Raises: RegistryCorruptError, StorageError, StorageFullError."""
    async with open_database(path, schema, cache_kib=CACHE_KIB) as opened:
        yield SqliteEngine(opened)
