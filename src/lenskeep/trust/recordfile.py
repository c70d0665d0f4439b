"""An exported record: one JSON document a line, provable on any machine with the device's public key alone.

First line: `{"kind":"record",…}` names format, device and key. Then every entry, oldest first, as `{"kind":"entry",…}`
or, where it is left out, as `{"kind":"left-out",…}` with the digest of its content, so that the chain holds without it.
Last line: `{"kind":"head",…}` with the envelope that the device signed over the last entry. Each line has one spelling
only; a byte that differs is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec
from msgspec import Struct

from lenskeep.bundle.keys import PublicKey, admit
from lenskeep.clock import rfc3339
from lenskeep.errors import RecordFormatError, RecordHeadError, RequestError
from lenskeep.messages.record import RecordGap, RecordVerdict
from lenskeep.trust import chain
from lenskeep.trust.chain import BEGIN, Entry, Head, LeftOut, Walk

FORMAT = "lenskeep-record-1"
LINE_BYTES_MAX = 256 << 10
DAY_MS = 86_400_000


class Header(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="record"):
    """The first line. The key in it proves nothing by itself: compare its fingerprint, or give the key."""

    format: str
    device: str
    key_id: str
    public_key: str


class HeadLine(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="head"):
    """The last line."""

    envelope: str


_LINE = msgspec.json.Decoder(Header | Entry | LeftOut | HeadLine)
_WRITE = msgspec.json.Encoder()
Seen = Callable[[Entry], object]


def header_line(device: str, key: PublicKey) -> bytes:
    """Return the first line of an export."""
    return _line(Header(format=FORMAT, device=device, key_id=key.id, public_key=key.pem))


def entry_line(entry: Entry, shown: bool) -> bytes:
    """Return the line of an entry, or of its place. What begins a record is always shown."""
    if shown or entry.action == BEGIN:
        return _line(entry)
    return _line(LeftOut(sequence=entry.sequence, content=chain.content_of(entry), hash=entry.hash))


def head_line(envelope: bytes) -> bytes:
    """Return the last line of an export."""
    return _line(HeadLine(envelope=envelope.decode("ascii")))


def _line(value: Struct) -> bytes:
    return _WRITE.encode(value) + b"\n"


def days_ms(first_day: str, last_day: str) -> tuple[int, int]:
    """Return the half-open span of two days, `2027-01-31`, in UTC; an empty one is open. Raises: RequestError."""
    return (_day_ms(first_day) if first_day else 0), (_day_ms(last_day) + DAY_MS if last_day else 2**53)


def _day_ms(day: str) -> int:
    try:
        return int(datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() * 1000)
    except ValueError:
        raise RequestError(f"{day!r} is not a day like 2027-01-31.") from None


class Reading:
    """Goes through an export once: `key`, `head` and `walk` hold what was found.

    Args:
        key: the device's public key; without it the file's own is used, which proves only that the file fits itself.
        witnesses: envelopes of heads that were kept elsewhere.
    Raises: RecordFormatError when it is no export at all, RecordHeadError for a witness that this key did not sign.
    """

    def __init__(
        self, lines: Iterable[bytes], *, key: PublicKey | None = None, witnesses: Iterable[bytes] = (),
        seen: Seen | None = None,
    ) -> None:  # fmt: skip
        self._lines = iter(lines)
        self._seen = seen
        self.header = self._header()
        self.key = key or _own_key(self.header)
        self._witnesses = [chain.open_head(data, self.key) for data in witnesses]
        marks = {head.sequence: (head.hash, f"the head kept from {head.at}") for head in self._witnesses}
        self.walk = Walk(marks=marks)
        self.head: Head | None = None
        self.envelope = ""
        self._go()

    def verdict(self) -> RecordVerdict:
        """Return what was found."""
        walk, head = self.walk, self.head
        return RecordVerdict(
            whole=walk.finding is None and not walk.gaps, device=self.header.device, first=walk.first,
            last=walk.at.sequence, entries=walk.entries, left_out=walk.left_out,
            head_sequence=head.sequence if head else -1, head_at=head.at if head else "", key_id=self.key.id,
            witnesses=walk.marked, gaps=told(walk), finding=walk.finding,
        )  # fmt: skip

    def _header(self) -> Header:
        first = read_line(next(self._lines, b""))
        if not isinstance(first, Header) or first.format != FORMAT:
            raise RecordFormatError("The first line does not say that this is a record of Lenskeep.")
        return first

    def _go(self) -> None:
        if self.header.key_id != self.key.id or self.header.public_key != self.key.pem:
            self.walk.wrong(0, "foreign", "The file names another key than the one that it is judged by.")
        for data in self._lines:
            if not self._step(data):
                return
        if self.head is None and self.walk.finding is None:
            last = self.walk.at.sequence
            self.walk.wrong(last + 1, "cut short", f"The file ends after entry {last} without a signed head.")
        self._compare()

    def _step(self, data: bytes) -> bool:
        walk, line = self.walk, read_line(data)
        sequence = walk.at.sequence + 1
        if self.head is not None:
            return walk.wrong(sequence, "foreign", "There is more behind the signed head.")
        if isinstance(line, HeadLine):
            return self._take_head(line)
        if line is None or isinstance(line, Header):
            return walk.wrong(
                sequence, "unreadable", f"The line after entry {sequence - 1} is not written as an entry is."
            )
        if walk.take(line) and isinstance(line, Entry) and self._seen is not None:
            self._seen(line)
        return walk.finding is None

    def _take_head(self, line: HeadLine) -> bool:
        walk = self.walk
        try:
            self.head = head = chain.open_head(line.envelope.encode("utf-8", "replace"), self.key)
            self.envelope = line.envelope
        except RecordHeadError as error:
            return walk.wrong(walk.at.sequence, "head", str(error))
        if head.sequence > walk.at.sequence:
            said = f"The device signed {head.sequence + 1} entries, the file ends after entry {walk.at.sequence}."
            return walk.wrong(walk.at.sequence + 1, "cut short", said)
        if head.point != walk.at:
            said = "The entries do not lead to what the device signed: they were written anew, or others were added."
            return walk.wrong(head.sequence, "rewritten", said)
        if not self.header.device == head.device == walk.device:
            return walk.wrong(head.sequence, "foreign", "Header, entries and head do not name the same device.")
        return True

    def _compare(self) -> None:
        """Find what was cut off by the heads that were kept elsewhere."""
        for witness in self._witnesses:
            if witness.device != self.header.device:
                self.walk.wrong(0, "foreign", f"A witness speaks of the device {witness.device!r}.")
            if witness.sequence > self.walk.at.sequence:
                said = f"A head kept from {witness.at} vouches for entries up to {witness.sequence}; they are missing."
                self.walk.wrong(self.walk.at.sequence + 1, "cut short", said)


def told(walk: Walk) -> list[RecordGap]:
    """Return the gaps with the time at which each was noted, for people."""
    return [msgspec.structs.replace(gap, noted=rfc3339(int(gap.noted) / 1000)) for gap in walk.gaps]


def read_line(data: bytes) -> Header | Entry | LeftOut | HeadLine | None:
    """Return a line in its one spelling, else None."""
    if len(data) > LINE_BYTES_MAX or not data.endswith(b"\n"):
        return None
    try:
        line = _LINE.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return line if _WRITE.encode(line) + b"\n" == data else None


def _own_key(header: Header) -> PublicKey:
    try:
        return admit(header.public_key)
    except RequestError as error:
        raise RecordFormatError(f"The key in the first line cannot be used: {error}") from error


def verify(lines: Iterable[bytes], *, key: PublicKey | None = None, witnesses: Iterable[bytes] = ()) -> RecordVerdict:
    """Verify an export. Raises: RecordFormatError, RecordHeadError."""
    return Reading(lines, key=key, witnesses=witnesses).verdict()
