"""Devices' records, copied: taken in pieces, over the network and from sticks, given out whole to who may read them.

Rules. A piece is followed entry by entry before it is stored, and a head counts only by a key that is listed for this
device. What is given out ends at a signed head. A device speaks for itself over its own connection, so what contradicts
there raises an alarm; a stick proves nothing until a signed head comes with it. Pieces have a size, copies have one
together: whoever sends a gigabyte of lies is stopped at what one device may have.
"""

from __future__ import annotations

import asyncio

from aiohttp import web

from lenskeep.bundle import keys
from lenskeep.bundle.keys import PublicKey
from lenskeep.clock import Clock
from lenskeep.errors import (
    LimitExceededError,
    RecordContradictedError,
    RecordHeadError,
    RequestError,
    SignatureError,
    UnknownNameError,
    UnlistedDeviceError,
)
from lenskeep.fleet import answers
from lenskeep.fleet.operators import Operator, Route
from lenskeep.fleet.store.records import Kept, Offer, RecordStore
from lenskeep.fleet.store.store import Store
from lenskeep.messages.fleet import RecordCopy, RecordState, RecordWitness
from lenskeep.trust import envelope, recordfile, recordpiece
from lenskeep.trust.chain import BEFORE_ALL, Point
from lenskeep.trust.recordpiece import PIECE_BYTES_MAX, Parsed, Piece

MEBIBYTE = 1 << 20
JSON_LINES = "application/x-ndjson"


class Records:
    """Where records come in."""

    def __init__(self, store: Store, copies: RecordStore, clock: Clock, *, mb_max: int) -> None:
        self._store = store
        self._copies = copies
        self._clock = clock
        self._bytes_max = mb_max * MEBIBYTE

    async def state(self, device: str) -> RecordState:
        """Say what is here."""
        return RecordState(device=device, copies=await self._copies.copies(device))

    async def take(self, device: str, copy: int, after: int, data: bytes, *, itself: bool) -> RecordState:
        """Take a piece; one that does not fit any more changes nothing.

        Args:
            copy: which one it goes on; the one above the newest begins another. after: the entry before it.
            itself: the device has brought it, nobody else.
        Raises: RecordContradictedError, RecordFormatError, RecordHeadError, UnlistedDeviceError, LimitExceededError.
        """
        parsed = await asyncio.to_thread(recordpiece.parse, data)
        key = await self._key_of(device, parsed)
        copies = await self._copies.copies(device)
        base = next((each for each in copies if each.copy == copy), None)
        if base is None and (after >= 0 or copy != (copies[0].copy + 1 if copies else 1)):
            return RecordState(device=device, copies=copies)
        if base is not None and after != base.sequence and parsed.entries:
            return RecordState(device=device, copies=copies)
        at = BEFORE_ALL if base is None else Point(base.sequence, base.hash)
        try:
            piece = await asyncio.to_thread(
                recordpiece.follow, parsed, at, base.named if base is not None else "", device, key
            )
        except RecordContradictedError as error:
            if itself:
                await self._alarm(device, error.code, str(error))
            raise
        kept = await self._keep(device, copy, piece, key, itself=itself)
        if kept.contradiction:
            raise RecordContradictedError(f"{kept.contradiction} Nothing of it was kept.")
        return RecordState(device=device, copies=kept.copies, entries=kept.entries, known=kept.known)

    async def _key_of(self, device: str, parsed: Parsed) -> PublicKey | None:
        """Return the listed key that a head names."""
        if not parsed.head:
            return None
        try:
            opened = envelope.open_envelope(parsed.head.encode("utf-8", "replace"))
        except SignatureError as error:
            raise RecordHeadError(f"The head of the record cannot be used: {error}") from error
        listed = await self._store.listed(opened.key_id)
        if listed is None or listed.device != device:
            raise UnlistedDeviceError(f"The head of the record is signed by a key that is not listed for {device!r}.")
        return keys.admit(listed.pem)

    async def _keep(self, device: str, copy: int, piece: Piece, key: PublicKey | None, *, itself: bool) -> Kept:
        now_ms, head = self._clock.now_ms(), piece.head
        if head is not None and not piece.entries and head.point != piece.at:
            return await self._copies.compare(device, head.point, now_ms=now_ms)
        offer = Offer(device, copy, piece, key, proven=itself or head is not None)
        try:
            return await self._copies.add(offer, bytes_max=self._bytes_max, now_ms=now_ms)
        except LimitExceededError as error:
            await self._alarm(device, error.code, str(error))
            raise

    async def _alarm(self, device: str, code: str, text: str) -> None:
        await self._store.note_alarm(device, code, text, now_ms=self._clock.now_ms())


