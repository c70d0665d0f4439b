"""What the device says about its record: how far it goes, signed, and what a reading of it found."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class RecordHead(Struct, frozen=True, kw_only=True):
    """Up to where the record goes, signed by the device: `envelope` is a DSSE document, kept elsewhere a witness."""

    device: str
    sequence: int
    hash: str
    at: str
    counter: int
    key_id: str
    public_key: str
    envelope: str
    witnessed: int = -1  # the newest entry whose head the fleet has acknowledged


class RecordFinding(Struct, frozen=True, kw_only=True):
    """The first entry that is wrong, and what is wrong."""

    sequence: int
    kind: Literal[
        "edited",
        "missing",
        "repeated",
        "reordered",
        "cut short",
        "rewritten",
        "foreign",
        "head",
        "unreadable",
        "unguarded",
    ]
    text: str


class RecordGap(Struct, frozen=True, kw_only=True):
    """Entries that are lost, as the device noted itself when it found out."""

    first: int
    last: int
    noted: str
    text: str


class RecordVerdict(Struct, frozen=True, kw_only=True):
    """What a verification of the record found. `whole`: nothing was changed, removed, moved or cut off."""

    whole: bool
    device: str
    first: int
    last: int
    entries: int
    left_out: int  # entries of which only the digest is shown
    head_sequence: int  # up to here a head signed by the device vouches
    head_at: str
    key_id: str
    witnesses: int = 0  # heads kept elsewhere that fit
    gaps: list[RecordGap] = []
    finding: RecordFinding | None = None
