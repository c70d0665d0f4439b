"""Wishes that wait for the approval of people, and the signatures that they got; ended ones stay as history.

A state is written only through `policy`; there is at most one open request for a slot, which an index holds as well.
"""

from __future__ import annotations

from msgspec import Struct

from lenskeep.database import Row, Transaction
from lenskeep.errors import UnknownNameError
from lenskeep.policy import ApprovalEvent, ApprovalState, Asked, Signature, end


class StoredSignature(Struct, frozen=True, kw_only=True):
    """One row of `approval_signature`."""

    person: str
    actor: str
    role: str
    meaning: str
    reason: str
    digest: str
    at_ms: int


class StoredApproval(Struct, frozen=True, kw_only=True):
    """One row of `approval` with its signatures, the first one first."""

    id: str
    slot: str
    bundle_id: str
    digest: str
    demand: str
    request: str
    asked_by: str
    asker: str
    asked_ms: int
    expires_ms: int
    operation: str
    state: ApprovalState
    ended_ms: int | None
    ended_reason: str
    signatures: list[StoredSignature]

    def asked(self) -> Asked:
        """Return what deciding needs of it."""
        signatures = tuple(
            Signature(person=one.person, role=one.role, meaning=one.meaning, digest=one.digest)
            for one in self.signatures
        )
        return Asked(self.asker, self.digest, self.demand, self.expires_ms, self.state, signatures)


async def add(tx: Transaction, new: StoredApproval) -> None:
    """Write a request that begins to wait."""
    await tx.run(
        "INSERT INTO approval (id, slot, bundle_id, digest, demand, request, asked_by, asker, asked_ms, expires_ms,"
        " operation, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        new.id, new.slot, new.bundle_id, new.digest, new.demand, new.request, new.asked_by, new.asker, new.asked_ms,
        new.expires_ms, new.operation, new.state,
    )  # fmt: skip


async def get(tx: Transaction, approval_id: str) -> StoredApproval:
    """Return one request. Raises: UnknownNameError."""
    row = await tx.one("SELECT * FROM approval WHERE id = ?", approval_id)
    if row is None:
        raise UnknownNameError(f"No request for approval has the id {approval_id!r}.")
    return await _approval(tx, row)


async def open_ones(tx: Transaction, slot: str | None = None) -> list[StoredApproval]:
    """Return the requests that wait or are granted, the oldest first; there is at most one for a slot."""
    rows = await tx.all(
        "SELECT * FROM approval WHERE state IN ('waiting', 'granted') AND (?1 IS NULL OR slot = ?1) ORDER BY asked_ms",
        slot,
    )
    return [await _approval(tx, row) for row in rows]


async def newest(tx: Transaction, limit: int) -> list[StoredApproval]:
    """Return requests of any state, newest first."""
    rows = await tx.all("SELECT * FROM approval ORDER BY asked_ms DESC, rowid DESC LIMIT ?", limit)
    return [await _approval(tx, row) for row in rows]


async def sign(tx: Transaction, approval_id: str, signature: StoredSignature, state: ApprovalState) -> None:
    """Write a signature that was judged, and what became of the request."""
    await tx.run(
        "INSERT INTO approval_signature (approval_id, person, actor, role, meaning, reason, digest, at_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        approval_id, signature.person, signature.actor, signature.role, signature.meaning, signature.reason,
        signature.digest, signature.at_ms,
    )  # fmt: skip
    await tx.run("UPDATE approval SET state = ? WHERE id = ?", state, approval_id)


async def finish(
    tx: Transaction, approval_id: str, event: ApprovalEvent, *, at_ms: int, reason: str = ""
) -> StoredApproval:
    """Let a request end as `policy` allows. Raises: ApprovalOverError when it had ended before."""
    stored = await get(tx, approval_id)
    ended = end(stored.asked(), event)
    await tx.run(
        "UPDATE approval SET state = ?, ended_ms = ?, ended_reason = ? WHERE id = ?",
        ended.state, at_ms, reason, approval_id,
    )  # fmt: skip
    return await get(tx, approval_id)


async def _approval(tx: Transaction, row: Row) -> StoredApproval:
    signatures = await tx.all(
        "SELECT * FROM approval_signature WHERE approval_id = ? ORDER BY at_ms, person", row["id"]
    )
    return StoredApproval(
        id=row["id"], slot=row["slot"], bundle_id=row["bundle_id"], digest=row["digest"], demand=row["demand"],
        request=row["request"], asked_by=row["asked_by"], asker=row["asker"], asked_ms=row["asked_ms"],
        expires_ms=row["expires_ms"], operation=row["operation"], state=ApprovalState(row["state"]),
        ended_ms=row["ended_ms"], ended_reason=row["ended_reason"],
        signatures=[
            StoredSignature(
                person=one["person"], actor=one["actor"], role=one["role"], meaning=one["meaning"],
                reason=one["reason"], digest=one["digest"], at_ms=one["at_ms"],
            )
            for one in signatures
        ],
    )  # fmt: skip
