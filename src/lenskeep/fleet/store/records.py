"""Copies of devices' records: what was verified is appended, and compared with what was witnessed, in one step.

Rules. Whether a piece still fits is decided inside the transaction: one that was doubled, replayed, or overtaken by
another way changes nothing. What contradicts a witnessed head or a copy is not kept, and what of that copy was never
signed goes with it; what was signed stays for ever. What was never signed gives way when room is needed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from lenskeep.bundle.keys import PublicKey
from lenskeep.errors import LimitExceededError, RecordContradictedError, RecordLostError, UnlistedDeviceError
from lenskeep.fleet.store.engine import Engine, Row, Transaction, steps
from lenskeep.fleet.store.store import note_alarm_in
from lenskeep.messages.fleet import RecordCopy
from lenskeep.trust import recordpiece
from lenskeep.trust.chain import Point
from lenskeep.trust.recordpiece import Piece

COPIES_MAX = 16
LEVEL = 6


@dataclass(frozen=True, slots=True)
class Offer:
    """A piece that was verified as far as it can be without the fleet's memory."""

    device: str
    copy: int
    piece: Piece
    key: PublicKey | None  # which has signed its head
    proven: bool  # the device itself has said it: over its own connection, or with a head


@dataclass(frozen=True, slots=True)
class Kept:
    """What became of an offer."""

    copies: list[RecordCopy]
    entries: int = 0
    known: bool = False  # the head that came alone is one of an entry that is here
    contradiction: str = ""


@steps
class RecordStore:
    """The copies, in the fleet's database."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    async def copies(self, device: str) -> list[RecordCopy]:
        """Return the copies of a device's record, the newest first."""
        async with self._database.read() as tx:
            return await _copies(tx, device)

    async def add(self, offer: Offer, *, bytes_max: int, now_ms: int) -> Kept:
        """Append a piece, or find that it does not fit any more, or what it contradicts; that raises an alarm.

        Raises: LimitExceededError, UnlistedDeviceError; then nothing is changed.
        """
        device, piece = offer.device, offer.piece
        body = zlib.compress(piece.lines, LEVEL)
        async with self._database.write() as tx:
            copies = await _copies(tx, device)
            base = next((each for each in copies if each.copy == offer.copy), None)
            begins = base is None and offer.copy == _next(copies) and piece.after.sequence < 0
            if not begins and (base is None or piece.after != Point(base.sequence, base.hash)):
                return Kept(copies)
            if offer.key is not None:
                await _refuse_unlisted(tx, device, offer.key)
            if said := await _contradiction(tx, device, offer.copy, piece):
                await _drop_unsigned(tx, device, offer.copy)
                if offer.proven:
                    await note_alarm_in(tx, device, RecordContradictedError.code, said, now_ms)
                return Kept(await _copies(tx, device), contradiction=said)
            await _make_room(tx, offer, copies, bytes_max)
            if begins:
                await _begin(tx, offer, now_ms)
            await _append(tx, offer, body, now_ms)
            if piece.head is not None:
                if (base is None or base.head_sequence < 0) and any(each.head_sequence >= 0 for each in copies):
                    said = f"The record began anew at the device; it is kept as copy {offer.copy} beside what was here."
                    await note_alarm_in(tx, device, RecordLostError.code, said, now_ms)
                await _sign(tx, offer, now_ms)
            return Kept(await _copies(tx, device), entries=piece.entries)

    async def compare(self, device: str, head: Point, *, now_ms: int) -> Kept:
        """Compare a head that the device signed with the copies; another signed entry in its place raises an alarm.

        What nobody signed contradicts nothing, nor what a person has let begin anew.
        """
        async with self._database.write() as tx:
            copies, counts = await _copies(tx, device), await _in_chain(tx, device)
            differs = ""
            for each in copies:
                hash_ = await _hash_at(tx, device, each, head.sequence)
                if hash_ == head.hash:
                    return Kept(copies, known=True)
                if hash_ and each.copy in counts and head.sequence <= each.head_sequence:
                    differs = (
                        f"Entry {head.sequence} is {hash_[:12]}… in copy {each.copy}; signed is {head.hash[:12]}…."
                    )
            if differs:
                await note_alarm_in(tx, device, RecordContradictedError.code, differs, now_ms)
            return Kept(copies, contradiction=differs)

    async def piece(self, device: str, copy: int, after: int) -> tuple[int, bytes] | None:
        """Return the last entry and the lines of the first piece behind an entry."""
        async with self._database.read() as tx:
            row = await tx.one(
                "SELECT last_entry, body FROM record_piece WHERE device = ? AND copy = ? AND first_entry > ?"
                " ORDER BY first_entry LIMIT 1",
                device, copy, after,
            )  # fmt: skip
        return None if row is None else (int(row["last_entry"]), zlib.decompress(row["body"]))

    async def witness(self, device: str, copy: RecordCopy) -> tuple[int, str]:
        """Return the newest witnessed entry, and the signed head of the newest one that a copy must hold."""
        async with self._database.read() as tx:
            newest = await tx.one(
                "SELECT sequence FROM witness WHERE device = ? ORDER BY chain DESC, sequence DESC LIMIT 1", device
            )
            row = await tx.one(
                "SELECT envelope FROM witness WHERE device = ? AND sequence <= ? AND chain ="
                " (SELECT chain FROM record_copy WHERE device = ? AND copy = ?) ORDER BY sequence DESC LIMIT 1",
                device, copy.head_sequence, device, copy.copy,
            )  # fmt: skip
        return (-1 if newest is None else int(newest["sequence"])), ("" if row is None else str(row["envelope"]))


