"""A device's record in pieces, as it is copied to its fleet: lines of an export, each piece behind the one before.

A piece holds entries as `recordfile` writes them, all shown, and may end with the signed head; a piece with a head
alone says how far the record goes. Whoever keeps the copy follows the chain from the newest entry that it has; nothing
that does not follow, and no head that another key signed, is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lenskeep.bundle.keys import PublicKey
from lenskeep.errors import RecordContradictedError, RecordFormatError, RecordHeadError
from lenskeep.trust import chain, recordfile
from lenskeep.trust.chain import Entry, Head, Point, Walk
from lenskeep.trust.recordfile import HeadLine

PIECE_BYTES = 512 << 10  # after which a piece is full
PIECE_BYTES_MAX = PIECE_BYTES + 2 * recordfile.LINE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Parsed:
    """Lines of a piece, each in its one spelling; nothing of them is proven."""

    entries: list[Entry]
    head: str  # envelope; empty = there is none
    lines: bytes  # of the entries


@dataclass(frozen=True, slots=True)
class Piece:
    """Entries that follow from each other and from the place before them."""

    after: Point
    at: Point
    lines: bytes
    named: str  # the device that the record names
    first: int = -1
    entries: int = 0
    points: dict[int, str] = field(default_factory=dict)  # of the entries, and what beginnings say they follow
    head: Head | None = None
    envelope: str = ""


def parse(data: bytes) -> Parsed:
    """Read a piece. Raises: RecordFormatError."""
    entries: list[Entry] = []
    head, length = "", 0
    for raw in data.splitlines(keepends=True):
        line = recordfile.read_line(raw)
        if head or not isinstance(line, Entry | HeadLine):
            raise RecordFormatError("The piece holds a line that is no whole entry of a record.")
        if isinstance(line, HeadLine):
            head = line.envelope
        else:
            entries.append(line)
            length += len(raw)
    if not entries and not head:
        raise RecordFormatError("The piece is empty.")
    return Parsed(entries, head, data[:length])


def follow(parsed: Parsed, after: Point, named: str, device: str, key: PublicKey | None) -> Piece:
    """Go along a piece from a place. `key`: the one that must have signed its head.

    Raises: RecordContradictedError, RecordHeadError.
    """
    walk = Walk(after)
    walk.device = named
    points: dict[int, str] = {}
    for entry in parsed.entries:
        if not walk.take(entry):
            break
        points[entry.sequence] = entry.hash
        begins = chain.beginning_of(entry)
        if begins is not None:
            points |= {point.sequence: point.hash for point in (begins.follows, begins.found) if point.sequence >= 0}
    if walk.finding is not None:
        raise RecordContradictedError(f"Entry {walk.finding.sequence} ({walk.finding.kind}): {walk.finding.text}")
    head = None
    if parsed.head:
        if key is None:
            raise RecordHeadError("The head of the record is signed by a key that is not known.")
        head = chain.open_head(parsed.head.encode("utf-8", "replace"), key)
        if head.device != device:
            raise RecordHeadError(f"The head of the record is of {head.device!r}.")
        if parsed.entries and (head.point != walk.at or walk.device != device):
            said = f"the entries lead to {walk.at.sequence} of {walk.device!r}, signed is {head.sequence}"
            raise RecordContradictedError(f"Entries and head do not belong together: {said}.")
    return Piece(
        after, walk.at, parsed.lines, walk.device, walk.first, len(parsed.entries), points, head, parsed.head
    )  # fmt: skip


def hashes(data: bytes) -> dict[int, str]:
    """Return the hash of every entry in lines that were taken once."""
    return {entry.sequence: entry.hash for entry in parse(data).entries}
