"""Keeps the record honest: signs how far it goes, looks at every start whether it is still the one that was signed,
reads all of it once a day, and hands it out.

The newest signed head also lies in a file beside the registry, so that a registry that was cut back or exchanged is
found. Then, and when the registry was lost, the record begins again behind the last signed entry and says so; the slots
run on. What nobody here can find is a registry and a head file that were both put back together: the fleet's witness
finds that.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path

import msgspec

from lenskeep.bundle.keys import Signer
from lenskeep.clock import Clock, rfc3339
from lenskeep.config import Config
from lenskeep.daemon.problems import fault_check
from lenskeep.daemon.recordreading import BEFORE_FIRST, PAGE, read_head_in_thread, read_in_full
from lenskeep.database import Database, Transaction
from lenskeep.errors import (
    DeviceError,
    LenskeepError,
    RecordCutError,
    RecordError,
    RecordHeadError,
    RecordLostError,
    SignatureError,
)
from lenskeep.messages.control import Check
from lenskeep.messages.record import RecordHead, RecordVerdict
from lenskeep.registry import audit
from lenskeep.registry.audit import StoredHead
from lenskeep.trust import chain, envelope, recordfile
from lenskeep.trust.chain import BEFORE_ALL, BEGIN, Beginning, Entry, Head, Point, Walk
from lenskeep.trust.identity import write_durably

log = logging.getLogger(__name__)

DEVICE = "device"
RECORD_KEY, CONFIGURATION, START, STOP, FAULT = "record key", "configuration", "start", "stop", "fault"
SIGN_S = 60.0
FIRST_READING_S = 600.0
READING_S = 86_400.0
PAUSE_S = 0.25  # between two pages of the daily reading: one in a thousand of a core


class Record:
    """The record of this device.

    Args:
        head_path: the file beside the registry.
        notes: where faults that were found at the start are told.
    """

    def __init__(
        self, database: Database, clock: Clock, signer: Signer, device: str, head_path: Path,
        notes: list[LenskeepError],
    ) -> None:  # fmt: skip
        self._database = database
        self._clock = clock
        self._signer = signer
        self._device = device
        self._head_path = head_path
        self._notes = notes
        self._counter = 0
        self._start_unsigned = False
        self._lost = ""
        self._signing = asyncio.Lock()
        self._reading = asyncio.Lock()
        self._found: RecordError | None = None

    # --- the start and the end ------------------------------------------------------------------------------------

    async def begin(self, config: Config, *, starts: int, orderly: bool) -> None:
        """Go on with the record that was signed last, or begin it; write down that the device started, and with what.

        Args:
            starts: how many there were, with this one. orderly: how the last run ended.
        """
        kept = await asyncio.to_thread(read_head_in_thread, self._head_path)
        async with self._database.write() as tx:
            known = await self._last_signed(tx, kept)
            await self._join(tx, known)
            await self._remember_loss(tx)
            carried = await audit.carry_over(tx)
            await self._note_key(tx)
            for note in self._notes:
                await self._add(tx, FAULT, reason=f"{note.code} {note}")
            await self._note_configuration(tx, config)
            how = "for the first time" if starts == 1 else "after an orderly stop" if orderly else "after an accident"
            await self._add(tx, START, reason=how, after=f"Lenskeep {version('lenskeep')}")
        self._start_unsigned = True
        if carried:
            log.info("chained %d entries from before there was a chain", carried)

    async def stop(self) -> None:
        """Write down that the device was told to stop, and sign it."""
        try:
            async with self._database.write() as tx:
                await self._add(tx, STOP, reason="told to stop")
        except DeviceError as error:
            log.warning("the stop could not be recorded: %s", error)
        await self._try_to_sign()

    async def _add(self, tx: Transaction, action: str, *, reason: str = "", before: str = "", after: str = "") -> None:
        await audit.add(
            tx, self._clock, by=DEVICE, action=action, subject=DEVICE, reason=reason, before=before, after=after
        )

    async def _last_signed(self, tx: Transaction, kept: bytes | None) -> Head | None:
        """Return the newest head that is known, from the file or the registry."""
        stored = await audit.newest_head(tx)
        ours = self._read(kept) if kept is not None else None
        theirs = self._read(stored.envelope) if stored is not None else None
        if ours is None and theirs is not None:
            missing = "is missing" if kept is None else "cannot be used"
            self._tell(RecordHeadError(f"The signed head beside the registry {missing}; {self._head_path} had it."))
        elif ours is None and kept is not None:
            self._tell(RecordHeadError(f"The signed head {self._head_path} cannot be used."))
        elif ours is not None and theirs is not None and ours.counter < theirs.counter:
            self._tell(RecordHeadError("The signed head beside the registry is older than the registry's own."))
        known = max((head for head in (ours, theirs) if head), key=lambda head: head.counter, default=None)
        self._counter = known.counter if known is not None else 0
        return known

    def _read(self, data: bytes) -> Head | None:
        """Return a head that our key signed, or that names another key: that one is only good for raising alarms."""
        try:
            opened = envelope.open_envelope(data)
            if opened.key_id == self._signer.public.id:
                return chain.open_head(data, self._signer.public)
            return msgspec.json.decode(opened.payload, type=Head)
        except (SignatureError, RecordHeadError, msgspec.DecodeError, UnicodeDecodeError):
            return None

    async def _join(self, tx: Transaction, known: Head | None) -> None:
        """Find out whether the registry holds what was signed last; begin the record where it does not."""
        at = await audit.newest(tx)
        if at is None and known is None:
            await self._begin_at(tx, Beginning(BEFORE_ALL, BEFORE_ALL), "a new record")
        elif at is None and known is not None:
            lost = RecordLostError(f"The record was lost with the registry; entry {known.sequence} was signed last.")
            await self._begin_at(tx, Beginning(known.point, BEFORE_ALL), self._tell(lost))
        elif at is not None and known is not None:
            await self._compare(tx, at, known)
        first = await audit.last_of(tx, BEGIN)
        if at is not None and first is not None and first.subject != self._device:
            now = await audit.newest(tx) or at
            await self._begin_at(tx, Beginning(now, now), f"the device was named {first.subject!r} before")

    async def _remember_loss(self, tx: Transaction) -> None:
        """Keep in mind for `doctor` that the record has a gap."""
        last = await audit.last_of(tx, BEGIN)
        begins = chain.beginning_of(last) if last is not None else None
        if last is not None and begins is not None and begins.follows != begins.found:
            self._lost = f"; what was lost before entry {last.sequence} stays lost ({rfc3339(last.at_ms / 1000)})"

    async def _compare(self, tx: Transaction, at: Point, known: Head) -> None:
        stored = await audit.hash_at(tx, known.sequence)
        if stored == known.hash:
            await self._check_tail(tx, known.point)
        elif not await audit.began_again(tx, known.point):
            what = f"ends at {at.sequence}" if stored is None else f"says something else at {known.sequence}"
            cut = RecordCutError(f"Entry {known.sequence} was signed last, but the registry {what}.")
            await self._begin_at(tx, Beginning(known.point, at), self._tell(cut))

    async def _begin_at(self, tx: Transaction, beginning: Beginning, reason: str) -> None:
        key = f"key {self._signer.public.id}"
        await audit.begin(tx, self._clock, beginning, device=self._device, key=key, reason=reason)

    async def _check_tail(self, tx: Transaction, point: Point) -> None:
        walk = Walk(point)
        for entry in await audit.after(tx, point.sequence, 10 * PAGE):
            walk.take(entry)
        if walk.finding is not None:
            self._tell(RecordError(f"Entry {walk.finding.sequence} of the record is wrong: {walk.finding.text}"))

    async def _note_key(self, tx: Transaction) -> None:
        """Write down which key signs from now on, when it is another one."""
        said = [entry for entry in (await audit.last_of(tx, BEGIN), await audit.last_of(tx, RECORD_KEY)) if entry]
        before = max(said, key=lambda entry: entry.sequence).after if said else ""
        key = f"key {self._signer.public.id}"
        if before != key:
            await self._add(tx, RECORD_KEY, before=before, after=key)

    async def _note_configuration(self, tx: Transaction, config: Config) -> None:
        digest = hashlib.sha256(msgspec.json.encode(config, order="deterministic")).hexdigest()
        last = await audit.last_of(tx, CONFIGURATION)
        before, after = last.after if last else "", f"sha256:{digest}"
        if before != after:
            await self._add(tx, CONFIGURATION, before=before, after=after)

    def _tell(self, fault: RecordError) -> str:
        """Tell a fault where people look; return it as the record says it."""
        log.error("%s %s", fault.code, fault)
        self._notes.append(fault)
        return f"{fault.code} {fault}"

    # --- signing --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Sign what is new once a minute, and read the whole record once a day, until cancelled."""
        read_at = self._clock.monotonic_s() + FIRST_READING_S
        while True:
            await self._try_to_sign()
            await asyncio.sleep(SIGN_S)
            if self._clock.monotonic_s() >= read_at:
                await self._try_to_read()
                read_at = self._clock.monotonic_s() + READING_S

    async def sign(self, *, anew: bool = False) -> StoredHead:
        """Sign how far the record goes; without `anew` only when there is something new. Raises: DeviceError."""
        async with self._signing:
            async with self._database.read() as tx:
                at, last = await audit.newest(tx), await audit.newest_head(tx)
            assert at is not None, "a record begins before it is signed"
            if last is not None and last.hash == at.hash and not anew:
                return last
            head = Head(
                device=self._device, sequence=at.sequence, hash=at.hash, at=rfc3339(self._clock.now_s()),
                counter=self._counter + 1,
            )  # fmt: skip
            data = chain.sign_head(head, self._signer)
            await asyncio.to_thread(write_durably, self._head_path, data, 0o640)
            self._counter, self._start_unsigned = head.counter, False
            stored = StoredHead(
                counter=head.counter, sequence=head.sequence, hash=head.hash, key_id=self._signer.public.id,
                envelope=data, witnessed_ms=None,
            )  # fmt: skip
            async with self._database.write() as tx:
                await audit.keep_head(tx, stored)
            return stored

    async def _try_to_sign(self) -> None:
        """Sign; a full or failing disk is told and tried again in a minute, it does not end the device."""
        try:
            await self.sign()
        except (LenskeepError, OSError) as error:
            log.warning("the head of the record could not be signed: %s", error)

    async def _try_to_read(self) -> None:
        """Read all of it; a disk that fails meanwhile is told elsewhere and does not end the device."""
        try:
            await self.verify(pause_s=PAUSE_S)
        except DeviceError as error:
            log.warning("the record could not be read: %s", error)

    async def head(self) -> RecordHead:
        """Return the newest signed head."""
        stored = await self.sign()
        head = chain.open_head(stored.envelope, self._signer.public)
        async with self._database.read() as tx:
            witnessed = await audit.witnessed(tx)
        return RecordHead(
            device=head.device, sequence=head.sequence, hash=head.hash, at=head.at, counter=head.counter,
            key_id=stored.key_id, public_key=self._signer.public.pem, envelope=stored.envelope.decode(),
            witnessed=witnessed,
        )  # fmt: skip

    async def note_witness(self, sequence: int, hash_: str, data: bytes) -> None:
        """Take a head that the fleet says it has.

        When the registry does not hold what that head vouches for, it was put back together with its head file: the
        record begins again behind it.

        Raises: RecordHeadError when this device did not sign it so.
        """
        head = chain.open_head(data, self._signer.public)
        if head.device != self._device or head.point != Point(sequence, hash_):
            raise RecordHeadError("The fleet's witness is not what this device signed.")
        async with self._database.write() as tx:
            self._counter = max(self._counter, head.counter)
            if await audit.hash_at(tx, sequence) != hash_:
                await self._join(tx, head)
                await self._remember_loss(tx)
            await audit.witness(tx, head.point, at_ms=self._clock.now_ms())

    async def note_witnessed(self, sequence: int) -> bool:
        """Note that the fleet has our head of this entry; False when no head of ours is there."""
        async with self._database.read() as tx:
            ours = await audit.head_at(tx, sequence)
        if ours is None:
            return False
        if ours.witnessed_ms is None:
            async with self._database.write() as tx:
                await audit.witness(tx, Point(sequence, ours.hash), at_ms=self._clock.now_ms())
        return True

    # --- reading --------------------------------------------------------------------------------------------------

    async def verify(self, *, pause_s: float = 0.0) -> RecordVerdict:
        """Read the whole record and compare it with every head that was signed. Cost: about 20 µs an entry."""
        if self._start_unsigned:  # the start has compared what was signed before; its own entries come first now
            await self._try_to_sign()
        async with self._reading:
            async with self._signing:  # between the file and the registry no head may be on its way
                async with self._database.read() as tx:
                    heads = await audit.heads(tx)
                kept = await asyncio.to_thread(read_head_in_thread, self._head_path)
            last = self._read(kept) if kept is not None else None
            verdict = await read_in_full(self._database, self._device, self._signer.public, heads, last, pause_s)
            await self._keep_finding(verdict)
            return verdict

    async def _keep_finding(self, verdict: RecordVerdict) -> None:
        """Remember what is wrong for `doctor`; write it down once."""
        if verdict.finding is None:
            self._found = None
            return
        found = verdict.finding
        self._found = RecordError(f"Entry {found.sequence} of the record is wrong ({found.kind}): {found.text}")
        reason = f"{self._found.code} {self._found}"
        log.error("%s", reason)
        async with self._database.write() as tx:
            last = await audit.last_of(tx, FAULT)
            if last is None or last.reason != reason:
                await self._add(tx, FAULT, reason=reason)

    async def checks(self) -> list[Check]:
        """Return the record's line of `doctor`."""
        if self._found is not None:
            return [fault_check("record", self._found)]
        async with self._database.read() as tx:
            at, head = await audit.newest(tx), await audit.newest_head(tx)
        last, signed = at.sequence if at else -1, head.sequence if head else -1
        return [Check(name="record", passed=True, text=f"entries up to {last}, signed up to {signed}{self._lost}")]

    async def export(self, first_ms: int, until_ms: int) -> AsyncIterator[bytes]:
        """Yield the record as lines; entries outside of the span are left out, with their digests in their place."""
        head = await self.sign(anew=True)
        yield recordfile.header_line(self._device, self._signer.public)
        async for entries in self._entries(BEFORE_FIRST, head.sequence):
            lines = [recordfile.entry_line(entry, first_ms <= entry.at_ms < until_ms) for entry in entries]
            yield b"".join(lines)
        yield recordfile.head_line(head.envelope)

    async def lines(self, after: int, head: StoredHead) -> AsyncIterator[tuple[int, bytes]]:
        """Yield the lines of an export behind an entry, up to a head that was signed, each with its number."""
        async for entries in self._entries(after, head.sequence):
            for entry in entries:
                yield entry.sequence, recordfile.entry_line(entry, True)
        yield head.sequence, recordfile.head_line(head.envelope)

    async def holds(self, sequence: int, hash_: str) -> bool:
        """Say whether this is an entry of the record."""
        async with self._database.read() as tx:
            return await audit.hash_at(tx, sequence) == hash_

    async def _entries(self, after: int, upto: int) -> AsyncIterator[list[Entry]]:
        number = after
        while number < upto:
            async with self._database.read() as tx:
                page = await audit.after(tx, number, PAGE)
            if not page:
                return
            yield [entry for entry in page if entry.sequence <= upto]
            number = page[-1].sequence
