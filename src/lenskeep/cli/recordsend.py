"""Hands a device's record that came as a file to its fleet: in pieces, only what is not there yet.

Rules. The head goes first: where it is of an entry that the fleet has, it says whether the file is of the same record.
The file may be large and is never held as a whole. What it says is judged by the fleet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from lenskeep.cli.fleetclient import FleetClient
from lenskeep.errors import RecordFormatError, SourceError
from lenskeep.messages.fleet import RecordState
from lenskeep.trust import recordfile
from lenskeep.trust import stick as layout
from lenskeep.trust.recordpiece import PIECE_BYTES
from lenskeep.trust.source import open_regular

Told = Callable[[int, int], None]  # bytes done, of


class _Place(Struct, frozen=True):
    """What every line of an entry says of its place."""

    sequence: int
    hash: str


_PLACE = msgspec.json.Decoder(_Place)


def send_record(client: FleetClient, stick: Path, device: str, told: Told) -> int:
    """Hand in the record of a device that lies on a stick; return how many entries were new.

    Raises: RecordFormatError, SourceError, and what the fleet refuses with.
    """
    descriptor = open_regular(stick, layout.record_file(device))
    if descriptor is None:
        return 0
    with open(descriptor, "rb") as file:  # noqa: PTH123 - it is open already
        size = file.seek(0, 2)
        if size > layout.RECORD_BYTES_MAX:
            raise SourceError(f"The record has {size} bytes; {layout.RECORD_BYTES_MAX} are accepted.")
        state = client.record(device)
        places, head, last = _look_through(file, {(each.sequence, each.hash): each.copy for each in state.copies})
        said = client.take_record_piece(device, state.copies[0].copy if state.copies else 1, -1, head)
        if said.known and not places:
            return 0
        if places:
            (after, _), copy = max(places.items(), key=lambda place: place[1])
        else:
            after, copy = -1, (state.copies[0].copy if state.copies else 0) + 1
        if last <= after:
            return 0
        fresh = _send(client, device, file, copy, after, lambda done: told(done, size))
        told(size, size)
        return fresh


def _look_through(file: BinaryIO, ends: dict[tuple[int, str], int]) -> tuple[dict[tuple[int, str], int], bytes, int]:
    """Find which copies end within the file; return those with their ends, the head's line, and the last entry."""
    found: dict[tuple[int, str], int] = {}
    line, last = b"", -1
    for line in _lines(file):
        if line.startswith(b'{"kind":"entry"'):
            place = _place_of(line)
            last = place.sequence
            copy = ends.get((place.sequence, place.hash))
            if copy is not None:
                found[place.sequence, place.hash] = copy
    if not line.startswith(b'{"kind":"head"'):
        raise RecordFormatError("The file ends without a signed head.")
    return found, line, last


def _send(client: FleetClient, device: str, file: BinaryIO, copy: int, after: int, told: Callable[[int], None]) -> int:
    """Send what stands behind an entry; return how many entries were new."""
    fresh, at, end = 0, after, after
    waiting: list[bytes] = []
    length = 0

    def send() -> RecordState:
        return client.take_record_piece(device, copy, at, b"".join(waiting))

    for line in _lines(file):
        sequence = end
        if line.startswith(b'{"kind":"entry"'):
            sequence = _place_of(line).sequence
            if sequence <= after:
                continue
        if waiting and length + len(line) > PIECE_BYTES:
            fresh += send().entries
            told(file.tell())
            at, waiting, length = end, [], 0
        waiting.append(line)
        length, end = length + len(line), sequence
    return fresh + send().entries


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines behind the header. Raises: RecordFormatError."""
    file.seek(0)
    if not file.readline(recordfile.LINE_BYTES_MAX + 1).startswith(b'{"kind":"record"'):
        raise RecordFormatError("The first line does not say that this is a record of Lenskeep.")
    while line := file.readline(recordfile.LINE_BYTES_MAX + 1):
        if len(line) > recordfile.LINE_BYTES_MAX:
            raise RecordFormatError("The file holds a line that is longer than an entry may be.")
        yield line


def _place_of(line: bytes) -> _Place:
    try:
        return _PLACE.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordFormatError(f"A line of the record cannot be read: {error}.") from error
