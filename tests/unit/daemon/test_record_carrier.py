"""Bringing the record to a fleet that lies about what it has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lenskeep.daemon.recordcarrier import RecordCarrier
from lenskeep.errors import FleetAnswerError
from lenskeep.messages.fleet import RecordCopy, RecordState
from lenskeep.registry.audit import StoredHead

HASH = "ab" * 32


class Short:
    """A record of one entry."""

    async def sign(self, *, anew: bool) -> StoredHead:
        return StoredHead(sequence=0, hash=HASH, counter=1, key_id="k", envelope=b"head", witnessed_ms=None)

    async def holds(self, sequence: int, hash_: str) -> bool:
        return (sequence, hash_) == (0, HASH)

    async def lines(self, after: int, _head: StoredHead) -> AsyncIterator[tuple[int, bytes]]:
        if after < 0:
            yield 0, b"entry\n"
        yield 0, b"head\n"


class Liar(RecordCarrier):
    """Its fleet takes entries, and never a head."""

    async def _ask(self, query: str, piece: bytes | None = None) -> RecordState:
        await asyncio.sleep(0)
        copy = RecordCopy(
            copy=1, sequence=0, hash=HASH, head_sequence=-1, head_hash="", head="", named="", key_id="", public_key="",
            bytes=6, changed_ms=1,
        )  # fmt: skip
        return RecordState(device="cam-1", copies=[copy] if piece is not None else [])


async def test_a_fleet_that_takes_no_head_and_does_not_say_why_is_left() -> None:
    record: Any = Short()
    identity: Any = None
    async with asyncio.timeout(5):
        with pytest.raises(FleetAnswerError):
            await Liar(identity, record).carry()
