"""What each slot should run, what it runs, what it ran before, and the history of all that.

A state is written only through `lifecycle.next_slot_state`; each write raises the slot's generation, which is its ETag.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from lenskeep.database import Row, Transaction
from lenskeep.errors import UnknownNameError
from lenskeep.lifecycle import SlotEvent, SlotState, next_slot_state


class StoredSlot(Struct, frozen=True, kw_only=True):
    """One row of `slot`; ids are of bundles, empty when there is none."""

    name: str
    state: SlotState
    wanted: str
    active: str
    previous: str
    since_ms: int
    reason: str
    asked_by: str
    trial_s: float | None
    accept_risks: list[str]
    operation: str
    held: bool
    generation: int


class StoredDeployment(Struct, frozen=True, kw_only=True):
    """A time span in which a version was active in a slot."""

    sequence: int
    slot: str
    bundle_id: str
    started_ms: int
    ended_ms: int | None
    asked_by: str
    reason: str
    outcome: str


async def ensure(tx: Transaction, names: list[str], *, at_ms: int) -> None:
    """Make a row for every slot of the configuration."""
    await tx.many(
        "INSERT OR IGNORE INTO slot (name, state, since_ms) VALUES (?, 'empty', ?)",
        ((name, at_ms) for name in names),
    )


async def get(tx: Transaction, name: str) -> StoredSlot:
    """Return one slot. Raises: UnknownNameError."""
    row = await tx.one("SELECT * FROM slot WHERE name = ?", name)
    if row is None:
        raise UnknownNameError(f"No slot is named {name!r}.")
    return _slot(row)


async def everything(tx: Transaction) -> list[StoredSlot]:
    """Return every slot by name."""
    return [_slot(row) for row in await tx.all("SELECT * FROM slot ORDER BY name")]


async def move(tx: Transaction, slot: StoredSlot, event: SlotEvent, **changes: Any) -> StoredSlot:
    """Let an event happen to a slot and write the columns that change with it.

    Raises: SlotError when the slot does not answer this event in its state.
    """
    return await _write(tx, slot.name, state=next_slot_state(slot.state, event), **changes)


async def hold(tx: Transaction, name: str, held: bool) -> StoredSlot:
    """Hold swaps of a slot, or let them go on."""
    return await _write(tx, name, held=int(held))


async def set_previous(tx: Transaction, name: str, bundle_id: str) -> StoredSlot:
    """Write what a slot would go back to; empty = nothing."""
    return await _write(tx, name, previous_id=bundle_id)


async def _write(tx: Transaction, name: str, **changes: Any) -> StoredSlot:
    values = {key: None if value == "" and key.endswith("_id") else value for key, value in changes.items()}
    assignments = ", ".join(f"{column} = ?" for column in values)  # column names come from our own code only
    await tx.run(
        f"UPDATE slot SET {assignments}, generation = generation + 1 WHERE name = ?",  # noqa: S608
        *values.values(), name,
    )  # fmt: skip
    return await get(tx, name)


async def in_use(tx: Transaction) -> dict[str, list[str]]:
    """Return for each bundle id the parts it plays: "active:main", "previous:main", "wanted:main"."""
    parts: dict[str, list[str]] = {}
    for slot in await everything(tx):
        for part, bundle_id in (
            ("active", slot.active),
            ("previous", slot.previous),
            ("wanted", slot.wanted),
        ):
            if bundle_id and not (part == "wanted" and bundle_id == slot.active):
                parts.setdefault(bundle_id, []).append(f"{part}:{slot.name}")
    return parts


async def begin_deployment(tx: Transaction, slot: str, bundle_id: str, *, at_ms: int, by: str, reason: str) -> None:
    """Note that a version became active."""
    await tx.run(
        "INSERT INTO deployment (slot, bundle_id, started_ms, asked_by, reason, outcome)"
        " VALUES (?, ?, ?, ?, ?, 'running')",
        slot, bundle_id, at_ms, by, reason,
    )  # fmt: skip


async def end_deployment(tx: Transaction, slot: str, *, at_ms: int, outcome: str) -> None:
    """Note that the running version is no longer active, and how that came."""
    await tx.run(
        "UPDATE deployment SET ended_ms = ?, outcome = ? WHERE slot = ? AND ended_ms IS NULL",
        at_ms,
        outcome,
        slot,
    )


async def settle_deployment(tx: Transaction, slot: str) -> None:
    """Note that the running version passed its probation."""
    await tx.run("UPDATE deployment SET outcome = 'settled' WHERE slot = ? AND ended_ms IS NULL", slot)


async def deployments(
    tx: Transaction, slot: str | None, *, limit: int, before: int | None = None
) -> list[StoredDeployment]:
    """Return the history, newest first."""
    rows = await tx.all(
        "SELECT * FROM deployment WHERE (?1 IS NULL OR slot = ?1) AND (?2 IS NULL OR sequence < ?2)"
        " ORDER BY sequence DESC LIMIT ?3",
        slot, before, limit,
    )  # fmt: skip
    return [
        StoredDeployment(
            sequence=row["sequence"], slot=row["slot"], bundle_id=row["bundle_id"], started_ms=row["started_ms"],
            ended_ms=row["ended_ms"], asked_by=row["asked_by"], reason=row["reason"], outcome=row["outcome"],
        )
        for row in rows
    ]  # fmt: skip


async def earlier_good(tx: Transaction, slot: str, not_these: set[str]) -> str:
    """Return the newest version that proved itself in this slot, other than these; empty when there is none."""
    rows = await tx.all(
        "SELECT bundle_id FROM deployment JOIN bundle ON bundle.id = bundle_id"
        " WHERE slot = ? AND outcome IN ('settled', 'replaced') AND state = 'qualified'"
        " GROUP BY bundle_id ORDER BY MAX(sequence) DESC",
        slot,
    )  # fmt: skip
    return next((row["bundle_id"] for row in rows if row["bundle_id"] not in not_these), "")


def _slot(row: Row) -> StoredSlot:
    return StoredSlot(
        name=row["name"], state=SlotState(row["state"]), wanted=row["wanted_id"] or "", active=row["active_id"] or "",
        previous=row["previous_id"] or "", since_ms=row["since_ms"], reason=row["reason"], asked_by=row["asked_by"],
        trial_s=row["trial_s"], accept_risks=row["accept_risks"].split(), operation=row["operation"],
        held=bool(row["held"]), generation=row["generation"],
    )  # fmt: skip
