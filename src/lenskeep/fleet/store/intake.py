"""What devices send that must not be lost: taken once each, in order, durable before anything is answered.

Rules. Which records are new is decided here, inside the transaction, by how far the device's outbox was taken: whatever
was replayed, doubled, sent over two connections or to two replicas counts once. Many calls share one transaction.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
from msgspec import Struct

from lenskeep.fleet.store.engine import Engine, Row, Transaction, steps
from lenskeep.fleet.store.rollouts import note_progress
from lenskeep.messages.sync import Command, Happening, Outcome, Record, SlotNow, Trial
from lenskeep.messages.telemetry import CommandView, PresenceView, SlotView

NONE_TAKEN = -1
OUTBOXES_KEPT = 64  # of one device: late calls and old sticks of an outbox before this one still count once
COMMANDS_MAX = 32  # told in one answer
_encode = msgspec.msgpack.Encoder().encode


@dataclass(slots=True)
class Delivery:
    """What one call brings that must be kept; `taken` is set by `IntakeStore.keep`."""

    device: str
    outbox: str
    after: int | None
    records: Sequence[Record]
    slots: Sequence[SlotNow] = ()
    done: Sequence[Outcome] = ()
    taken: int = NONE_TAKEN
    fresh: list[Record] = field(default_factory=list)


class Standing(Struct, frozen=True, kw_only=True):
    """What the fleet knows of a device when it first calls."""

    known: str = ""  # digest of its newest report
    counter: int = 0
    head_sequence: int = 0
    slots: dict[str, SlotNow] = {}
    commands: list[Command] = []


@steps
class IntakeStore:
    """The way in, in the fleet's database."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    async def standing(self, device: str) -> Standing:
        """Return what is known of a device."""
        async with self._database.read() as tx:
            report = await tx.one(
                "SELECT standing.counter, report.payload_sha256 FROM standing LEFT JOIN report"
                " ON report.key_id = standing.key_id AND report.counter = standing.counter WHERE standing.device = ?",
                device,
            )
            head = await tx.one(
                "SELECT sequence FROM witness WHERE device = ? ORDER BY chain DESC, sequence DESC LIMIT 1", device
            )
            slots = await tx.all("SELECT * FROM slot_now WHERE device = ?", device)
            commands = await _open_commands(tx, device)
        return Standing(
            known=(report["payload_sha256"] or "") if report else "", counter=report["counter"] if report else 0,
            head_sequence=head["sequence"] if head else 0, slots={row["slot"]: _slot(row) for row in slots},
            commands=commands,
        )  # fmt: skip

    async def taken(self, device: str, outbox: str) -> int:
        """Return up to which record an outbox was taken; -1 = none."""
        async with self._database.read() as tx:
            row = await tx.one("SELECT taken FROM intake WHERE device = ? AND outbox = ?", device, outbox)
        return NONE_TAKEN if row is None else int(row["taken"])

    async def keep(self, deliveries: Sequence[Delivery], *, now_ms: int) -> bool:
        """Keep what calls bring, all in one transaction, and set each one's `taken`; say whether a rollout moved.

        Raises: StorageError, PeerError; then nothing was kept.
        """
        moved_on = False
        async with self._database.write() as tx:
            taken = await _taken(tx, {each.device for each in deliveries if each.records})
            before = dict(taken)
            for each in deliveries:
                _sort_out(each, taken, now_ms)
            await tx.many(
                "INSERT INTO inbox (device, received_ms, body) VALUES (?, ?, ?)",
                [(each.device, now_ms, _encode(part)) for each in deliveries for part in _parts(each.fresh)],
            )
            moved = [(*key, upto, now_ms) for key, upto in taken.items() if before.get(key) != upto]
            await tx.many(
                "INSERT INTO intake (device, outbox, taken, changed_ms) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (device, outbox) DO UPDATE SET taken = excluded.taken, changed_ms = excluded.changed_ms",
                moved,
            )
            for key in taken.keys() - before.keys():
                await _forget_outboxes(tx, key[0])
            await _keep_slots(tx, [(each.device, slot) for each in deliveries for slot in each.slots], now_ms)
            for each in deliveries:
                for slot in each.slots:
                    moved_on |= await note_progress(tx, each.device, slot, now_ms=now_ms)
            await _keep_outcomes(tx, [(each.device, done) for each in deliveries for done in each.done], now_ms)
        return moved_on

    async def heard(self, seen: Sequence[tuple[str, int, str, int]]) -> None:
        """Note when devices were heard: device, moment, address, version of the repository that it has."""
        async with self._database.write() as tx:
            await tx.many(
                "INSERT INTO presence (device, heard_ms, address, seen_version) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (device) DO UPDATE SET heard_ms = excluded.heard_ms, address = excluded.address,"
                " seen_version = excluded.seen_version",
                seen,
            )

    async def presence(self) -> list[PresenceView]:
        """Return when every device was last heard."""
        async with self._database.read() as tx:
            found = await tx.all("SELECT device, heard_ms, address, seen_version FROM presence ORDER BY device")
        return [PresenceView(**dict(row)) for row in found]

    async def slots(self, device: str = "") -> list[SlotView]:
        """Return where slots say that they stand: a device's, or all."""
        sql, values = (
            ("SELECT * FROM slot_now WHERE device = ?", [device]) if device else ("SELECT * FROM slot_now", [])
        )
        async with self._database.read() as tx:
            found = await tx.all(f"{sql} ORDER BY device, slot", *values)
        return [
            SlotView(device=row["device"], since_ms=row["since_ms"], **msgspec.structs.asdict(_slot(row)))
            for row in found
        ]

    # --- commands -------------------------------------------------------------------------------------------------

    async def ask(self, device: str, kind: str, text: str, *, by: str, now_ms: int) -> str:
        """Ask something of a device and return the command's id."""
        made = str(uuid.uuid4())
        async with self._database.write() as tx:
            await tx.run(
                "INSERT INTO command (id, device, kind, text, made_ms, made_by, state, code, answer)"
                " VALUES (?, ?, ?, ?, ?, ?, 'open', '', '')",
                made, device, kind, text, now_ms, by,
            )  # fmt: skip
            await tx.run(
                "INSERT INTO deed (at_ms, actor, action, subject, reason) VALUES (?, ?, ?, ?, ?)",
                now_ms, by, f"ask {kind}", device, text,
            )  # fmt: skip
            await tx.tell("commands", device)
        return made

    async def open_commands(self, device: str) -> list[Command]:
        """Return what a device was asked and has not answered yet, oldest first."""
        async with self._database.read() as tx:
            return await _open_commands(tx, device)

    async def commands(self, device: str) -> list[CommandView]:
        """Return what a device was asked, newest first."""
        async with self._database.read() as tx:
            found = await tx.all("SELECT * FROM command WHERE device = ? ORDER BY made_ms DESC LIMIT 200", device)
        return [
            CommandView(
                **{**{name: row[name] for name in CommandView.__struct_fields__}, "done_ms": row["done_ms"] or 0}
            )
            for row in found
        ]


