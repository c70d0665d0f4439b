"""What devices measured: records merged once into counts by hour, and the questions that pages and gates ask of them.

Rules. Records wait in `inbox`, where the acknowledgement put them; merging takes them out and adds them up in one
transaction, so each counts once, whoever is killed when, and however many replicas try. (Adding up in the transaction
of the acknowledgement would have every replica and every device write the same few rows.) The rows' number depends on
versions, hardware classes and time, not on devices: hours are kept for `HOURS_KEPT`, then days for `DAYS_KEPT`. Per
device there are the newest window of each slot and the newest vitals, about 2 KB; of happenings the newest
`HAPPENINGS_KEPT`. So 10,000 devices are 20 MB, happenings 200 MB at most, and a version on one hardware class with six
stages 0.5 MB for its week of hours and 3 KB for each day before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from lenskeep.fleet.store import trials
from lenskeep.fleet.store.engine import Engine, Row, Transaction, steps
from lenskeep.messages.fleet import DeviceReport
from lenskeep.messages.sync import Happening, Record, Trial, Vitals, Window
from lenskeep.messages.telemetry import (
    Behaviour,
    HappeningView,
    Latency,
    Running,
    VitalsView,
    WindowView,
)
from lenskeep.sketch import Sketch, SketchSum

HOUR_S, DAY_S = 3600, 86_400
HOURS_KEPT, DAYS_KEPT = 7 * 24, 400
HAPPENINGS_KEPT = 1_000_000
HAPPENINGS_KEPT_MS = 90 * DAY_S * 1000
AHEAD_S = 900  # a device's clock that is further ahead than this is not believed
ONE_MAX = 1 << 32  # that one window may add, so that sums of many stay numbers
WORDS_MAX = 64  # outcomes that are told apart in a sum
COUNTS = ""  # the stage of the row that holds no sketch

By = Literal["digest", "provider", "hardware", "hour"]
Key = tuple[int, int, str, str, str, str, str]  # span, begin, bundle, digest, provider, hardware, stage
_RECORDS = msgspec.msgpack.Decoder(list[Record])
_WINDOW = msgspec.msgpack.Decoder(Window)


class Waiting(msgspec.Struct, frozen=True):
    """A call's records that wait to be merged."""

    id: int
    device: str
    received_ms: int
    body: bytes


@dataclass(slots=True)
class Sum:
    """What is added up under one key."""

    windows: int = 0
    seconds: int = 0
    frames: int = 0
    misses: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    sketch: Sketch = field(default_factory=Sketch)
    packed: SketchSum = field(default_factory=SketchSum)

    def settle(self) -> None:
        """Add what was gathered in packed form to the sketch."""
        self.sketch.merge(self.packed.total())
        self.packed = SketchSum()

    def add(self, other: Sum) -> None:
        """Add another sum."""
        self.windows += other.windows
        self.seconds += other.seconds
        self.frames += other.frames
        self.misses += other.misses
        for word, count in other.outcomes.items():
            self.outcomes[word] = self.outcomes.get(word, 0) + count
        self.sketch.merge(other.sketch)


@dataclass(slots=True)
class Merged:
    """Waiting records, added up; made by `merge` away from the database."""

    ids: list[int] = field(default_factory=list)
    sums: dict[Key, Sum] = field(default_factory=dict)
    recent: dict[tuple[str, str], tuple[int, bytes]] = field(default_factory=dict)
    vitals: dict[str, tuple[int, Vitals]] = field(default_factory=dict)
    happenings: list[tuple[str, int, Happening]] = field(default_factory=list)
    trials: list[trials.Told] = field(default_factory=list)


def merge(waiting: Sequence[Waiting], hardware: dict[str, str], into: Merged | None = None) -> Merged:
    """Add up waiting records.

    Args:
        hardware: class of each device's machine, as far as known; vitals among the records are put into it.
    """
    merged = Merged() if into is None else into
    for each in waiting:
        merged.ids.append(each.id)
        records = _RECORDS.decode(each.body)
        for record in records:
            if isinstance(record, Vitals):
                merged.vitals[each.device] = (each.received_ms, record)
                hardware[each.device] = record.hardware
        for record in records:
            if isinstance(record, Window):
                _add_window(merged, each, record, hardware.get(each.device, ""))
            elif isinstance(record, Happening):
                merged.happenings.append((each.device, each.received_ms, record))
            elif isinstance(record, Trial):
                merged.trials.append(trials.Told(each.device, each.received_ms, record))
    return merged


