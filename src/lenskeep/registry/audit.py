"""The record of every state change, as rows: who, what, when, why, before and after, in a chain that only grows.

Rules. `add` runs in the transaction of the change that it records. There is one write door, so the last hash that is
read there is the last. What the hashes are made of stands in `trust.chain`; who signs heads is `daemon.record`'s.
"""

from __future__ import annotations

import functools
from pathlib import Path

import msgspec
from msgspec import Struct

from lenskeep.clock import Clock
from lenskeep.database import Row, Transaction
from lenskeep.trust import chain
from lenskeep.trust.chain import BEFORE_ALL, BEGIN, Beginning, Entry, Facts, Point

HEADS_KEPT = 1000
_COLUMNS = "sequence, at_ms, monotonic_ms, boot, clock_trusted, actor, action, subject, reason, before, after, hash"
_INSERT = f"INSERT INTO record ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608 - our own names


class StoredHead(Struct, frozen=True, kw_only=True):
    """One row of `record_head`."""

    counter: int
    sequence: int
    hash: str
    key_id: str
    envelope: bytes
    witnessed_ms: int | None


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
    """Add one entry in the transaction of the change that it records; return its sequence. Cost: bench `record`."""
    at = await newest(tx)
    if at is None:
        at = (await begin(tx, clock, Beginning(BEFORE_ALL, BEFORE_ALL))).point
    facts = _facts(clock, by, action, subject, reason, before, after)
    return await _insert(tx, chain.put(at, facts))


async def begin(
    tx: Transaction, clock: Clock, beginning: Beginning, *, device: str = "", key: str = "", reason: str = ""
) -> Entry:
    """Begin the record, or begin it again behind what is known to be lost."""
    facts = _facts(clock, "device", BEGIN, device, reason, str(beginning), key)
    entry = chain.put(beginning.follows, facts, sequence=beginning.sequence)
    await _insert(tx, entry)
    return entry


def _facts(clock: Clock, by: str, action: str, subject: str, reason: str, before: str, after: str) -> Facts:
    return Facts(
        at_ms=clock.now_ms(), monotonic_ms=int(clock.monotonic_s() * 1000), boot=boot_id(),
        clock_trusted=clock.trusted(), actor=chain.text(by), action=chain.text(action), subject=chain.text(subject),
        reason=chain.text(reason), before=chain.text(before), after=chain.text(after),
    )  # fmt: skip


async def _insert(tx: Transaction, entry: Entry) -> int:
    return await tx.insert(
        _INSERT, entry.sequence, entry.at_ms, entry.monotonic_ms, entry.boot, entry.clock_trusted, entry.actor,
        entry.action, entry.subject, entry.reason, entry.before, entry.after, entry.hash,
    )  # fmt: skip