class RecordRoom:
    """What may be asked of records, at the operators' door and at the devices'."""

    def __init__(self, records: Records, copies: RecordStore, store: Store, request_s_max: float) -> None:
        self._records = records
        self._copies = copies
        self._store = store
        self._request_s_max = request_s_max

    def routes(self) -> list[Route]:
        """Return the doors, for the operators' door."""
        return [
            ("GET", "/v1/devices/{device}/record", "auditor", self._state),
            ("POST", "/v1/devices/{device}/record", "operator", self._take),
            ("GET", "/v1/devices/{device}/record/witness", "auditor", self._witness),
            ("GET", "/v1/devices/{device}/record/file", "auditor", self._give),
        ]

    async def told(self, device: str) -> web.Response:
        """Tell a device what is here of its record."""
        return answers.said(await self._records.state(device))

    async def brought(self, request: web.Request, device: str, *, itself: bool) -> web.Response:
        """Take a piece."""
        data = await answers.read_bytes(request, PIECE_BYTES_MAX, self._request_s_max)
        copy, after = _number(request, "copy"), _number(request, "after")
        return answers.said(await self._records.take(device, copy, after, data, itself=itself))

    async def _state(self, request: web.Request, _who: Operator) -> web.Response:
        device = request.match_info["device"]
        await self._store.device(device)
        return answers.said(await self._records.state(device))

    async def _take(self, request: web.Request, _who: Operator) -> web.Response:
        device = request.match_info["device"]
        await self._store.device(device)
        return await self.brought(request, device, itself=False)

    async def _witness(self, request: web.Request, _who: Operator) -> web.Response:
        copy = await self._copy(request)
        newest, head = await self._copies.witness(request.match_info["device"], copy)
        return answers.said(RecordWitness(public_key=copy.public_key, head=head, newest=newest))

    async def _give(self, request: web.Request, _who: Operator) -> web.StreamResponse:
        """Stream a copy as the device itself would export it, up to its newest signed head."""
        device, copy = request.match_info["device"], await self._copy(request)
        answer = web.StreamResponse(headers={"Content-Type": JSON_LINES})
        await answer.prepare(request)
        await answer.write(recordfile.header_line(device, keys.admit(copy.public_key)))
        at = -1
        while at < copy.head_sequence and (found := await self._copies.piece(device, copy.copy, at)) is not None:
            at, lines = found
            await answer.write(lines)
        await answer.write(recordfile.head_line(copy.head.encode()))
        await answer.write_eof()
        return answer

    async def _copy(self, request: web.Request) -> RecordCopy:
        """Return the copy that is asked for, or the newest; only one that is signed."""
        device, wanted = request.match_info["device"], _number(request, "copy")
        await self._store.device(device)
        for copy in await self._copies.copies(device):
            if copy.head_sequence >= 0 and wanted in (-1, copy.copy):
                return copy
        raise UnknownNameError(
            f"There is no signed copy of the record of {device} here.",
            hint=f"Ask the device for it: lenskeep fleet op ask {device} record",
        )


def _number(request: web.Request, name: str) -> int:
    text = request.query.get(name, "-1")
    if text == "-1":
        return -1
    if not text.isascii() or not text.isdigit() or len(text) > 15:
        raise RequestError(f"{name}={text} is not a whole number.")
    return int(text)