def _add_window(merged: Merged, each: Waiting, window: Window, hardware: str) -> None:
    now_s = each.received_ms // 1000
    believed = now_s - DAYS_KEPT * DAY_S < window.start_s < now_s + AHEAD_S
    start_s = window.start_s if believed else now_s
    begin_s = start_s - start_s % HOUR_S
    counts = _sum(merged, (HOUR_S, begin_s, window.bundle, window.digest, window.provider, hardware, COUNTS))
    counts.windows += 1
    counts.seconds += min(window.seconds, ONE_MAX)
    counts.frames += min(window.frames, ONE_MAX)
    counts.misses += min(window.misses, ONE_MAX)
    for told, count in window.outcomes.items():
        word = told if told in counts.outcomes or (len(counts.outcomes) < WORDS_MAX and len(told) <= 64) else "other"
        counts.outcomes[word] = counts.outcomes.get(word, 0) + max(0, min(count, ONE_MAX))
    for stage, data in window.sketches.items():
        if not 0 < len(stage) <= 40:
            continue
        into = _sum(merged, (HOUR_S, begin_s, window.bundle, window.digest, window.provider, hardware, stage))
        try:
            into.packed.add(data)
        except ValueError:  # one spoiled sketch is not counted; the window's other parts are
            counts.outcomes["unreadable sketch"] = counts.outcomes.get("unreadable sketch", 0) + 1
        else:
            into.windows += 1
    merged.recent[each.device, window.slot] = (each.received_ms, msgspec.msgpack.encode(window))


def _sum(merged: Merged, key: Key) -> Sum:
    found = merged.sums.get(key)
    if found is None:
        found = merged.sums[key] = Sum()
    return found


