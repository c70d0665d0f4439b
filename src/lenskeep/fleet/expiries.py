"""When the repository's roles run out, read from the metadata in the folder: for people and alarms, never for trust."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from lenskeep.trust.names import BIN_NAME, DIRECTOR, METADATA, TIMESTAMP

_VERSIONED = re.compile(r"([1-9][0-9]{0,9})\.([a-z0-9][a-z0-9-]{0,62})\.json")
_STAMP = f"{TIMESTAMP}.json"
BYTES_MAX = 64 << 20


class _Signed(Struct, frozen=True):
    expires: Annotated[datetime, Meta(tz=True)]


class _Ends(Struct, frozen=True):
    signed: _Signed


_decoder = msgspec.json.Decoder(_Ends)


def repository_ends(folder: Path) -> dict[str, float]:
    """Return when the newest metadata of each role ends, in seconds of the wall clock; what cannot be read is left out.

    Runs in a thread.
    """
    newest: dict[str, tuple[int, Path]] = {}
    metadata = folder / METADATA
    if not metadata.is_dir():
        return {}
    for path in metadata.iterdir():
        found = _VERSIONED.fullmatch(path.name)
        if found and int(found[1]) > newest.get(found[2], (0, path))[0]:
            newest[found[2]] = (int(found[1]), path)
    ends: dict[str, float] = {}
    for role, path in [*((role, path) for role, (_, path) in sorted(newest.items())), (TIMESTAMP, metadata / _STAMP)]:
        kind, end = DIRECTOR if BIN_NAME.fullmatch(role) else role, _ends(path)
        if end:  # the director is good until the first of its lists ends
            ends[kind] = min(end, ends.get(kind, end))
    return ends


def _ends(path: Path) -> float:
    try:
        if path.stat().st_size > BYTES_MAX:
            return 0.0
        return _decoder.decode(path.read_bytes()).signed.expires.timestamp()
    except (OSError, ValueError):  # a fault of the decoder's is a ValueError
        return 0.0
