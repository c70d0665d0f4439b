"""What devices have produced against what the fleet's store has: every record, each exactly once."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lenskeep.messages.sync import Happening, Record, Trial, Vitals, Window
from lenskeep.sketch import Sketch
from tests.fleetsim.journal import Account

_records = msgspec.msgpack.Decoder(list[Record])


@dataclass
class Books:
    """One side's sums. Windows are added up by the digest that they name, happenings are kept one by one."""

    windows: Counter[tuple[str, str]] = field(default_factory=Counter)  # what, digest
    samples: Counter[tuple[str, str]] = field(default_factory=Counter)  # digest, stage
    happenings: Counter[tuple[str, int, str, int]] = field(default_factory=Counter)  # device, n, kind, count
    trials: Counter[str] = field(default_factory=Counter)  # by version
    vitals: dict[str, int] = field(default_factory=dict)  # device -> newest
    taken: dict[str, int] = field(default_factory=dict)

    def add(self, device: str, record: Record) -> None:
        match record:
            case Window():
                self.windows["windows", record.digest] += 1
                self.windows["frames", record.digest] += record.frames
                for stage, data in record.sketches.items():
                    self.samples[record.digest, stage] += Sketch.from_bytes(data).total
            case Happening():
                self.happenings[device, record.n, record.kind, record.count] += 1
            case Trial():
                self.trials[record.bundle] += 1
            case Vitals():
                self.vitals[device] = max(record.n, self.vitals.get(device, -1))


def devices_say(journals: Path) -> tuple[Books, Books]:
    """Add up what the journals of devices say: what the fleet must have, and what it may have besides.

    What was dropped from a full outbox may have been taken: then only its acknowledgement was lost.
    """
    must, may = Books(), Books()
    for path in sorted(journals.glob("*.journal")):
        account = Account.read(path)
        account.check(path.stem)
        for n, record in account.made.items():
            (must if n in account.owed else may).add(path.stem, record)
        must.taken[path.stem] = account.taken
        assert not account.owed or account.taken == max(account.made), f"{path.stem} still holds records"
    return must, may


def fleet_says(database: Path) -> Books:
    """Add up what a fleet's SQLite has: what was merged and what still waits for that."""
    books = Books()
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection, connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        for row in connection.execute("SELECT digest, stage, windows, frames, sketch FROM telemetry"):
            if row["stage"]:
                books.samples[row["digest"], row["stage"]] += Sketch.from_bytes(bytes(row["sketch"])).total
            else:
                books.windows["windows", row["digest"]] += row["windows"]
                books.windows["frames", row["digest"]] += row["frames"]
        for row in connection.execute("SELECT device, n, kind, count FROM happening"):
            books.happenings[row["device"], row["n"], row["kind"], row["count"]] += 1
        for row in connection.execute("SELECT bundle, trials FROM trial_sum"):
            books.trials[row["bundle"]] += row["trials"]
        for row in connection.execute("SELECT device, body FROM vitals"):
            books.vitals[row["device"]] = msgspec.json.decode(row["body"], type=Vitals).n
        for row in connection.execute("SELECT device, max(taken) AS taken FROM intake GROUP BY device"):
            books.taken[row["device"]] = row["taken"]
        for row in connection.execute("SELECT device, body FROM inbox"):
            for record in _records.decode(bytes(row["body"])):
                books.add(row["device"], record)
    connection.close()
    return books


def differences(must: Books, may: Books, fleet: Books) -> Iterator[str]:
    """Say what does not agree; nothing when every record is there once."""
    for name in ("windows", "samples", "happenings", "trials"):
        said, more, has = getattr(must, name), getattr(may, name), getattr(fleet, name)
        for key in sorted({*said, *has}):
            if name == "happenings" and key[2] == "other":
                continue  # the fleet's own note of numbers that were dropped
            if not said[key] <= has[key] <= said[key] + more[key]:
                yield f"{name} {key}: devices {said[key]} (and {more[key]} dropped), fleet {has[key]}"
    for device, n in must.vitals.items():
        if fleet.vitals.get(device, -1) < n:
            yield f"vitals of {device}: devices {n}, fleet {fleet.vitals.get(device)}"
    for device, n in must.taken.items():
        if n >= 0 and fleet.taken.get(device) != n:
            yield f"taken of {device}: devices {n}, fleet {fleet.taken.get(device)}"


def settled(journals: Path, database: Path, seconds: float = 10.0) -> list[str]:
    """Compare both sides; what the fleet has acknowledged is there already, so nothing is waited for but a lock."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return list(differences(*devices_say(journals), fleet_says(database)))
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