@steps
class TelemetryStore:
    """Telemetry in the fleet's database."""

    def __init__(self, database: Engine) -> None:
        self._database = database

    # --- merging --------------------------------------------------------------------------------------------------

    async def waiting(self, limit: int) -> list[Waiting]:
        """Return the oldest calls whose records are not merged yet."""
        async with self._database.read() as tx:
            found = await tx.all("SELECT id, device, received_ms, body FROM inbox ORDER BY id LIMIT ?", limit)
        return [Waiting(row["id"], row["device"], row["received_ms"], bytes(row["body"])) for row in found]

    async def hardware(self) -> dict[str, str]:
        """Return the hardware class of every device that told it."""
        async with self._database.read() as tx:
            return {row["device"]: row["hardware"] for row in await tx.all("SELECT device, hardware FROM vitals")}

    async def add(self, merged: Merged) -> bool:
        """Put sums in and take the records out, both or neither; False when another replica had taken some of them."""
        async with self._database.write() as tx:
            gone = await tx.run("DELETE FROM inbox WHERE id BETWEEN ? AND ?", merged.ids[0], merged.ids[-1])
            if gone != len(merged.ids):
                raise TakenElsewhereError
            await _add_sums(tx, merged.sums)
            await _add_newest(tx, merged)
            await trials.add(tx, merged.trials)
        return True

    async def thin(self, now_s: int) -> int:
        """Make days of old hours, forget what is too old; return how many hours became days."""
        edge_s = now_s - HOURS_KEPT * HOUR_S
        edge_s -= edge_s % DAY_S
        async with self._database.write() as tx:
            old = await tx.all("SELECT * FROM telemetry WHERE span_s = ? AND begin_s < ? LIMIT 5000", HOUR_S, edge_s)
            days: dict[Key, Sum] = {}
            for row in old:
                begin_s = row["begin_s"] - row["begin_s"] % DAY_S
                key = (DAY_S, begin_s, row["bundle"], row["digest"], row["provider"], row["hardware"], row["stage"])
                days.setdefault(key, Sum()).add(_read_sum(row))
            await _add_sums(tx, days)
            await tx.many(
                "DELETE FROM telemetry WHERE bundle = ? AND span_s = ? AND begin_s = ? AND digest = ? AND provider = ?"
                " AND hardware = ? AND stage = ?",
                [tuple(row[name] for name in ("bundle", "span_s", "begin_s", *_GROUPS, "stage")) for row in old],
            )
            await tx.run("DELETE FROM telemetry WHERE begin_s < ?", now_s - DAYS_KEPT * DAY_S)
            await trials.thin(tx, now_s * 1000)
            await tx.run("DELETE FROM happening WHERE received_ms < ?", now_s * 1000 - HAPPENINGS_KEPT_MS)
            newest = await tx.one("SELECT max(id) AS id FROM happening")
            if newest is not None and newest["id"]:
                await tx.run("DELETE FROM happening WHERE id <= ?", newest["id"] - HAPPENINGS_KEPT)
        return len(old)

    # --- asking ---------------------------------------------------------------------------------------------------

    async def latency(
        self, bundle: str = "", stage: str = "", by: Iterable[By] = ("hardware",), *, since_s: int = 0, until_s: int = 0
    ) -> list[Latency]:
        """Return how long stages of versions took, merged over whatever `by` does not name.

        Args:
            bundle: NAME@VERSION; empty = every version. stage: empty = every stage.
            since_s: whole hours count (days, once they are old), also the one that the moment lies in; 0 = all.
        """
        asked = tuple(by)
        sums = await self._sums(bundle, stage, asked, since_s, until_s, sketches=True)
        return [
            Latency(
                bundle=name, stage=of, digest=digest, provider=provider, hardware=hardware, begin_s=begin_s,
                samples=total.sketch.total, p50_ms=_ms(total.sketch, 0.5), p90_ms=_ms(total.sketch, 0.9),
                p99_ms=_ms(total.sketch, 0.99), p999_ms=_ms(total.sketch, 0.999),
            )
            for (_, begin_s, name, digest, provider, hardware, of), total in sorted(sums.items())
            if total.sketch.counts
        ]  # fmt: skip

    async def behaviour(
        self, bundle: str = "", by: Iterable[By] = ("hardware",), *, since_s: int = 0, until_s: int = 0
    ) -> list[Behaviour]:
        """Return what versions did (frames, misses, outcomes), merged over whatever `by` does not name."""
        sums = await self._sums(bundle, COUNTS, tuple(by), since_s, until_s, sketches=False)
        return [
            Behaviour(
                bundle=name, digest=digest, provider=provider, hardware=hardware, begin_s=begin_s,
                windows=total.windows, seconds=total.seconds, frames=total.frames, misses=total.misses,
                outcomes=total.outcomes,
            )
            for (_, begin_s, name, digest, provider, hardware, _), total in sorted(sums.items())
        ]  # fmt: skip

    async def _sums(
        self, bundle: str, stage: str, by: tuple[By, ...], since_s: int, until_s: int, *, sketches: bool
    ) -> dict[Key, Sum]:
        conditions, values = ["begin_s + span_s > ?"], [since_s]
        if until_s:
            conditions.append("begin_s < ?")
            values.append(until_s)
        words: list[str] = []
        if bundle:
            conditions.append("bundle = ?")
            words.append(bundle)
        if stage or not sketches:
            conditions.append("stage = ?")
            words.append(stage)
        async with self._database.read() as tx:
            found = await tx.all(f"SELECT * FROM telemetry WHERE {' AND '.join(conditions)}", *values, *words)  # noqa: S608 - our own words
        sums: dict[Key, Sum] = {}
        for row in found:
            kept = [row[name] if name in by else "" for name in _GROUPS]
            key = (0, row["begin_s"] if "hour" in by else 0, row["bundle"], *kept, row["stage"])
            sums.setdefault(key, Sum()).add(_read_sum(row))
        return sums

    async def running(self) -> list[Running]:
        """Return how many slots run which version, by the signed reports of devices that are let in."""
        counted: dict[tuple[str, str], list[str]] = {}
        for device, report in await self._reports():
            for slot in report.slots:
                if slot.running:
                    counted.setdefault((slot.running, slot.digest), []).append(device)
        return [
            Running(bundle=bundle, digest=digest, slots=len(devices), devices=len(set(devices)))
            for (bundle, digest), devices in sorted(counted.items())
        ]

    async def _reports(self) -> list[tuple[str, DeviceReport]]:
        async with self._database.read() as tx:
            found = await tx.all(
                "SELECT standing.device, standing.report FROM standing JOIN device ON device.name = standing.device"
                " WHERE device.state = 'enrolled' ORDER BY standing.device"
            )
        return [(row["device"], msgspec.json.decode(row["report"], type=DeviceReport)) for row in found]

    async def happenings(
        self, *, device: str = "", bundle: str = "", kind: str = "", since_ms: int = 0, limit: int = 200
    ) -> list[HappeningView]:
        """Return what happened on devices, newest first; `since_ms` is when the fleet heard of it."""
        sql, values = "SELECT * FROM happening WHERE received_ms >= ?", [since_ms]
        words = [(name, value) for name, value in (("device", device), ("bundle", bundle), ("kind", kind)) if value]
        for name, _ in words:
            sql += f" AND {name} = ?"
        async with self._database.read() as tx:
            found = await tx.all(f"{sql} ORDER BY id DESC LIMIT ?", *values, *(value for _, value in words), limit)
        names = HappeningView.__struct_fields__
        return [HappeningView(**{name: row[name] for name in names}) for row in found]

    async def vitals(self, device: str = "") -> list[VitalsView]:
        """Return the newest vitals of a device, or of all."""
        sql, values = ("SELECT * FROM vitals WHERE device = ?", [device]) if device else ("SELECT * FROM vitals", [])
        async with self._database.read() as tx:
            found = await tx.all(f"{sql} ORDER BY device", *values)
        return [
            VitalsView(
                device=row["device"], received_ms=row["received_ms"],
                vitals=msgspec.json.decode(row["body"], type=Vitals),
            )
            for row in found
        ]  # fmt: skip

    async def recent(self, device: str) -> list[WindowView]:
        """Return the newest window of each slot of a device."""
        async with self._database.read() as tx:
            found = await tx.all("SELECT * FROM recent WHERE device = ? ORDER BY slot", device)
        return [_window_view(row) for row in found]