def _next(copies: list[RecordCopy]) -> int:
    return copies[0].copy + 1 if copies else 1


async def _copies(tx: Transaction, device: str) -> list[RecordCopy]:
    found = await tx.all("SELECT * FROM record_copy WHERE device = ? ORDER BY copy DESC", device)
    return [RecordCopy(**{name: row[name] for name in RecordCopy.__struct_fields__}) for row in found]


async def _chain(tx: Transaction, device: str) -> int:
    row = await tx.one("SELECT chain FROM device WHERE name = ?", device)
    return 0 if row is None else int(row["chain"])


async def _in_chain(tx: Transaction, device: str) -> set[int]:
    """Return the copies of the record as it is witnessed now."""
    found = await tx.all(
        "SELECT copy FROM record_copy WHERE device = ? AND chain = ?", device, await _chain(tx, device)
    )
    return {row["copy"] for row in found}


async def _refuse_unlisted(tx: Transaction, device: str, key: PublicKey) -> None:
    if await tx.one("SELECT 1 FROM device_key WHERE key_id = ? AND device = ?", key.id, device) is None:
        raise UnlistedDeviceError(f"{device} is not let in any more.")


async def _contradiction(tx: Transaction, device: str, copy: int, piece: Piece) -> str:
    """Say what in a piece differs from what was witnessed, or from a copy; empty when nothing does."""
    if not piece.points:
        return ""
    first, last = min(piece.points), max(piece.points)
    number = await _chain(tx, device)
    known: list[tuple[str, Row]] = [
        ("was witnessed", row)
        for row in await tx.all(
            "SELECT sequence, hash FROM witness WHERE device = ? AND chain = ? AND sequence BETWEEN ? AND ?",
            device, number, first, last,
        )
    ]  # fmt: skip
    known += [
        ("is in a copy here", row)
        for row in await tx.all(
            "SELECT last_entry AS sequence, record_piece.hash AS hash FROM record_piece JOIN record_copy"
            " ON record_copy.device = record_piece.device AND record_copy.copy = record_piece.copy"
            " WHERE record_piece.device = ? AND record_piece.copy <> ? AND chain = ?"
            " AND last_entry BETWEEN ? AND ? AND last_entry <= head_sequence",
            device, copy, number, first, last,
        )
    ]  # fmt: skip
    for where, row in known:
        said = piece.points.get(row["sequence"], row["hash"])
        if said != row["hash"]:
            return f"Entry {row['sequence']} ({row['hash'][:12]}…) {where}; what came is {said[:12]}… there."
    return ""


