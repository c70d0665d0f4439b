"""Reads the record from its first entry to its last, and says what is wrong with it."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from pathlib import Path

from lenskeep.bundle.keys import PublicKey
from lenskeep.database import Database
from lenskeep.errors import LenskeepError, RecordHeadError
from lenskeep.messages.record import RecordVerdict
from lenskeep.registry import audit
from lenskeep.registry.audit import StoredHead
from lenskeep.trust import chain, recordfile
from lenskeep.trust.chain import Head, Point, Walk

log = logging.getLogger(__name__)

PAGE = 200
BEFORE_FIRST = -(2**63)  # a stranger's entry may have any number
HEAD_BYTES_MAX = 16 << 10
Marks = dict[int, tuple[str, str]]


async def read_in_full(
    database: Database, device: str, key: PublicKey, heads: list[StoredHead], kept: Head | None, pause_s: float
) -> RecordVerdict:
    """Walk along the whole record.

    Args:
        heads: what was signed, oldest first, as the registry has it. kept: the head that lies beside the registry.
        pause_s: between two pages, so that nobody notices.
    """
    marks, bad = await asyncio.to_thread(_marks_in_thread, heads, key)
    walk = Walk(marks=marks)
    await _walk(database, walk, pause_s)
    _judge(walk, heads, kept, bad)
    async with database.read() as tx:
        if not await audit.guarded(tx):
            said = "The triggers that refuse changes to the record are gone: somebody worked on the registry."
            walk.wrong(walk.at.sequence, "unguarded", said)
    return RecordVerdict(
        whole=walk.finding is None and not walk.gaps, device=device, first=walk.first, last=walk.at.sequence,
        entries=walk.entries, left_out=0, head_sequence=kept.sequence if kept else -1, head_at=kept.at if kept else "",
        key_id=key.id, witnesses=walk.marked, gaps=recordfile.told(walk), finding=walk.finding,
    )  # fmt: skip


async def _walk(database: Database, walk: Walk, pause_s: float) -> None:
    number = BEFORE_FIRST
    while True:
        try:
            async with database.read() as tx:
                page = await audit.after(tx, number, PAGE)
        except (sqlite3.Error, LenskeepError) as error:  # a row that cannot even be read, such as text that is no text
            walk.wrong(walk.at.sequence + 1, "unreadable", f"It cannot be read: {error}.")
            return
        for entry in page:
            if not walk.take(entry):
                return
        if len(page) < PAGE:
            return
        number = page[-1].sequence
        await asyncio.sleep(pause_s)


def _marks_in_thread(heads: list[StoredHead], key: PublicKey) -> tuple[Marks, StoredHead | None]:
    """Return what the stored heads vouch for, and the first one that is not what it says."""
    marks: Marks = {}
    for stored in heads:
        if stored.key_id == key.id:
            try:
                head = chain.open_head(stored.envelope, key)
            except RecordHeadError:
                return marks, stored
            if (head.point, head.counter) != (Point(stored.sequence, stored.hash), stored.counter):
                return marks, stored
        if marks.get(stored.sequence, (stored.hash,))[0] != stored.hash:
            return marks, stored
        marks[stored.sequence] = (stored.hash, f"the signed head number {stored.counter}")
    return marks, None


def _judge(walk: Walk, heads: list[StoredHead], kept: Head | None, bad: StoredHead | None) -> None:
    """Compare where a walk came to with the heads."""
    last = walk.at.sequence
    if bad is not None:
        walk.wrong(bad.sequence, "head", f"The signed head number {bad.counter} was changed.")
    signed = max([head.sequence for head in heads] + ([kept.sequence] if kept else []), default=-1)
    if signed > last:
        walk.wrong(last + 1, "cut short", f"Entries up to {signed} were signed, the record ends after {last}.")
    if kept is None:
        walk.wrong(last, "head", "The signed head beside the registry is missing or cannot be used.")
    elif not heads or (heads[-1].counter, heads[-1].hash) != (kept.counter, kept.hash):
        said = "The newest signed head in the registry is not the one beside it: one of them was put back."
        walk.wrong(kept.sequence, "head", said)


def read_head_in_thread(path: Path) -> bytes | None:
    """Return the file that holds the newest head; None when there is none, nothing when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(HEAD_BYTES_MAX)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read: %s", path, error)
        return b""
