"""What this device owes its fleet, on disk: numbered records that are kept until the fleet has them.

Rules. A number is given once. What was put on the wire stays as it is until the fleet says how far it took, because it
may have taken it though the answer was lost; only what was never sent is merged. What went onto a stick is not merged
either, but may be dropped. When the outbox is full, the least valuable goes first: windows are merged into coarser
ones, then vitals go, then windows, then events, and trials last; oldest first, and what went is counted in a record of
its own. Nothing is written twice: windows close out of the rows that results are counted into, events are read from the
registry's record behind the last entry that was taken, trials behind the last trial.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable

import msgspec
from msgspec import Struct

from lenskeep.database import Row, Transaction
from lenskeep.messages.fleet import cut
from lenskeep.messages.sync import Happening, Record, Trial, Vitals, Window
from lenskeep.registry.windows import HOUR_S, MINUTE_S, QUARTER_S, Span, SpanKey
from lenskeep.sketch import Sketch

RECORD_EXTRA_BYTES = 64  # what a row costs beside its body
BATCH_BYTES_MAX = 256 << 10  # of one call
MERGED_AT_ONCE = 2000  # rows
ROOM_MADE = 0.9  # of the cap, so that it is not made again at the next record

_OTHER = f"start_s NOT IN (?1 - ?1 % {MINUTE_S}, ?2 - ?2 % {MINUTE_S})"
_DROP_ORDER = ("vitals", "window", "event", "trial")


class OutboxState(Struct, frozen=True, kw_only=True):
    """The one row of `outbox`."""

    name: str
    next_n: int
    sent: int
    entry: int
    trial: int
    dropped: int
    carried: int

    @property
    def shown(self) -> int:
        """The newest number that may be at the fleet, over the network or by stick."""
        return max(self.sent, self.carried)


class Held(Struct, frozen=True, kw_only=True):
    """What is in the outbox."""

    records: int
    bytes: int
    oldest_ms: int  # of the device's clock; 0 = empty
    kinds: dict[str, int]


async def state(tx: Transaction) -> OutboxState | None:
    """Return how the outbox stands; None before it was begun."""
    row = await tx.one("SELECT name, next_n, sent, entry, trial, dropped, carried FROM outbox")
    return None if row is None else OutboxState(**dict(zip(row.keys(), row, strict=True)))


async def begin(tx: Transaction) -> OutboxState:
    """Begin an outbox under a new name, or go on with the one that is there."""
    await tx.run("INSERT OR IGNORE INTO outbox VALUES (1, ?, 0, -1, -1, 0, -1, -1)", uuid.uuid4().hex)
    found = await state(tx)
    assert found is not None
    return found


# --- what comes in ----------------------------------------------------------------------------------------------------


async def add(tx: Transaction, records: Iterable[Record]) -> None:
    """Put records in under the next numbers; what they carry as number counts for nothing."""
    n = (await begin(tx)).next_n
    rows = []
    for record in records:
        rows.append(_row(msgspec.structs.replace(record, n=n)))
        n += 1
    await _put(tx, rows)
    await tx.run("UPDATE outbox SET next_n = ?", n)


async def take_entries(tx: Transaction, happenings: list[Happening], entry: int) -> None:
    """Put in what was read from the registry's record up to an entry."""
    await add(tx, happenings)
    await tx.run("UPDATE outbox SET entry = ?", entry)


async def take_trials(tx: Transaction, trials: list[Trial], sequence: int) -> None:
    """Put in what was read of the registry's trials up to a number."""
    await add(tx, trials)
    await tx.run("UPDATE outbox SET trial = ?", sequence)


async def count(tx: Transaction, key: SpanKey, digest: str, span: Span) -> None:
    """Add results to a window that is open, in the transaction that counts them elsewhere."""
    row = await tx.one(
        "SELECT * FROM outbox_window WHERE start_s = ? AND slot = ? AND bundle = ?", key.start_s, key.slot, key.bundle
    )
    merged = Span() if row is None else _span(row)
    merged.merge(span)
    sketches = {stage: sketch.to_bytes() for stage, sketch in merged.sketches.items() if sketch.counts}
    await tx.run(
        "INSERT OR REPLACE INTO outbox_window VALUES (?, ?, ?, ?, ?, ?, ?, ?)", key.start_s, key.slot, key.bundle,
        digest or (row["digest"] if row is not None else ""), merged.frames, merged.misses,
        msgspec.json.encode(merged.outcomes).decode(), msgspec.msgpack.encode(sketches),
    )  # fmt: skip


async def ripe(tx: Transaction, late_s: int, now_s: int) -> bool:
    """Say whether there are windows of other minutes than those of these two times, earlier or later."""
    return await tx.one(f"SELECT 1 FROM outbox_window WHERE {_OTHER} LIMIT 1", late_s, now_s) is not None  # noqa: S608