def _sort_out(each: Delivery, taken: dict[tuple[str, str], int], now_ms: int) -> None:
    """Find which records of a delivery are new, and how far its outbox is taken with them."""
    key = (each.device, each.outbox)
    each.fresh, each.taken = [], taken.get(key, NONE_TAKEN)
    if not each.records:
        return
    first = each.records[0].n
    gone = first - 1 if each.after is None else min(each.after, first - 1)  # what comes along is not gone
    if each.taken + 1 < first and gone + 1 < first:
        return  # older ones are still on their way: these come again
    upto = each.taken
    put_back = gone - upto if key in taken and each.after is not None else 0
    for record in each.records:
        if record.n > upto:
            each.fresh.append(record)
            upto = record.n
    if put_back > 0 and each.fresh:
        each.fresh.append(_gap(upto, put_back, now_ms))
    each.taken = taken[key] = upto


def _parts(fresh: list[Record]) -> list[list[Record]]:
    """Divide records into rows: trials into one of their own, because a replica of a version that does not know them
    passes over the whole row."""
    tried: list[Record] = [record for record in fresh if isinstance(record, Trial)]
    rest: list[Record] = [record for record in fresh if not isinstance(record, Trial)] if tried else fresh
    return [part for part in (rest, tried) if part]


def _gap(n: int, count: int, now_ms: int) -> Happening:
    """Note numbers that never came: dropped by a full outbox (the device counts those), or acknowledged before the
    fleet was put back from a copy."""
    text = "numbers that the device holds no more and this fleet has not taken"
    return Happening(n=n, kind="other", at_ms=now_ms, text=text, count=count)


