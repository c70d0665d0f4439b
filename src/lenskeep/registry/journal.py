"""Operations, answers already given (idempotency), and counters: what makes requests safe to repeat.

What is oldest is known by the order of its rows, never by a time.
"""

from __future__ import annotations

import msgspec

from lenskeep.database import Row, Transaction
from lenskeep.messages.control import Operation

KEEP_OPERATIONS = 500
KEEP_ANSWERS_MS = 24 * 3600 * 1000
KEEP_ANSWERS = 2000  # also those that a clock ahead of time has stamped


async def save_operation(tx: Transaction, operation: Operation, *, started_ms: int) -> None:
    """Write an operation as it is now and forget the oldest ones."""
    await tx.run(
        "INSERT INTO operation VALUES (?, ?, ?, ?)"
        " ON CONFLICT (id) DO UPDATE SET state = excluded.state, body = excluded.body",
        operation.id, started_ms, operation.state, msgspec.json.encode(operation).decode(),
    )  # fmt: skip
    await tx.run(
        "DELETE FROM operation WHERE id IN (SELECT id FROM operation ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
        KEEP_OPERATIONS,
    )


async def operations(tx: Transaction, limit: int = KEEP_OPERATIONS) -> list[Operation]:
    """Return operations, newest first."""
    rows = await tx.all("SELECT body FROM operation ORDER BY rowid DESC LIMIT ?", limit)
    return [msgspec.json.decode(row["body"], type=Operation) for row in rows]


async def answer(tx: Transaction, key: str) -> Row | None:
    """Return the answer that a request with this Idempotency-Key got."""
    return await tx.one("SELECT * FROM idempotency WHERE key = ?", key)


async def save_answer(
    tx: Transaction, key: str, *, body_sha256: str, status: int, body: bytes, at_ms: int, clock_trusted: bool = True
) -> None:
    """Keep an answer for a day; while the clock is not trusted, none is forgotten for its age."""
    await tx.run("INSERT OR REPLACE INTO idempotency VALUES (?, ?, ?, ?, ?)", key, body_sha256, status, body, at_ms)
    if clock_trusted:
        await tx.run("DELETE FROM idempotency WHERE at_ms < ?", at_ms - KEEP_ANSWERS_MS)
    await tx.run(
        "DELETE FROM idempotency WHERE rowid IN (SELECT rowid FROM idempotency ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
        KEEP_ANSWERS,
    )


async def note(tx: Transaction, name: str, value: int) -> None:
    """Set a counter."""
    await tx.run("INSERT OR REPLACE INTO counter VALUES (?, ?)", name, value)


async def noted(tx: Transaction, name: str) -> int:
    """Return a counter; 0 when it was never set."""
    row = await tx.one("SELECT value FROM counter WHERE name = ?", name)
    return 0 if row is None else int(row["value"])


async def count_up(tx: Transaction, name: str) -> int:
    """Raise a counter by one and return it."""
    row = await tx.one(
        "INSERT INTO counter VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
        name,
    )
    assert row is not None
    return int(row["value"])