async def close(tx: Transaction, late_s: int, now_s: int, providers: dict[str, str]) -> None:
    """Close the windows of all minutes but those of these two times; one leap of the clock leaves none open."""
    rows = await tx.all(f"SELECT * FROM outbox_window WHERE {_OTHER} ORDER BY start_s", late_s, now_s)  # noqa: S608
    await add(tx, [_closed(row, providers.get(row["slot"], "")) for row in rows])
    await tx.run(f"DELETE FROM outbox_window WHERE {_OTHER}", late_s, now_s)  # noqa: S608 - our own words


def _closed(row: Row, provider: str) -> Window:
    return Window(
        n=0, slot=row["slot"], bundle=cut(row["bundle"], 130), digest=row["digest"], provider=provider,
        start_s=max(0, row["start_s"]), seconds=MINUTE_S, frames=row["frames"], misses=row["misses"],
        outcomes=msgspec.json.decode(row["outcomes"], type=dict[str, int]),
        sketches=msgspec.msgpack.decode(row["sketches"], type=dict[str, bytes]),
    )  # fmt: skip


def _span(row: Row) -> Span:
    span = Span()
    span.frames, span.misses = row["frames"], row["misses"]
    span.outcomes = msgspec.json.decode(row["outcomes"], type=dict[str, int])
    for stage, data in msgspec.msgpack.decode(row["sketches"], type=dict[str, bytes]).items():
        span.sketches[stage] = Sketch.from_bytes(data)
    return span


# --- what goes out ----------------------------------------------------------------------------------------------------


async def oldest(tx: Transaction, limit: int, *, above: int = -1) -> list[Record]:
    """Return the oldest records above a number, as many as go into one call."""
    found: list[Record] = []
    bytes_left = BATCH_BYTES_MAX
    for row in await tx.all("SELECT bytes, body FROM outbox_record WHERE n > ? ORDER BY n LIMIT ?", above, limit):
        bytes_left -= row["bytes"]
        if found and bytes_left < 0:
            break
        found.append(_record(row["body"]))
    return found


async def gone_up_to(tx: Transaction) -> int:
    """Return the number up to which nothing is held any more; -1 when that was never any."""
    row = await tx.one("SELECT MIN(n) AS n FROM outbox_record")
    if row is not None and row["n"] is not None:
        return int(row["n"]) - 1
    found = await state(tx)
    return -1 if found is None else found.next_n - 1


async def note_sent(tx: Transaction, n: int) -> None:
    """Note what is put on the wire, before it is."""
    await tx.run("UPDATE outbox SET sent = MAX(sent, ?)", n)


async def note_carried(tx: Transaction, n: int) -> None:
    """Note what goes onto a stick, before it does."""
    await tx.run("UPDATE outbox SET carried = MAX(carried, ?)", n)


async def left_above(tx: Transaction, n: int) -> int:
    """Return how many records have higher numbers."""
    row = await tx.one("SELECT COUNT(*) AS records FROM outbox_record WHERE n > ?", n)
    return int(row["records"]) if row is not None else 0


async def forget(tx: Transaction, taken: int) -> int:
    """Forget what the fleet has; return how many records that were."""
    return await tx.run("DELETE FROM outbox_record WHERE n <= ?", taken)


async def rename(tx: Transaction, doubtful_below: int) -> int:
    """Go on under a new name, because this outbox was put back from a copy; return how many records were given up.

    Args:
        doubtful_below: records with smaller numbers may be at the fleet already; giving them up counts nothing twice.
    """
    gone = await tx.run("DELETE FROM outbox_record WHERE n < ? AND kind != 'lost'", doubtful_below)
    kept = [_record(row["body"]) for row in await tx.all("SELECT body FROM outbox_record ORDER BY n")]
    await tx.run("DELETE FROM outbox_record")
    await tx.run("UPDATE outbox SET name = ?, next_n = 0, sent = -1, carried = -1", uuid.uuid4().hex)
    await add(tx, kept)
    if gone:
        await _count_lost(tx, gone)
    return gone


# --- when it is full --------------------------------------------------------------------------------------------------


async def held(tx: Transaction) -> Held:
    """Return what is in the outbox."""
    rows = await tx.all(
        "SELECT kind, COUNT(*) AS records, SUM(bytes) AS bytes, MIN(NULLIF(at_ms, 0)) AS oldest_ms"
        " FROM outbox_record GROUP BY kind"
    )
    return Held(
        records=sum(row["records"] for row in rows), bytes=sum(row["bytes"] for row in rows),
        oldest_ms=min((row["oldest_ms"] for row in rows if row["oldest_ms"]), default=0),
        kinds={row["kind"]: row["records"] for row in rows},
    )  # fmt: skip


async def make_room(tx: Transaction, *, bytes_max: int, records_max: int) -> int:
    """Bring the outbox below its cap; return how many records were dropped (merged ones are not lost)."""
    has = await held(tx)
    if has.bytes <= bytes_max and has.records <= records_max:
        return 0
    bytes_goal, records_goal = int(bytes_max * ROOM_MADE), int(records_max * ROOM_MADE)
    for small_s, large_s in ((MINUTE_S, QUARTER_S), (QUARTER_S, HOUR_S)):
        while (has.bytes > bytes_goal or has.records > records_goal) and await _coarsen(tx, small_s, large_s):
            has = await held(tx)
    dropped = 0
    for kind in _DROP_ORDER:
        has = await held(tx)
        over_bytes, over_records = has.bytes - bytes_goal, has.records - records_goal
        if over_bytes <= 0 and over_records <= 0:
            break
        dropped += await _drop(tx, kind, over_bytes, over_records)
    if dropped:
        await _count_lost(tx, dropped)
    return dropped


