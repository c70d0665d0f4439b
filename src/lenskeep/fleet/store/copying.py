"""Copies a whole fleet's memory from one engine into another: the way of migrations, backups and restores.

Rules. What is copied is one moment of the source. The target must be empty, and all of it is there at the end or none:
one transaction. Before that transaction ends, every table is read back and compared, by its count and by a digest that
does not depend on the order of rows. A backup is an SQLite file whatever the engine, so any engine can be filled from
it, and any SQLite tool can look into it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lenskeep.database import Table, schema_tables
from lenskeep.errors import CopyMismatchError, StoreNotEmptyError
from lenskeep.fleet.store.engine import Engine, Transaction, WriteTransaction
from lenskeep.fleet.store.opening import SCHEMA

_encode = msgspec.msgpack.Encoder().encode
_MODULUS = 1 << 256


@dataclass(slots=True)
class Tally:
    """Count and digest of a table."""

    table: str
    rows: int = 0
    digest: int = field(default=0)

    def add(self, rows: list[tuple[Any, ...]]) -> None:
        """Count rows in, in any order."""
        self.rows += len(rows)
        for row in rows:
            self.digest += int.from_bytes(hashlib.sha256(_encode(row)).digest())
        self.digest %= _MODULUS

    @property
    def sha256(self) -> str:
        """The digest as people are shown it."""
        return f"{self.digest:064x}"


async def copy(source: Engine, target: Engine, told: Callable[[Tally], None] = lambda _tally: None) -> list[Tally]:
    """Copy everything and return what was copied, table by table; `told` hears of each.

    Raises: StoreNotEmptyError, CopyMismatchError, StoreUnreachableError, StorageFullError; then nothing is changed.
    """
    tallies = []
    async with source.snapshot() as seen, target.write() as tx:
        tables = schema_tables(SCHEMA)
        for table in tables:
            if await tx.one(f"SELECT 1 FROM {table.name} LIMIT 1") is not None:  # noqa: S608
                raise StoreNotEmptyError(f"The table {table.name} of the target holds something. Nothing was changed.")
        for table in tables:
            tally = await _copy_table(table, seen, tx)
            tallies.append(tally)
            told(tally)
    return tallies


async def _copy_table(table: Table, seen: Transaction, tx: WriteTransaction) -> Tally:
    marks = ", ".join("?" * len(table.columns))
    sql = f"INSERT INTO {table.name} ({', '.join(table.columns)}) VALUES ({marks})"  # noqa: S608 - our own schema
    read, written = Tally(table.name), Tally(table.name)
    async for rows in seen.rows(table.name, table.columns):
        plain = [_plain(row) for row in rows]
        read.add(plain)
        await tx.many(sql, plain)
    if table.numbered:
        await tx.count_on(table.name, table.numbered)
    async for rows in tx.rows(table.name, table.columns):
        written.add([tuple(row) for row in rows])
    if read != written:
        raise CopyMismatchError(
            f"{table.name}: {read.rows} rows ({read.sha256[:12]}…) were read, {written.rows} ({written.sha256[:12]}…)"
            " are in the copy. The target was left as it was."
        )
    return read


def _plain(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Replace the one thing that not every engine can keep: a NUL within a text."""
    if any(isinstance(value, str) and "\0" in value for value in row):
        return tuple(value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in row)
    return row
