"""What this device says about itself to its fleet: what it really runs, whom it trusts, how far its record goes.

Rules. "Running" is what the slot's own process says its session was made from, never what was wished. Every text is cut
here, with a mark, so that no report is refused for its size. A report is the same on the wire and on a stick.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

import msgspec

from lenskeep.clock import Clock
from lenskeep.daemon.identity import Identity, MakeReport
from lenskeep.daemon.record import Record
from lenskeep.daemon.sync import Sync
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.daemon.views import Views
from lenskeep.errors import LenskeepError
from lenskeep.messages.control import SlotView
from lenskeep.messages.fleet import (
    DeviceReport,
    LastRefusal,
    ReportAnswer,
    SlotReport,
    TrustedVersions,
    cut,
)
from lenskeep.messages.identity import SignedReport
from lenskeep.trust import envelope
from lenskeep.trust.names import DIRECTOR, ROOT, SNAPSHOT, TIMESTAMP

LINE_MAX, TEXT_MAX, SLOTS_MAX = 200, 2000, 64


class Reporter:
    """Makes reports and sends them."""

    def __init__(
        self, identity: Identity, views: Views, trust: TrustKeeper, sync: Sync, record: Record, clock: Clock
    ) -> None:
        self._identity = identity
        self._views = views
        self._trust = trust
        self._sync = sync
        self._record = record
        self._clock = clock
        self._witnessed = 0

    async def signed(self) -> SignedReport:
        """Sign a report for a stick."""
        counter, data = await self._identity.signed_report(await self._facts())
        return SignedReport(device=self._identity.device, counter=counter, envelope=data.decode())

    async def send(self) -> ReportAnswer:
        """Report over the network; what the fleet has witnessed of the record is noted there."""
        head = await self._record.head()
        answer = await self._identity.report(await self._facts(head.envelope))
        if answer.head:
            await self._record.note_witness(answer.head_sequence, answer.head_hash, answer.head.encode())
        return answer

    async def digest(self) -> str:
        """Return the digest of what a report would say now; times and numbers of reports are not news."""
        report = (await self._facts())("x", 1)
        refusal = msgspec.structs.replace(report.refusal, at_ms=0) if report.refusal is not None else None
        told = msgspec.structs.replace(report, at_ms=0, refusal=refusal)
        return hashlib.sha256(msgspec.json.encode(told)).hexdigest()

    @staticmethod
    def payload_of(signed: SignedReport) -> bytes:
        """Return the bytes that were signed."""
        return envelope.open_envelope(signed.envelope.encode()).payload

    async def note_witness(self, sequence: int) -> None:
        """Take the fleet's word for how far it has witnessed the record; what is not ours is asked for in full."""
        if sequence > self._witnessed and not await self._record.note_witnessed(sequence):
            await self.send()
        self._witnessed = max(self._witnessed, sequence)

    async def _facts(self, head: str = "") -> MakeReport:
        """Gather what is so now; the number comes with the signature."""
        known = await self._trust.known()
        trusted = TrustedVersions(
            root=known.version(ROOT), timestamp=known.version(TIMESTAMP), snapshot=known.version(SNAPSHOT),
            director=known.version(DIRECTOR),
        ) if known else TrustedVersions()  # fmt: skip
        assigned = {one.slot: one.bundle for one in (await self._sync.view()).assignments}
        slots = [_slot(view, assigned.get(view.slot, "")) for view in (await self._views.slots())[:SLOTS_MAX]]
        refusal = _refusal(self._sync.last_fault, self._clock.now_ms())
        signed_head = head or (await self._record.head()).envelope

        def make(device: str, counter: int) -> DeviceReport:
            return DeviceReport(
                device=device, counter=counter, at_ms=self._clock.now_ms(), clock_trusted=self._clock.trusted(),
                clock_floor_s=int(self._clock.floor_s), trusted=trusted, slots=slots, refusal=refusal,
                record_head=signed_head,
            )  # fmt: skip

        return make


def _slot(view: SlotView, assigned: str) -> SlotReport:
    since = datetime.fromisoformat(view.since.replace("Z", "+00:00")).timestamp() if view.since else 0.0
    return SlotReport(
        slot=view.slot, running=cut(view.active, LINE_MAX), digest=view.active_digest, assigned=cut(assigned, LINE_MAX),
        state=view.state, since_ms=int(since * 1000),
    )  # fmt: skip


def _refusal(fault: LenskeepError | None, now_ms: int) -> LastRefusal | None:
    return None if fault is None else LastRefusal(code=fault.code, text=cut(str(fault), TEXT_MAX), at_ms=now_ms)