@functools.cache
def boot_id() -> str:
    """Name this start of the machine; its monotonic clock counts from there. Empty where the kernel does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


# --- looking ----------------------------------------------------------------------------------------------------------


async def newest(tx: Transaction) -> Point | None:
    """Return the end of the record; None when there is none yet."""
    row = await tx.one("SELECT sequence, hash FROM record ORDER BY sequence DESC LIMIT 1")
    return None if row is None else Point(row["sequence"], row["hash"])


async def hash_at(tx: Transaction, sequence: int) -> str | None:
    """Return the hash of an entry, if it is there."""
    row = await tx.one("SELECT hash FROM record WHERE sequence = ?", sequence)
    return None if row is None else str(row["hash"])


async def page(tx: Transaction, *, limit: int, before: int | None = None) -> list[Row]:
    """Return entries, newest first."""
    return await tx.all(
        "SELECT * FROM record WHERE (?1 IS NULL OR sequence < ?1) ORDER BY sequence DESC LIMIT ?2",
        before,
        limit,
    )


async def after(tx: Transaction, sequence: int, limit: int) -> list[Entry]:
    """Return the entries that follow a sequence, oldest first, as they are stored."""
    rows = await tx.all("SELECT * FROM record WHERE sequence > ? ORDER BY sequence LIMIT ?", sequence, limit)
    return [_entry(row) for row in rows]


async def last_of(tx: Transaction, action: str) -> Entry | None:
    """Return the newest entry of an action. Cost: looks backwards through the record."""
    row = await tx.one("SELECT * FROM record WHERE action = ? ORDER BY sequence DESC LIMIT 1", action)
    return None if row is None else _entry(row)


async def guarded(tx: Transaction) -> bool:
    """Say whether the triggers are there that refuse changes to the record."""
    row = await tx.one(
        "SELECT COUNT(*) AS count FROM sqlite_schema WHERE type = 'trigger' AND tbl_name = 'record'"
        " AND name IN ('record_is_not_changed', 'record_is_not_removed')"
    )
    return row is not None and row["count"] == 2


def _entry(row: Row) -> Entry:
    """Return a row as it is stored; one that cannot be an entry gets a hash that fits nothing."""
    fields = {name: row[name] for name in row.keys()}  # noqa: SIM118 - a Row iterates over its values
    try:
        return msgspec.convert(fields | {"clock_trusted": {0: False, 1: True}[row["clock_trusted"]]}, Entry)
    except (msgspec.ValidationError, KeyError, TypeError):
        nothing = dict.fromkeys(("boot", "actor", "action", "subject", "reason", "before", "after"), "unreadable")
        number = row["sequence"] if isinstance(row["sequence"], int) else 0
        return Entry(sequence=number, at_ms=0, monotonic_ms=0, clock_trusted=False, hash="", **nothing)


async def began_again(tx: Transaction, point: Point) -> bool:
    """Say whether a record began again behind this place or a later one, because it was lost before."""
    last = await last_of(tx, BEGIN)
    begins = chain.beginning_of(last) if last is not None else None
    return begins is not None and begins.follows != begins.found and begins.follows.sequence >= point.sequence


# --- from the time before the chain -----------------------------------------------------------------------------------


async def carry_over(tx: Transaction) -> int:
    """Chain what was written before there was a chain, and return how much that was."""
    rows = await tx.all("SELECT * FROM audit_unchained ORDER BY sequence")
    at = await newest(tx)
    assert at is not None, "a record begins before anything is carried over"
    for row in rows:
        facts = Facts(
            at_ms=row["at_ms"], monotonic_ms=int(row["monotonic_s"] * 1000), boot="",
            clock_trusted=bool(row["clock_trusted"]), actor=chain.text(row["actor"]), action=chain.text(row["action"]),
            subject=chain.text(row["subject"]), reason=chain.text(row["reason"]), before=chain.text(row["before"]),
            after=chain.text(row["after"]),
        )  # fmt: skip
        entry = chain.put(at, facts)
        await _insert(tx, entry)
        at = entry.point
    await tx.run("DELETE FROM audit_unchained")
    return len(rows)


# --- heads ------------------------------------------------------------------------------------------------------------


async def keep_head(tx: Transaction, head: StoredHead) -> None:
    """Keep a signed head and forget the oldest ones."""
    await tx.run(
        "INSERT OR REPLACE INTO record_head VALUES (?, ?, ?, ?, ?, ?)",
        head.counter, head.sequence, head.hash, head.key_id, head.envelope, head.witnessed_ms,
    )  # fmt: skip
    await tx.run("DELETE FROM record_head WHERE counter <= ?", head.counter - HEADS_KEPT)


async def newest_head(tx: Transaction) -> StoredHead | None:
    """Return the head with the largest counter."""
    row = await tx.one("SELECT * FROM record_head ORDER BY counter DESC LIMIT 1")
    return None if row is None else _head(row)


async def head_at(tx: Transaction, sequence: int) -> StoredHead | None:
    """Return the newest head of an entry, if one is kept."""
    row = await tx.one("SELECT * FROM record_head WHERE sequence = ? ORDER BY counter DESC LIMIT 1", sequence)
    return None if row is None else _head(row)


async def heads(tx: Transaction) -> list[StoredHead]:
    """Return every head that is kept, oldest first."""
    return [_head(row) for row in await tx.all("SELECT * FROM record_head ORDER BY counter")]


async def witness(tx: Transaction, point: Point, *, at_ms: int) -> int:
    """Note that the fleet has the heads of a place; return how many of ours that were."""
    return await tx.run(
        "UPDATE record_head SET witnessed_ms = ? WHERE sequence = ? AND hash = ?", at_ms, point.sequence, point.hash
    )


async def witnessed(tx: Transaction) -> int:
    """Return the newest sequence whose head the fleet has; -1 when there is none."""
    row = await tx.one("SELECT MAX(sequence) AS sequence FROM record_head WHERE witnessed_ms IS NOT NULL")
    return -1 if row is None or row["sequence"] is None else int(row["sequence"])


def _head(row: Row) -> StoredHead:
    return StoredHead(
        counter=row["counter"], sequence=row["sequence"], hash=row["hash"], key_id=row["key_id"],
        envelope=row["envelope"], witnessed_ms=row["witnessed_ms"],
    )  # fmt: skip
