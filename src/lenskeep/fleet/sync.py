"""The one call of a device: what it brings is kept, what the fleet knows is said, and who has time waits for news.

Rules. `messages/sync` is the contract. A call that brings nothing new asks the store nothing. What a part of a call
cannot be taken for does not cost the other parts: a report that is refused leaves the records, a record that cannot be
read leaves the others, and is taken as what it is, so that no device is stuck behind it.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Sequence

import msgspec
from msgspec import Raw

from lenskeep.clock import Clock
from lenskeep.errors import IdentityError, LimitExceededError, RequestError
from lenskeep.fleet.config import SyncSettings
from lenskeep.fleet.intake import Intake
from lenskeep.fleet.presence import Presence, Present
from lenskeep.fleet.reports import Reports
from lenskeep.fleet.store.intake import Delivery, IntakeStore
from lenskeep.fleet.store.store import Store
from lenskeep.messages.fleet import Number, ReportAnswer, cut
from lenskeep.messages.sync import KINDS, MEDIA_MSGPACK, RECORDS_MAX, WAIT_S_MAX, Answer, Call, Happening, Record

CALL_BYTES_MAX = 4 << 20
SOON_S = 0.5  # within this a device comes back that waited, or that has more to tell
_PACKED, _JSON = msgspec.msgpack.Decoder(Call), msgspec.json.Decoder(Call)
_to_packed, _to_json = msgspec.msgpack.Encoder().encode, msgspec.json.Encoder().encode


UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_NOTHING = (Raw(b"[]"), Raw(b"\x90"))  # no records, in JSON and packed


class _Numbered(msgspec.Struct):
    n: Number


class Sync:
    """Answers devices' calls."""

    def __init__(
        self, store: Store, intake_store: IntakeStore, intake: Intake, presence: Presence, reports: Reports,
        settings: SyncSettings, clock: Clock,
    ) -> None:  # fmt: skip
        self._store = store
        self._intake_store = intake_store
        self._intake = intake
        self._presence = presence
        self._reports = reports
        self._settings = settings
        self._clock = clock
        self.calls = 0

    def counts(self) -> dict[str, float]:
        """Count what this server did since it began, for `/metrics`."""
        intake, presence = self._intake, self._presence
        return {
            "syncs": self.calls, "commits": intake.commits, "records": intake.records, "refusals": intake.refusals,
            "wakes": presence.wakes, "waiting": presence.waiting,
        }  # fmt: skip

    def read(self, data: bytes, media: str) -> Call:
        """Read a call. Raises: RequestError."""
        packed = media == MEDIA_MSGPACK
        try:
            return _PACKED.decode(data) if packed else _JSON.decode(data)
        except UNREADABLE as error:
            return self._read_loosely(data, packed, error)

    def write(self, answer: Answer, media: str) -> bytes:
        """Write an answer in the form of its call."""
        return _to_packed(answer) if media == MEDIA_MSGPACK else _to_json(answer)

    async def answer(self, device: str, address: str, call: Call, connection: int = 0) -> Answer:
        """Answer a device that has proved itself. Raises: StorageError, FleetBusyError, UnlistedDeviceError."""
        self.calls += 1
        presence = self._presence
        present = await presence.of(device, connection)
        presence.heard(present, address, call.seen)
        problem = await self._take_report(present, call.report) if call.report else ""
        taken = present.taken.get(call.outbox)
        slots = [slot for slot in call.slots if present.slots.get(slot.slot) != slot]
        brings = bool(call.records or slots or call.done)
        if brings:
            delivery = Delivery(device, call.outbox, call.after, in_order(call.records), slots, call.done)
            await self._intake.take(delivery)
            self._note(present, call, delivery)
            if call.records:
                taken = delivery.taken
        if taken is None or (call.after is not None and call.after > taken):  # new here, or it came from a replica
            taken = present.taken[call.outbox] = await self._intake_store.taken(device, call.outbox)
        waits = call.wait_s > 0 and not brings and not call.report and not present.commands
        if waits and presence.newest <= call.seen:
            await presence.wait(present, self._hold_s(call.wait_s))
        return self._say(present, call, taken, problem)

    def _note(self, present: Present, call: Call, delivery: Delivery) -> None:
        """Have in mind what is durable now."""
        if call.records:
            if delivery.taken > present.taken.get(call.outbox, -2):
                present.taken[call.outbox] = delivery.taken
            while len(present.taken) > 4:
                del present.taken[next(iter(present.taken))]
        for slot in delivery.slots:
            present.slots[slot.slot] = slot
        if call.done:
            done = {each.id for each in call.done}
            present.commands = [each for each in present.commands if each.id not in done]

    def _say(self, present: Present, call: Call, taken: int, problem: str) -> Answer:
        presence = self._presence
        return Answer(
            taken=taken, newest=presence.newest, known=present.known, counter=present.counter,
            head_sequence=present.head_sequence, next_s=self._next_s(call), commands=present.commands,
            neighbours=presence.neighbours(present.device), problem=problem, kinds=KINDS,
        )  # fmt: skip

    def _hold_s(self, wait_s: float) -> float:
        usual_s = self._settings.heartbeat_s * random.uniform(0.9, 1.1)  # noqa: S311 - nobody gains by guessing it
        return min(wait_s, WAIT_S_MAX, usual_s)

    def _next_s(self, call: Call) -> float:
        """Say when to come again: soon, who waits or has more to tell; else after the usual time, spread."""
        more = len(call.records) >= RECORDS_MAX
        usual_s = SOON_S / 2 if call.wait_s > 0 or more else self._settings.heartbeat_s
        return round(usual_s * self._presence.slower * random.uniform(0.8, 1.2), 3)  # noqa: S311 - as above

    async def _take_report(self, present: Present, report: str) -> str:
        """Take a signed report; return the code of why not, or nothing."""
        data = report.encode()
        hashed = hashlib.sha256(data).digest()
        if hashed == present.report_hash:
            return ""  # the same once more: its signature was checked
        try:
            said = await self._reports.take(data, present.device)
        except IdentityError as error:
            text = cut(f"A report that came with a call was not taken: {error}", 1000)
            await self._store.note_alarm(present.device, error.code, text, now_ms=self._clock.now_ms())
            return error.code
        present.report_hash = hashed
        await self._note_report(present, said)
        return ""

    async def _note_report(self, present: Present, said: ReportAnswer) -> None:
        standing = await self._intake_store.standing(present.device)
        present.known, present.counter, present.head_sequence = standing.known, said.counter, said.head_sequence

    def _read_loosely(self, data: bytes, packed: bool, fault: Exception) -> Call:
        """Read a call of which one record at least is not as it should be: that one is noted, the others count."""
        decode = msgspec.msgpack.decode if packed else msgspec.json.decode
        try:
            said = decode(data, type=dict[str, Raw])
            parts = decode(said.pop("records", _NOTHING[packed]), type=list[Raw])
            call = msgspec.convert({name: decode(value) for name, value in said.items()}, Call)
        except (*UNREADABLE, TypeError) as error:
            raise RequestError(f"The call cannot be read: {error}. Nothing was changed.") from error
        if len(parts) > RECORDS_MAX:
            raise LimitExceededError(f"A call has {RECORDS_MAX} records at most; send the rest in the next one.")
        records = [self._read_record(part, packed, fault) for part in parts]
        return msgspec.structs.replace(call, records=records)

    def _read_record(self, part: Raw, packed: bool, fault: Exception) -> Record:
        decode = msgspec.msgpack.decode if packed else msgspec.json.decode
        try:
            read: Record = decode(part, type=Record)
            return read
        except UNREADABLE as error:
            try:
                number = decode(part, type=_Numbered).n
            except UNREADABLE:
                raise RequestError(f"The call has a record without a number: {fault}. Nothing was changed.") from error
            text = cut(f"a record that cannot be read: {error}", 500)
            return Happening(n=number, kind="other", at_ms=self._clock.now_ms(), text=text)


def in_order(records: Sequence[Record]) -> Sequence[Record]:
    """Return records by number, oldest first."""
    if all(one.n < next_.n for one, next_ in itertools.pairwise(records)):
        return records
    return sorted(records, key=lambda record: record.n)
