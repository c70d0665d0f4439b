"""The record of every state change: who, what, when (both clocks), why, before and after. Rows are only ever added."""

from __future__ import annotations

from lenskeep.clock import Clock
from lenskeep.database import Row, Transaction


async def add(
    tx: Transaction,
    clock: Clock,
    *,
    by: str,
    action: str,
    subject: str,
    reason: str = "",
    before: str = "",
    after: str = "",
) -> int:
    """Add one entry in the transaction of the change that it records; return its sequence."""
    return await tx.insert(
        "INSERT INTO audit (at_ms, monotonic_s, clock_trusted, actor, action, subject, reason, before, after)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        clock.now_ms(), clock.monotonic_s(), clock.trusted(), by, action, subject, reason, before, after,
    )  # fmt: skip


async def page(tx: Transaction, *, limit: int, before: int | None = None) -> list[Row]:
    """Return entries, newest first."""
    return await tx.all(
        "SELECT * FROM audit WHERE (?1 IS NULL OR sequence < ?1) ORDER BY sequence DESC LIMIT ?2",
        before,
        limit,
    )
