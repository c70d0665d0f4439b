"""Counts and latency sketches over time, in their own database: minutes, merged with age into quarters and hours."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from lenskeep.database import Row, Transaction
from lenskeep.messages.runner import STAGES
from lenskeep.sketch import Sketch

MINUTE_S, QUARTER_S, HOUR_S = 60, 900, 3600


class Span:
    """What one version did in one slot over a time span."""

    __slots__ = ("frames", "misses", "outcomes", "sketches")

    def __init__(self) -> None:
        self.frames = 0
        self.misses = 0
        self.outcomes: dict[str, int] = {}
        self.sketches: dict[str, Sketch] = {stage: Sketch() for stage in STAGES}

    def merge(self, other: Span) -> None:
        """Add another span's counts to this one."""
        self.frames += other.frames
        self.misses += other.misses
        for outcome, count in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + count
        for stage, sketch in other.sketches.items():
            self.sketches[stage].merge(sketch)

    def share(self, *outcomes: str) -> float:
        """Return which part of the frames ended in one of these outcomes."""
        return sum(self.outcomes.get(outcome, 0) for outcome in outcomes) / self.frames if self.frames else 0.0


class SpanKey(Struct, frozen=True, order=True):
    """Which version, where and when."""

    seconds: int
    start_s: int
    slot: str
    bundle: str


def row_of(key: SpanKey, span: Span) -> tuple[int | str | bytes, ...]:
    """Pack a span as it is at this moment."""
    return (
        key.seconds, key.start_s, key.slot, key.bundle, span.frames, span.misses,
        msgspec.json.encode(span.outcomes).decode(),
        msgspec.msgpack.encode({stage: sketch.to_bytes() for stage, sketch in span.sketches.items()}),
    )  # fmt: skip


async def save(tx: Transaction, rows: list[tuple[int | str | bytes, ...]]) -> None:
    """Write packed spans, replacing what was there."""
    await tx.many("INSERT OR REPLACE INTO span VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)


async def load(tx: Transaction, key: SpanKey) -> Span | None:
    """Return a stored span."""
    row = await tx.one(
        "SELECT * FROM span WHERE seconds = ? AND start_s = ? AND slot = ? AND bundle = ?",
        key.seconds, key.start_s, key.slot, key.bundle,
    )  # fmt: skip
    return None if row is None else _span(row)


async def since(tx: Transaction, slot: str | None, start_s: int) -> list[tuple[SpanKey, Span]]:
    """Return all spans that began at or after a time, oldest first."""
    rows = await tx.all(
        "SELECT * FROM span WHERE start_s >= ? AND (?2 IS NULL OR slot = ?2) ORDER BY start_s", start_s, slot
    )
    return [(_key(row), _span(row)) for row in rows]


async def position(tx: Transaction, slot: str) -> tuple[str, int]:
    """Return the runner's run and the last result of it that the spans include."""
    row = await tx.one("SELECT run, sequence FROM position WHERE slot = ?", slot)
    return ("", 0) if row is None else (row["run"], row["sequence"])


async def save_position(tx: Transaction, slot: str, run: str, sequence: int) -> None:
    """Note up to where the spans are complete, in the transaction that made them so."""
    await tx.run("INSERT OR REPLACE INTO position VALUES (?, ?, ?)", slot, run, sequence)


async def move_horizon(tx: Transaction, *, now_s: int, by_s_max: int) -> int:
    """Return the time by which spans are old. It moves on by no more than `by_s_max`, whatever the clock says.

    A device that was off has no spans of that time, so a horizon that lags behind keeps little; a clock that leaps
    ahead must not make everything old at once.
    """
    row = await tx.one("SELECT at_s FROM horizon")
    if row is None:
        newest = await tx.one("SELECT MAX(start_s) AS start_s FROM span")
        known = newest["start_s"] if newest is not None else None
        horizon_s = now_s if known is None else min(now_s, known + by_s_max)
    else:
        horizon_s = min(now_s, row["at_s"] + by_s_max)
    await tx.run("INSERT OR REPLACE INTO horizon VALUES (1, ?)", horizon_s)
    return horizon_s


async def thin(tx: Transaction, *, now_s: int, minutes_days: int, quarters_days: int, hours_days: int) -> None:
    """Merge old minutes into quarters, old quarters into hours, and forget old hours."""
    await _merge_older(tx, MINUTE_S, QUARTER_S, now_s - minutes_days * 86400)
    await _merge_older(tx, QUARTER_S, HOUR_S, now_s - quarters_days * 86400)
    await tx.run("DELETE FROM span WHERE seconds = ? AND start_s < ?", HOUR_S, now_s - hours_days * 86400)


async def _merge_older(tx: Transaction, small_s: int, large_s: int, before_s: int) -> None:
    before_s -= before_s % large_s  # whole large spans only
    rows = await tx.all("SELECT * FROM span WHERE seconds = ? AND start_s < ? LIMIT 2000", small_s, before_s)
    merged: dict[SpanKey, Span] = {}
    for row in rows:
        key = SpanKey(large_s, row["start_s"] - row["start_s"] % large_s, row["slot"], row["bundle"])
        if key not in merged:
            merged[key] = await load(tx, key) or Span()
        merged[key].merge(_span(row))
    await save(tx, [row_of(key, span) for key, span in merged.items()])
    await tx.many(
        "DELETE FROM span WHERE seconds = ? AND start_s = ? AND slot = ? AND bundle = ?",
        ((small_s, row["start_s"], row["slot"], row["bundle"]) for row in rows),
    )


def _key(row: Row) -> SpanKey:
    return SpanKey(row["seconds"], row["start_s"], row["slot"], row["bundle"])


def _span(row: Row) -> Span:
    span = Span()
    span.frames, span.misses = row["frames"], row["misses"]
    span.outcomes = msgspec.json.decode(row["outcomes"], type=dict[str, int])
    for stage, data in msgspec.msgpack.decode(row["sketches"], type=dict[str, bytes]).items():
        span.sketches[stage] = Sketch.from_bytes(data)
    return span
