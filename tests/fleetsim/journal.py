"""What a simulated device keeps over a restart: its outbox and a few numbers, in one file that only grows.

Rules. What was written survives kill -9 of its process (not a power cut: nobody pulls the plug of a simulator). The
file is never shortened, so that whoever counts finds in it every record that was ever produced or dropped.
"""

from __future__ import annotations

import secrets
import struct
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
from msgspec import Struct

from lenskeep.messages.sync import Happening, Record, Vitals, Window

_LENGTH = struct.Struct("<I")


class Made(Struct, frozen=True, tag="m"):
    """A record was produced."""

    record: Record


class Taken(Struct, frozen=True, tag="t"):
    """The fleet has every record up to this number."""

    upto: int


class Dropped(Struct, frozen=True, tag="d"):
    """These were given up because the outbox was full."""

    numbers: list[int]


class PutBack(Struct, frozen=True, tag="p"):
    """The fleet came back from a copy: what it had acknowledged above this number is gone there."""

    upto: int


class Noted(Struct, frozen=True, tag="n"):
    """Something else that has to survive."""

    key: str
    value: Any


Frame = Made | Taken | Dropped | PutBack | Noted
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def frames(path: Path) -> Iterator[Frame]:
    """Read a journal; a last frame that was not finished was never written."""
    data = path.read_bytes() if path.exists() else b""
    at = 0
    while at + _LENGTH.size <= len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > len(data):
            return
        yield _decoder.decode(data[at : at + size])
        at += size


@dataclass
class Account:
    """What a device has produced, as its journal says."""

    made: dict[int, Record] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)  # lost by a fleet that was put back
    taken: int = -1

    @classmethod
    def read(cls, path: Path) -> Account:
        """Count everything in a journal."""
        account = cls()
        for frame in frames(path):
            match frame:
                case Made(record):
                    assert record.n not in account.made, f"{path}: record {record.n} twice"
                    account.made[record.n] = record
                case Dropped(numbers):
                    account.dropped |= set(numbers)
                case Taken(upto):
                    account.taken = upto
                case PutBack(upto):
                    account.gone |= {n for n in account.made if upto < n <= account.taken} - account.dropped
                    account.taken = upto
        return account

    @property
    def owed(self) -> dict[int, Record]:
        """The records that the fleet must have, each once."""
        return {n: record for n, record in self.made.items() if n not in self.dropped | self.gone}

    def check(self, name: str) -> None:
        """Require that the device has said how much it dropped."""
        said = sum(r.count for r in self.owed.values() if _is_loss(r))
        dropped = sum(not _is_loss(self.made[n]) for n in self.dropped)
        assert said == dropped or self.gone, f"{name}: {dropped} records were dropped, and {said} were told"


def _is_loss(record: Record) -> TypeGuard[Happening]:
    return isinstance(record, Happening) and record.kind == "lost"


def _worth(record: Record) -> int:
    """Order records by what they are worth; notes of losses go last."""
    if _is_loss(record):
        return 3
    return 0 if isinstance(record, Window) else 1 if isinstance(record, Vitals) else 2


class Journal:
    """A device's outbox and numbers. With `path` None it is in memory alone: for crowds that never restart."""

    def __init__(self, path: Path | None, *, records_max: int = 5000) -> None:
        self._records_max = records_max
        self._waiting: deque[Record] = deque()
        self._numbers: dict[str, Any] = {}
        self._next = 0
        self.taken = -1
        self._file = None
        if path is not None:
            self._recover(path)
            self._file = path.open("ab", buffering=0)
        if not self.outbox:
            self.note("outbox", secrets.token_hex(8))

    def _recover(self, path: Path) -> None:
        size = 0
        for frame in frames(path):
            size += _LENGTH.size + len(_encoder.encode(frame))
            match frame:
                case Made(record):
                    self._waiting.append(record)
                    self._next = record.n + 1
                case Taken(upto):
                    self._forget(upto)
                case Dropped(numbers):
                    gone = set(numbers)
                    self._waiting = deque(r for r in self._waiting if r.n not in gone)
                case PutBack(upto):
                    self.taken = upto
                case Noted(key, value):
                    self._numbers[key] = value
        if path.exists() and path.stat().st_size > size:
            with path.open("r+b") as file:
                file.truncate(size)

    def _write(self, frame: Frame) -> None:
        if self._file is not None:
            data = _encoder.encode(frame)
            self._file.write(_LENGTH.pack(len(data)) + data)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def next_number(self) -> int:
        return self._next

    @property
    def outbox(self) -> str:
        """Return the name of the numbering."""
        return str(self._numbers.get("outbox", ""))

    @property
    def after(self) -> int:
        """Return the number up to which nothing is held any more."""
        return (self._waiting[0].n if self._waiting else self._next) - 1

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, record: Record) -> None:
        """Keep a record until the fleet has it; its number must be `next_number`."""
        assert record.n == self._next
        self._next += 1
        self._write(Made(record))
        self._waiting.append(record)
        if len(self._waiting) > self._records_max:
            self._make_room(record.n)

    def _make_room(self, now: int) -> None:
        """Drop the least valuable, a tenth of all at once, and say how many; a note of losses that goes is counted on."""
        wanted = self._records_max // 10 or 1
        oldest = sorted((r for r in self._waiting if r.n != now), key=_worth)[:wanted]
        gone = {r.n for r in oldest}
        self._write(Dropped(sorted(gone)))
        self._waiting = deque(r for r in self._waiting if r.n not in gone)
        count = sum(r.count if _is_loss(r) else 1 for r in oldest)
        self.put(Happening(n=self._next, kind="lost", at_ms=0, text="the outbox was full", count=count))

    def batch(self, count_max: int) -> list[Record]:
        """Return the oldest records."""
        return [self._waiting[at] for at in range(min(count_max, len(self._waiting)))]

    def acknowledged(self, upto: int) -> None:
        """Forget what the fleet has."""
        if upto != self.taken:
            self._write(Taken(upto))
            self._forget(upto)

    def put_back(self, upto: int) -> None:
        """The fleet has less than it had."""
        self._write(PutBack(upto))
        self.taken = upto

    def _forget(self, upto: int) -> None:
        self.taken = upto
        while self._waiting and self._waiting[0].n <= upto:
            self._waiting.popleft()

    def note(self, key: str, value: Any) -> None:
        """Keep a number or a word."""
        if self._numbers.get(key) != value:
            self._numbers[key] = value
            self._write(Noted(key, value))

    def noted(self, key: str, otherwise: Any) -> Any:
        """Return what was kept."""
        return self._numbers.get(key, otherwise)
