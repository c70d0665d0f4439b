"""The chain of the record: entries, their hashes, and a walk along them that finds whatever was done to them.

The hashes, for whoever computes them in another language. NS(x) is the netstring of the bytes x: their number in
decimal, a colon, the bytes, a comma. Numbers are written in decimal, a truth value as 0 or 1, text as UTF-8, hashes as
64 lower-case hex digits.

    content = sha256("lenskeep record content 1\\n" NS(at_ms) NS(monotonic_ms) NS(boot) NS(clock_trusted)
              NS(actor) NS(action) NS(subject) NS(reason) NS(before) NS(after))
    hash    = sha256("lenskeep record entry 1\\n" NS(hash of the entry before) NS(sequence) NS(content))

The chain takes only the content's digest, so that an entry may be left out of an export: its digest stands in its
place, and every hash can still be computed.

Sequences count from 0 without holes. A chain begins with an entry whose action is `begin record`: it names the device
(`subject`), its key (`after`), and follows 64 zeros. When a registry was lost, cut back or exchanged, the device begins
again behind the last entry that it had signed: `before` then is "SEQUENCE HASH" of that one, which the new entry
follows, and " found SEQUENCE HASH" of the last one that was still there, if any. What is missing is a gap: told, never
closed.

A head is the signed statement {device, sequence, hash, at, counter}: the chain went exactly so far. Rules. Nothing is
ordered or judged by the wall clock. Not here: the lines of an export (recordfile), where entries are kept (registry).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from lenskeep.bundle.keys import PublicKey, Signer
from lenskeep.errors import RecordHeadError, SignatureError
from lenskeep.messages.record import RecordFinding, RecordGap
from lenskeep.trust import envelope

BEGIN = "begin record"
ZERO_HASH = "0" * 64
TEXT_MAX = 4000  # letters of one field; an entry is a note and no place for files
_CONTENT, _ENTRY = b"lenskeep record content 1\n", b"lenskeep record entry 1\n"
_BEGINNING = re.compile(r"(\d{1,16}) ([0-9a-f]{64})(?: found (\d{1,16}) ([0-9a-f]{64}))?", re.ASCII)
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")

Hash = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Number = Annotated[int, Meta(ge=0, le=2**53)]


class Point(Struct, frozen=True):
    """A place in a chain."""

    sequence: int
    hash: str

    def __str__(self) -> str:
        return f"{self.sequence} {self.hash}"


BEFORE_ALL = Point(-1, ZERO_HASH)


class Facts(Struct, frozen=True, kw_only=True):
    """What one entry says; all of it is hashed."""

    at_ms: Annotated[int, Meta(ge=0, le=253_402_300_799_999)]  # to the end of the year 9999
    monotonic_ms: Number
    boot: str
    clock_trusted: bool
    actor: str
    action: str
    subject: str
    reason: str
    before: str
    after: str


class Entry(Facts, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="entry"):
    """An entry in its place."""

    sequence: Number
    hash: Hash

    @property
    def point(self) -> Point:
        """Its place."""
        return Point(self.sequence, self.hash)


class LeftOut(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="left-out"):
    """The place of an entry that is not shown."""

    content: Hash
    sequence: Number
    hash: Hash


def text(value: str) -> str:
    """Return a text as it is recorded: every letter can be written as UTF-8 and JSON, and there are not too many."""
    short = value if len(value) <= TEXT_MAX else value[: TEXT_MAX - 1] + "…"
    return _UNWRITABLE.sub("\ufffd", short)


def content_of(facts: Facts) -> str:
    """Return the digest of what an entry says. Cost: some microseconds."""
    words = (
        b"%d" % facts.at_ms, b"%d" % facts.monotonic_ms, facts.boot.encode(), b"%d" % facts.clock_trusted,
        facts.actor.encode(), facts.action.encode(), facts.subject.encode(), facts.reason.encode(),
        facts.before.encode(), facts.after.encode(),
    )  # fmt: skip
    return hashlib.sha256(_CONTENT + _netstrings(words)).hexdigest()


def hash_of(previous: str, sequence: int, content: str) -> str:
    """Return the hash of an entry in its place."""
    words = (previous.encode(), b"%d" % sequence, content.encode())
    return hashlib.sha256(_ENTRY + _netstrings(words)).hexdigest()


def _netstrings(words: Iterable[bytes]) -> bytes:
    return b"".join([b"%d:%b," % (len(word), word) for word in words])


def put(after: Point, facts: Facts, *, sequence: int | None = None) -> Entry:
    """Return the facts as the entry after a place; `sequence` is given only where entries are known to be lost."""
    number = after.sequence + 1 if sequence is None else sequence
    fields = {name: getattr(facts, name) for name in Facts.__struct_fields__}
    return Entry(**fields, sequence=number, hash=hash_of(after.hash, number, content_of(facts)))


class Beginning(Struct, frozen=True):
    """Where an entry that begins a record stands by its own words."""

    follows: Point
    found: Point  # the last entry that was there

    @property
    def sequence(self) -> int:
        """The place that it takes."""
        return max(self.follows.sequence, self.found.sequence) + 1

    def __str__(self) -> str:
        """Write it as `before` holds it."""
        if self.follows == BEFORE_ALL:
            return ""
        return str(self.follows) if self.found == BEFORE_ALL else f"{self.follows} found {self.found}"


def beginning_of(entry: Entry) -> Beginning | None:
    """Return where an entry begins a record; None for any other entry."""
    if entry.action != BEGIN:
        return None
    if not entry.before:
        return Beginning(BEFORE_ALL, BEFORE_ALL)
    said = _BEGINNING.fullmatch(entry.before)
    if said is None:
        return None
    found = Point(int(said[3]), said[4]) if said[3] else BEFORE_ALL
    return Beginning(Point(int(said[1]), said[2]), found)


class Walk:
    """Follows a chain from entry to entry and remembers the first thing that is wrong.

    Args:
        at: where it starts: before the first entry, or behind an entry that is known to be right.
        marks: hashes that are known for some sequences, from heads that the device signed, each with its name.
    """

    def __init__(self, at: Point = BEFORE_ALL, marks: dict[int, tuple[str, str]] | None = None) -> None:
        self.at = at
        self.first = -1
        self.device = ""
        self.entries = 0
        self.left_out = 0
        self.marked = 0
        self.gaps: list[RecordGap] = []
        self.finding: RecordFinding | None = None
        self._marks = marks or {}

    def take(self, line: Entry | LeftOut) -> bool:
        """Go one entry further; False when something is wrong, now or before."""
        if self.finding is not None:
            return False
        begins = beginning_of(line) if isinstance(line, Entry) else None
        if begins is not None:
            right = self._begin(line, begins)
        elif self.at.sequence < 0 or line.sequence != self.at.sequence + 1:
            right = self._misplaced(line)
        else:
            right = self._follow(line, self.at)
        if right:
            self._arrive(line)
        return right

    def wrong(self, sequence: int, kind: Any, said: str) -> bool:
        """Note what is wrong, once; always False."""
        if self.finding is None:
            self.finding = RecordFinding(sequence=max(0, sequence), kind=kind, text=said)
        return False

    def _follow(self, line: Entry | LeftOut, previous: Point) -> bool:
        """Say whether an entry's hash follows from that of another."""
        content = line.content if isinstance(line, LeftOut) else content_of(line)
        if hash_of(previous.hash, line.sequence, content) != line.hash:
            either = f"it or entry {previous.sequence}" if previous.sequence >= 0 else "it"
            said = f"The entry does not follow from the one before: {either} was changed."
            return self.wrong(line.sequence, "edited", said)
        known = self._marks.get(line.sequence)
        if known is not None and known[0] != line.hash:
            said = f"The entry is not the one that {known[1]} vouches for: the record was written anew up to here."
            return self.wrong(line.sequence, "rewritten", said)
        self.marked += known is not None
        return True

    def _misplaced(self, line: Entry | LeftOut) -> bool:
        at = self.at.sequence
        if at < 0:
            return self.wrong(0, "missing", f"It starts with entry {line.sequence}, which does not begin a record.")
        if line.sequence == at:
            return self.wrong(at, "repeated", "The entry is there twice.")
        if line.sequence < at:
            return self.wrong(line.sequence, "reordered", f"The entry stands behind entry {at}.")
        return self.wrong(at + 1, "missing", f"Entry {line.sequence} follows entry {at}.")

    def _begin(self, line: Entry | LeftOut, begins: Beginning) -> bool:
        """Say whether a record begins here as it says, and note what is lost."""
        if line.sequence != begins.sequence:
            return self.wrong(line.sequence, "edited", "The entry begins the record at another place than it says.")
        if self.at != begins.found:
            return self._misplaced(line) if line.sequence <= self.at.sequence else self._stray(begins.found)
        if not self._follow(line, begins.follows):
            return False
        if begins.found != begins.follows and isinstance(line, Entry):
            first = min(begins.found.sequence + 1, begins.follows.sequence)
            self.gaps.append(RecordGap(first=first, last=line.sequence - 1, noted=str(line.at_ms), text=line.reason))
        return True

    def _stray(self, found: Point) -> bool:
        """Note that the entries before a beginning are not those that it had found."""
        if self.at.sequence < found.sequence:
            said = f"Entries up to {found.sequence} were there once; after {self.at.sequence} they are not."
            return self.wrong(self.at.sequence + 1, "missing", said)
        return self.wrong(found.sequence, "edited", f"Entries up to {self.at.sequence} are not those that were there.")

    def _arrive(self, line: Entry | LeftOut) -> None:
        if self.entries + self.left_out == 0:
            self.first = line.sequence
        if isinstance(line, LeftOut):
            self.left_out += 1
        else:
            self.entries += 1
            if line.action == BEGIN:
                self.device = line.subject
        self.at = Point(line.sequence, line.hash)


# --- heads ------------------------------------------------------------------------------------------------------------


class Head(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Up to where the record went, in the words that are signed. `at` is RFC 3339; `counter` grows with every head."""

    device: Annotated[str, Meta(max_length=64)]
    sequence: Number
    hash: Hash
    at: Annotated[str, Meta(max_length=32)]
    counter: Number

    @property
    def point(self) -> Point:
        """The place that it vouches for."""
        return Point(self.sequence, self.hash)


def sign_head(head: Head, signer: Signer) -> bytes:
    """Return a head in its signed envelope. Cost: one signature."""
    return envelope.seal(msgspec.json.encode(head), envelope.RECORD_HEAD, signer)


def open_head(data: bytes, key: PublicKey) -> Head:
    """Return a head that this key signed. Raises: RecordHeadError."""
    try:
        payload = envelope.verify(envelope.open_envelope(data), envelope.RECORD_HEAD, key)
        return msgspec.json.decode(payload, type=Head)
    except (SignatureError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordHeadError(f"The head of the record cannot be used: {error}") from error