async def _drop_unsigned(tx: Transaction, device: str, copy: int) -> None:
    """Forget what of a copy was never signed."""
    await tx.run(
        "DELETE FROM record_piece WHERE device = ? AND copy = ? AND last_entry >"
        " (SELECT head_sequence FROM record_copy WHERE device = ? AND copy = ?)",
        device, copy, device, copy,
    )  # fmt: skip
    await tx.run("DELETE FROM record_copy WHERE device = ? AND copy = ? AND head_sequence < 0", device, copy)
    await tx.run(
        "UPDATE record_copy SET sequence = head_sequence, hash = head_hash, named = head_named, bytes ="
        " (SELECT COALESCE(SUM(bytes), 0) FROM record_piece WHERE record_piece.device = record_copy.device"
        " AND record_piece.copy = record_copy.copy) WHERE device = ? AND copy = ?",
        device, copy,
    )  # fmt: skip


async def _make_room(tx: Transaction, offer: Offer, copies: list[RecordCopy], bytes_max: int) -> None:
    """Let what was never signed of other copies go where room is needed. Raises: LimitExceededError."""
    begins = all(each.copy != offer.copy for each in copies)

    def fits(held: list[RecordCopy]) -> bool:
        room = sum(each.bytes for each in held) + len(offer.piece.lines) <= bytes_max
        return room and len(held) + begins <= COPIES_MAX

    if fits(copies):
        return
    for each in copies:
        if each.copy != offer.copy:
            await _drop_unsigned(tx, offer.device, each.copy)
    if not fits(await _copies(tx, offer.device)):
        raise LimitExceededError(
            f"The copies of the record of {offer.device} would become larger than {bytes_max} bytes, or more than"
            f" {COPIES_MAX}. Nothing was changed."
        )


async def _begin(tx: Transaction, offer: Offer, now_ms: int) -> None:
    await tx.run(
        "INSERT INTO record_copy VALUES (?, ?, ?, -1, '', '', 0, -1, '', '', '', '', '', ?)",
        offer.device, offer.copy, await _chain(tx, offer.device), now_ms,
    )  # fmt: skip


async def _append(tx: Transaction, offer: Offer, body: bytes, now_ms: int) -> None:
    piece = offer.piece
    if not piece.lines:
        return
    await tx.run(
        "INSERT INTO record_piece VALUES (?, ?, ?, ?, ?, ?, ?)",
        offer.device, offer.copy, piece.first, piece.at.sequence, piece.at.hash, len(piece.lines), body,
    )  # fmt: skip
    await tx.run(
        "UPDATE record_copy SET sequence = ?, hash = ?, named = ?, bytes = bytes + ?, changed_ms = ?, chain = ?"
        " WHERE device = ? AND copy = ?",
        piece.at.sequence, piece.at.hash, piece.named, len(piece.lines), now_ms, await _chain(tx, offer.device),
        offer.device, offer.copy,
    )  # fmt: skip


async def _sign(tx: Transaction, offer: Offer, now_ms: int) -> None:
    """Note that the device has signed all that is here; such a head is a witness as those in reports are."""
    head, key = offer.piece.head, offer.key
    assert head is not None, "only what has a head is signed"
    assert key is not None, "a head was verified"
    await tx.run(
        "UPDATE record_copy SET head_sequence = sequence, head_hash = hash, head_named = named, head = ?, key_id = ?,"
        " public_key = ?, changed_ms = ? WHERE device = ? AND copy = ?",
        offer.piece.envelope, key.id, key.pem, now_ms, offer.device, offer.copy,
    )  # fmt: skip
    chain = await _chain(tx, offer.device)
    newer = await tx.one(
        "SELECT 1 FROM witness WHERE device = ? AND chain = ? AND sequence >= ?", offer.device, chain, head.sequence
    )
    if newer is None:
        await tx.run(
            "INSERT INTO witness VALUES (?, ?, ?, ?, ?, ?)",
            offer.device, chain, head.sequence, head.hash, offer.piece.envelope, now_ms,
        )  # fmt: skip


async def _hash_at(tx: Transaction, device: str, copy: RecordCopy, sequence: int) -> str:
    """Return the hash of an entry in a copy; empty when it is not there."""
    row = await tx.one(
        "SELECT last_entry, hash, body FROM record_piece WHERE device = ? AND copy = ? AND last_entry >= ?"
        " ORDER BY last_entry LIMIT 1",
        device, copy.copy, sequence,
    )  # fmt: skip
    if row is None:
        return ""
    if row["last_entry"] == sequence:
        return str(row["hash"])
    return recordpiece.hashes(zlib.decompress(row["body"])).get(sequence, "")
