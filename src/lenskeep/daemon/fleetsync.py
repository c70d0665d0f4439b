"""Speaks with the fleet: says how things stand, hands over the outbox, hears of news, and does what it is asked.

Rules. One call after the other, on one held connection; when something happens while the fleet holds its answer, a
second call tells it at once. The fleet says when to call again, and whoever is sent away comes back no sooner than he
was told; without an answer the pauses grow, and are spread. A connection that is cut while it is held is dialled again
at once. A signed report goes along only when what it says has changed, or when the fleet has another one. Whatever is
said may be said twice: records have numbers, commands have ids.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import ssl
from collections.abc import Callable

from msgspec import Struct

from lenskeep.clock import Clock, rfc3339
from lenskeep.config import Fleet
from lenskeep.daemon.commands import Commands
from lenskeep.daemon.identity import Identity
from lenskeep.daemon.outbox import Outbox
from lenskeep.daemon.patience import Patience
from lenskeep.daemon.problems import fault_check
from lenskeep.daemon.reporter import Reporter
from lenskeep.daemon.standing import Standing
from lenskeep.daemon.sync import Sync
from lenskeep.daemon.syncline import SyncLine
from lenskeep.errors import FleetBusyError, FleetUnreachableError, LenskeepError
from lenskeep.messages.control import Check
from lenskeep.messages.identity import FleetView
from lenskeep.messages.sync import Answer, Call, SlotNow

log = logging.getLogger(__name__)

MEMBER_LOOK_S = 1.0  # how often a device that belongs to no fleet looks whether it does now
SOON_S = 0.1  # what happens within this is told together
DIAL_AGAIN_S = 1.0
BACK_OFF_S = 2.0
BACK_OFF_PACES = 5.0  # at most so many paces apart
REPORT_AGAIN_S = 600.0  # one that was refused
TELL_AGAIN_S = 30.0
NEXT_S_MAX = 3600.0


class _CutError(Exception):
    """The connection broke while the fleet held its answer. For this module; no person meets it."""


class _Told(Struct, kw_only=True):
    """What the fleet has heard in this start of the daemon."""

    facts: str = ""  # digest of what the last report said
    payload: str = ""  # digest of that report, as the fleet names it
    slots: list[SlotNow] | None = None
    refused_s: float = float("-inf")


class _Signed(Struct, frozen=True, kw_only=True):
    """A report, ready to go."""

    facts: str
    counter: int
    envelope: str
    payload: str


class FleetSync:
    """The conversation with the fleet."""

    def __init__(
        self, settings: Fleet, identity: Identity, outbox: Outbox, standing: Standing, reporter: Reporter, sync: Sync,
        commands: Commands, clock: Clock,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._identity = identity
        self._outbox = outbox
        self._standing = standing
        self._reporter = reporter
        self._sync = sync
        self._commands = commands
        self._clock = clock
        self._line = SyncLine(identity.device, identity.way)
        self._patience = Patience(settings.wait_s, clock)
        self._soon = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._told = _Told()
        self._told_again_s = float("-inf")
        self._spoken = False  # in this start of the daemon
        self._heard_s = float("-inf")
        self._fault: LenskeepError | None = None
        self._behind = False
        self.hear: Callable[[Answer], None] = lambda _answer: None  # is told every answer

    def soon(self) -> None:
        """Tell the fleet soon how things stand."""
        self._soon.set()

    # --- what people see ------------------------------------------------------------------------------------------

    async def view(self) -> FleetView | None:
        """Return how things stand with the fleet, also one that sticks alone reach; None when there is none."""
        if not self._identity.member:
            return None
        has, dropped = await self._outbox.held()
        heard = self._heard_s > float("-inf")
        return FleetView(
            url=self._identity.fleet, level=self._fault is None and heard and not self._behind,
            heard_s=round(self._clock.monotonic_s() - self._heard_s, 1) if heard else None, waiting=has.records,
            waiting_bytes=has.bytes, kinds=has.kinds,
            oldest=rfc3339(has.oldest_ms / 1000) if has.oldest_ms else "", dropped=dropped,
            paused=self._commands.paused, problem=f"{self._fault.code} {self._fault}" if self._fault else "",
            fix=self._fault.hint if self._fault else "",
        )  # fmt: skip

    async def checks(self) -> list[Check]:
        """Return the fleet's line of `doctor`."""
        if self._fault is not None:
            return [fault_check("fleet", self._fault, "warn")]
        view = await self.view()
        if view is None or (view.url and view.heard_s is None):
            return []
        heard = f"last heard {view.heard_s:.0f} s ago" if view.heard_s is not None else "reached by stick"
        text = f"{heard}, {view.waiting} records waiting"
        text += f", {view.dropped} dropped" if view.dropped else ""
        text += f", {words}" if (words := self._patience.words()) else ""
        return [Check(name="fleet", passed=True, text=text)]

    # --- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Speak with the fleet until cancelled."""
        failed = 0
        try:
            while True:
                if not self._identity.belongs:
                    await asyncio.sleep(MEMBER_LOOK_S)
                    continue
                try:
                    pause_s, urgent = await self._round(), True
                    failed, self._fault = 0, None
                except _CutError:  # a habit of the way, or a fleet that is started again
                    pause_s, urgent = random.uniform(0.0, DIAL_AGAIN_S), False  # noqa: S311 - as below
                except FleetBusyError:  # there, and with others: no fault of anybody
                    failed += 1
                    pause_s, urgent = self._line.after_s * random.uniform(1.0, 1.2), False  # noqa: S311 - as below
                except LenskeepError as error:
                    failed += 1
                    pause_s, urgent = self._back_off_s(failed), False
                    self._note_fault(error)
                await self._rest(pause_s, urgent)
        finally:
            await self._line.close()

    def _note_fault(self, error: LenskeepError) -> None:
        if self._fault is None or self._fault.code != error.code:
            log.warning("%s fleet: %s", error.code, error)
        self._fault = error

    def _back_off_s(self, failed: int) -> float:
        """Pause longer with every failure, spread over the whole span, so that a fleet that is back is not run over."""
        most_s = min(BACK_OFF_PACES * self._settings.poll_s, BACK_OFF_S * (1 << min(failed, 16)))
        return most_s * random.uniform(0.5, 1.0)  # noqa: S311 - to spread, not to hide

    async def _rest(self, seconds: float, urgent: bool) -> None:
        """Wait; what happens meanwhile cuts it short, unless the fleet does not answer or sent us away."""
        if not urgent:
            await asyncio.sleep(seconds)
            return
        try:
            async with asyncio.timeout(seconds):
                await self._soon.wait()
                await asyncio.sleep(SOON_S)
        except TimeoutError:
            return

    async def _round(self) -> float:
        """Make one call, others beside it while it is held; return how long to rest."""
        if not self._spoken:
            await self._reporter.send()  # whole, so that a device whose registry was put back learns of it
            self._spoken = True
        self._soon.clear()
        held: asyncio.Task[float] = asyncio.create_task(self._call(0.0 if self._behind else self._patience.wait_s()))
        try:
            while not held.done():
                stirred = asyncio.create_task(self._soon.wait())
                await asyncio.wait({held, stirred}, return_when=asyncio.FIRST_COMPLETED)
                stirred.cancel()
                if not held.done():
                    await asyncio.sleep(SOON_S)
                    self._soon.clear()
                    await self._call(0.0)
            return await held
        finally:
            held.cancel()

    async def _call(self, wait_s: float) -> float:
        """Say everything that is open, and take the answer; return how long to rest."""
        context, fleet = self._identity.tls(), self._identity.fleet
        if context is None:
            return MEMBER_LOOK_S
        async with self._one_at_a_time:  # what is said is put together and taken apart by one at a time
            name, after, records = await self._outbox.batch()
            slots, done = await self._standing.slots(), self._commands.done()
            report = await self._due_report()
        call = Call(
            seen=await self._sync.seen(), known=self._told.payload, report=report.envelope if report else "",
            slots=slots if slots != self._told.slots else [], records=records, outbox=name,
            after=after if name else None, done=done, wait_s=wait_s,
        )  # fmt: skip
        answer = await self._ask(fleet, context, call)
        async with self._one_at_a_time:
            return await self._take(call, slots, report, answer)

    async def _ask(self, fleet: str, context: ssl.SSLContext, call: Call) -> Answer:
        """Put a call through. Raises: _CutError when it broke while the fleet held it."""
        began_s = self._clock.monotonic_s()
        try:
            answer = await self._line.ask(fleet, context, call)
        except FleetUnreachableError as error:
            if call.wait_s and self._patience.cut(self._clock.monotonic_s() - began_s):
                raise _CutError from error
            raise
        if call.wait_s:
            self._patience.answered(self._clock.monotonic_s() - began_s)
        return answer

    async def _take(self, call: Call, slots: list[SlotNow], report: _Signed | None, answer: Answer) -> float:
        """Take an answer."""
        self._heard_s, self._fault = self._clock.monotonic_s(), None
        self._outbox.kinds = frozenset(answer.kinds)
        await self._outbox.taken(call.outbox, answer.taken, call.after)
        if call.slots:  # what was held and brought none is older than what another call has told meanwhile
            self._told.slots = slots
        self._commands.told(call.done)
        if report is not None:
            await self._note_report(report, answer)
        elif self._told.payload and answer.known != self._told.payload:
            self._tell_again()
        await self._reporter.note_witness(answer.head_sequence)
        if await self._commands.take(answer.commands):
            self._soon.set()
        self.hear(answer)
        rest_s = min(NEXT_S_MAX, max(0.0, answer.next_s))
        self._behind = answer.newest > call.seen and not await self._sync.level(answer.newest)
        if answer.newest <= call.seen:
            await self._sync.level(answer.newest)
        # what cannot be verified is not waited for at the door: the fleet would answer at once, again and again
        return max(rest_s, self._settings.poll_s) if self._behind else rest_s

    def _tell_again(self) -> None:
        """Tell all of it once more: the fleet was put back, or somebody carried an older report there."""
        now_s = self._clock.monotonic_s()
        if now_s - self._told_again_s >= TELL_AGAIN_S:
            self._told_again_s, self._told = now_s, _Told()
            self._soon.set()

    # --- the report -----------------------------------------------------------------------------------------------

    async def _due_report(self) -> _Signed | None:
        """Sign a report when it would say something new."""
        facts = await self._reporter.digest()
        refused_lately = self._clock.monotonic_s() - self._told.refused_s < REPORT_AGAIN_S
        if not self._commands.report_asked and (facts == self._told.facts or refused_lately):
            return None
        signed = await self._reporter.signed()
        return _Signed(
            facts=facts, counter=signed.counter, envelope=signed.envelope,
            payload=hashlib.sha256(self._reporter.payload_of(signed)).hexdigest(),
        )  # fmt: skip

    async def _note_report(self, report: _Signed, answer: Answer) -> None:
        self._commands.report_asked = False
        if answer.problem:
            self._told.refused_s = self._clock.monotonic_s()
            log.warning("%s the fleet did not take a report", answer.problem)
        elif answer.known == report.payload:
            self._told.facts, self._told.payload = report.facts, report.payload
        elif answer.counter >= report.counter:
            await self._identity.count_reports_from(answer.counter)
            self._soon.set()