async def _coarsen(tx: Transaction, small_s: int, large_s: int) -> bool:
    """Merge the oldest windows of one size into larger ones; say whether that changed anything."""
    rows = await tx.all(
        "SELECT n, body FROM outbox_record WHERE kind = 'window' AND seconds = ?"
        " AND n > (SELECT MAX(sent, carried) FROM outbox) ORDER BY n LIMIT ?", small_s, MERGED_AT_ONCE,
    )  # fmt: skip
    groups: dict[tuple[object, ...], list[Window]] = {}
    for row in rows:
        one = _record(row["body"])
        assert isinstance(one, Window)
        where = (one.start_s - one.start_s % large_s, one.slot, one.bundle, one.digest, one.provider)
        groups.setdefault(where, []).append(one)
    await tx.many("DELETE FROM outbox_record WHERE n = ?", ((row["n"],) for row in rows))
    await _put(tx, [_row(_merged(group, large_s), large_s) for group in groups.values()])
    return bool(rows)


def _merged(group: list[Window], large_s: int) -> Window:
    """Merge windows of one version into one, under the newest of their numbers."""
    outcomes: dict[str, int] = {}
    sketches: dict[str, Sketch] = {}
    for one in group:
        for outcome, number in one.outcomes.items():
            outcomes[outcome] = outcomes.get(outcome, 0) + number
        for stage, data in one.sketches.items():
            sketches.setdefault(stage, Sketch()).merge(Sketch.from_bytes(data))
    return msgspec.structs.replace(
        group[-1], start_s=group[0].start_s - group[0].start_s % large_s,
        seconds=min(large_s, sum(one.seconds for one in group)), frames=sum(one.frames for one in group),
        misses=sum(one.misses for one in group), outcomes=outcomes,
        sketches={stage: sketch.to_bytes() for stage, sketch in sketches.items()},
    )  # fmt: skip


async def _drop(tx: Transaction, kind: str, over_bytes: int, over_records: int) -> int:
    """Drop the oldest of a kind until so much is gone, or nothing of it is left that may go."""
    numbers = []
    for row in await tx.all(
        "SELECT n, bytes FROM outbox_record WHERE kind = ? AND n > (SELECT sent FROM outbox) ORDER BY n", kind
    ):
        if over_bytes <= 0 and over_records <= 0:
            break
        numbers.append((row["n"],))
        over_bytes -= row["bytes"]
        over_records -= 1
    await tx.many("DELETE FROM outbox_record WHERE n = ?", numbers)
    return len(numbers)


async def _count_lost(tx: Transaction, number: int) -> None:
    """Count what was dropped in the record that says so; one that may be at the fleet already is not touched."""
    await tx.run("UPDATE outbox SET dropped = dropped + ?", number)
    row = await tx.one(
        "SELECT body FROM outbox_record WHERE kind = 'lost' AND n > (SELECT MAX(sent, carried) FROM outbox)"
        " ORDER BY n DESC LIMIT 1"
    )
    if row is None:
        await add(tx, [_lost(number)])
        return
    known = _record(row["body"])
    assert isinstance(known, Happening)
    await _put(tx, [_row(msgspec.structs.replace(_lost(known.count + number), n=known.n))])


def _lost(number: int) -> Happening:
    text = f"{number} records were dropped: the fleet could not be reached for too long."
    return Happening(n=0, kind="lost", at_ms=0, text=text, count=number)


# --- rows -------------------------------------------------------------------------------------------------------------


async def _put(tx: Transaction, rows: list[tuple[object, ...]]) -> None:
    await tx.many("INSERT OR REPLACE INTO outbox_record VALUES (?, ?, ?, ?, ?, ?)", rows)


def _row(record: Record, class_s: int = MINUTE_S) -> tuple[object, ...]:
    """Pack a record. `class_s`: the size of span that a window was merged into; it may cover less of it."""
    body = msgspec.msgpack.encode(record)
    match record:
        case Window():
            kind, at_ms, seconds = "window", record.start_s * 1000, class_s
        case Vitals():
            kind, at_ms, seconds = "vitals", record.at_ms, 0
        case Trial():
            kind, at_ms, seconds = "trial", record.at_ms, 0
        case Happening():
            kind, at_ms, seconds = "lost" if record.kind == "lost" else "event", record.at_ms, 0
    return record.n, kind, at_ms, seconds, len(body) + RECORD_EXTRA_BYTES, body


def _record(body: bytes) -> Record:
    return msgspec.msgpack.decode(body, type=Record)  # type: ignore[no-any-return]