class TakenElsewhereError(Exception):
    """Another replica merged some of these records; nothing of this was kept."""


_GROUPS: tuple[By, By, By] = ("digest", "provider", "hardware")


async def _add_sums(tx: Transaction, sums: dict[Key, Sum]) -> None:
    """Add sums to what stands under their keys."""
    changed = []
    for (span_s, begin_s, bundle, *groups, stage), total in sums.items():
        row = await tx.one(
            "SELECT * FROM telemetry WHERE bundle = ? AND span_s = ? AND begin_s = ? AND digest = ? AND provider = ?"
            " AND hardware = ? AND stage = ?",
            bundle, span_s, begin_s, *groups, stage,
        )  # fmt: skip
        total.settle()
        if row is not None:
            total.add(_read_sum(row))
        changed.append(
            (
                span_s, begin_s, bundle, *groups, stage, total.windows, total.seconds, total.frames, total.misses,
                json.dumps(total.outcomes, sort_keys=True), total.sketch.to_bytes(),
            )
        )  # fmt: skip
    await tx.many(
        "INSERT INTO telemetry (span_s, begin_s, bundle, digest, provider, hardware, stage, windows, seconds, frames,"
        " misses, outcomes, sketch) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (bundle, span_s, begin_s, digest, provider, hardware, stage) DO UPDATE SET"
        " windows = excluded.windows, seconds = excluded.seconds, frames = excluded.frames, misses = excluded.misses,"
        " outcomes = excluded.outcomes, sketch = excluded.sketch",
        changed,
    )


async def _add_newest(tx: Transaction, merged: Merged) -> None:
    """Keep what is newest of each device, and what happened."""
    await tx.many(
        "INSERT INTO recent (device, slot, received_ms, body) VALUES (?, ?, ?, ?) ON CONFLICT (device, slot)"
        " DO UPDATE SET received_ms = excluded.received_ms, body = excluded.body",
        [(*key, received_ms, body) for key, (received_ms, body) in merged.recent.items()],
    )
    await tx.many(
        "INSERT INTO vitals (device, received_ms, hardware, version, body) VALUES (?, ?, ?, ?, ?) ON CONFLICT (device)"
        " DO UPDATE SET received_ms = excluded.received_ms, hardware = excluded.hardware, version = excluded.version,"
        " body = excluded.body",
        [
            (device, received_ms, said.hardware, said.version, msgspec.json.encode(said).decode())
            for device, (received_ms, said) in merged.vitals.items()
        ],
    )
    await tx.many(
        "INSERT INTO happening (device, n, kind, at_ms, received_ms, slot, bundle, code, text, count)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (device, it.n, it.kind, it.at_ms, received_ms, it.slot, it.bundle, it.code, it.text, it.count)
            for device, received_ms, it in merged.happenings
        ],
    )


def _read_sum(row: Row) -> Sum:
    return Sum(
        windows=row["windows"], seconds=row["seconds"], frames=row["frames"], misses=row["misses"],
        outcomes=json.loads(row["outcomes"]), sketch=Sketch.from_bytes(bytes(row["sketch"])),
    )  # fmt: skip


def _window_view(row: Row) -> WindowView:
    window = _WINDOW.decode(bytes(row["body"]))
    sketches = {stage: Sketch.from_bytes(data) for stage, data in window.sketches.items()}
    return WindowView(
        device=row["device"], slot=window.slot, bundle=window.bundle, digest=window.digest, provider=window.provider,
        received_ms=row["received_ms"], seconds=window.seconds, frames=window.frames, misses=window.misses,
        outcomes=window.outcomes, p50_ms={stage: _ms(sketch, 0.5) for stage, sketch in sketches.items()},
        p99_ms={stage: _ms(sketch, 0.99) for stage, sketch in sketches.items()},
    )  # fmt: skip


def _ms(sketch: Sketch, fraction: float) -> float:
    return round(sketch.quantile_us(fraction) / 1000, 4)