async def _taken(tx: Transaction, devices: Iterable[str]) -> dict[tuple[str, str], int]:
    names = sorted(devices)
    found: dict[tuple[str, str], int] = {}
    for start in range(0, len(names), 512):
        part = names[start : start + 512]
        part += part[-1:] * ((1 << (len(part) - 1).bit_length()) - len(part))  # few lengths: statements stay prepared
        marks = ", ".join("?" * len(part))
        for row in await tx.all(f"SELECT device, outbox, taken FROM intake WHERE device IN ({marks})", *part):  # noqa: S608
            found[row["device"], row["outbox"]] = row["taken"]
    return found


async def _forget_outboxes(tx: Transaction, device: str) -> None:
    await tx.run(
        "DELETE FROM intake WHERE device = ? AND outbox NOT IN"
        " (SELECT outbox FROM intake WHERE device = ? ORDER BY changed_ms DESC LIMIT ?)",
        device, device, OUTBOXES_KEPT,
    )  # fmt: skip


async def _keep_slots(tx: Transaction, told: Sequence[tuple[str, SlotNow]], now_ms: int) -> None:
    if not told:
        return
    await tx.many(
        "INSERT INTO slot_now (device, slot, generation, state, code, reason, bundle, digest, busy, since_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device, slot) DO UPDATE SET"
        " since_ms = CASE WHEN slot_now.state = excluded.state AND slot_now.generation = excluded.generation"
        " AND slot_now.bundle = excluded.bundle THEN slot_now.since_ms ELSE excluded.since_ms END,"
        " generation = excluded.generation, state = excluded.state, code = excluded.code, reason = excluded.reason,"
        " bundle = excluded.bundle, digest = excluded.digest, busy = excluded.busy",
        [
            (
                device, it.slot, it.generation, it.state, it.code, it.reason, it.bundle, it.digest, int(it.busy), now_ms
            )
            for device, it in told
        ],
    )  # fmt: skip


async def _keep_outcomes(tx: Transaction, told: Sequence[tuple[str, Outcome]], now_ms: int) -> None:
    if not told:
        return
    await tx.many(
        "UPDATE command SET state = ?, code = ?, answer = ?, done_ms = ?"
        " WHERE id = ? AND device = ? AND state = 'open'",
        [(it.state, it.code, it.text, now_ms, it.id, device) for device, it in told],
    )


async def _open_commands(tx: Transaction, device: str) -> list[Command]:
    found = await tx.all(
        "SELECT id, kind, text FROM command WHERE device = ? AND state = 'open' ORDER BY made_ms, id LIMIT ?",
        device,
        COMMANDS_MAX,
    )
    return [Command(id=row["id"], kind=row["kind"], text=row["text"]) for row in found]


def _slot(row: Row) -> SlotNow:
    return SlotNow(
        slot=row["slot"], generation=row["generation"], state=row["state"], code=row["code"], reason=row["reason"],
        bundle=row["bundle"], digest=row["digest"], busy=bool(row["busy"]),
    )  # fmt: skip
