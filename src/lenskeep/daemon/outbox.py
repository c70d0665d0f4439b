"""Fills the outbox: windows as they close, events out of the record, trials, faults as they happen, vitals at times.

Rules. It collects only while this device belongs to a fleet. What it reads from the registry's record it reads behind
the last entry that it took, and notes how far it came in the transaction that puts the events in; so a daemon that is
killed anywhere tells each entry once. With trials it is the same; a new outbox begins with those that count now. In
each start of the daemon the fleet is heard before anything is sent and before the record is read: an outbox that was
put back from a copy is known then by what the fleet has, and what may have been told in its first life is given up
rather than told twice. A full disk changes nothing but the time: it is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from typing import Any

import msgspec

from lenskeep.clock import Clock
from lenskeep.daemon.metrics import Metrics
from lenskeep.database import Database, Transaction
from lenskeep.errors import LenskeepError
from lenskeep.messages.fleet import cut
from lenskeep.messages.sync import MS_MAX, RECORDS_MAX, Happening, Record, Trial, Vitals
from lenskeep.registry import audit, bundles, journal, outbox
from lenskeep.registry.blobs import MEBIBYTE
from lenskeep.registry.bundles import TriedVersion
from lenskeep.registry.outbox import Held, OutboxState
from lenskeep.trust.chain import Entry

log = logging.getLogger(__name__)

COLLECT_S = 10.0
VITALS_S = 300.0
LATE_S = 4  # results of a minute may come so late and still be in its window
FAULT_AGAIN_S = 60.0  # the same fault of the same slot is told once in this time
FAULTS_WAITING_MAX = 100
RECORDS_PER_MB = 4096
ENTRIES_AT_ONCE = 500
TRIALS_AT_ONCE = 100
TRIALS_AGAIN_S = 600.0
JOINING = ("enrol certificate", "install certificate")

# What the record's actions are to a fleet; actions that are not here stay in the record.
KINDS: dict[str, Any] = {
    "swapped": "swap", "rollback": "rollback", "not activated": "refusal", "refuse import": "refusal",
    "refuse membership": "refusal", "trial": "trial", "clock": "clock", "assign": "assignment",
    "assignment followed": "assignment", "assignment refused": "assignment", "assignment rolled_back": "assignment",
    "fault": "fault", "damage": "fault", "start": "other", "stop": "other", "confirm": "other", "hold": "other",
    "resume": "other", "withdraw": "other", "import": "other", "pause assignments": "other",
    "resume assignments": "other",
}  # fmt: skip

ReadVitals = Callable[[], Awaitable[Vitals]]
Providers = Callable[[], dict[str, str]]  # slot -> what its session runs on


class Outbox:
    """What the fleet has not acknowledged yet.

    Args:
        windows: the database of spans, which the outbox lies in. registry: whose record events are read from.
        belongs: says whether this device belongs to a fleet, over the network or by stick.
    """

    def __init__(
        self, windows: Database, registry: Database, metrics: Metrics, clock: Clock, outbox_mb: int,
        belongs: Callable[[], bool], providers: Providers, vitals: ReadVitals,
    ) -> None:  # fmt: skip
        self._windows = windows
        self._registry = registry
        self._metrics = metrics
        self._clock = clock
        self._bytes_max = outbox_mb * MEBIBYTE
        self._records_max = outbox_mb * RECORDS_PER_MB
        self._belongs = belongs
        self._providers = providers
        self._read_vitals = vitals
        self._faults: list[Happening] = []
        self._fault_told_s: dict[tuple[str, str], float] = {}
        self._vitals_due_s = 0.0
        self._born_n = 0  # the first number of this start of the daemon
        self._begun = 0  # the entry before that of this start
        self._tried = 0  # the newest trial before this start
        self._tried_again_s = float("-inf")
        self._agreed = False  # the fleet was heard in this start
        self._by_stick = False  # somebody came with a stick in this start
        self._collecting = asyncio.Lock()
        self._wake = asyncio.Event()
        self._stirred = False  # something moved on this device since the last look
        self.kinds: frozenset[str] = frozenset()  # of records that the fleet takes, beside the first three
        self.told: Callable[[], None] = lambda: None  # called when there is something that the fleet should hear soon

    async def begin(self) -> None:
        """Take up the outbox as the daemon before left it."""
        async with self._windows.read() as tx:
            found = await outbox.state(tx)
        self._born_n = found.next_n if found is not None else 0
        self._metrics.told_to_fleet = self._belongs
        async with self._registry.read() as tx:
            start, self._tried = await audit.last_of(tx, "start"), await bundles.last_trial(tx)
            noted = await journal.noted(tx, _mark(found.name)) if found is not None else 0
        if found is not None and found.trial > self._tried:  # the registry was put back: its trials go on from there
            async with self._windows.write() as tx:
                await outbox.take_trials(tx, [], self._tried)
        self._begun = start.sequence - 1 if start is not None else 0
        if found is not None and noted - 1 > found.carried:
            await self._give_up()

    # --- what comes in --------------------------------------------------------------------------------------------

    def heed(self, type_: str, data: Any) -> None:
        """Hear of what happens on this device; faults are told as they happen, all else comes from the record.

        A slot may stand elsewhere without an entry that the fleet is told, as when a probation is over.
        """
        if type_ in ("slot", "bundle"):
            self._stirred = True
            self._wake.set()
        if type_ != "fault" or not self._belongs() or len(self._faults) >= FAULTS_WAITING_MAX:
            return
        now_s, which = self._clock.monotonic_s(), (str(data.get("slot", "")), str(data.get("code", "")))
        if now_s - self._fault_told_s.get(which, float("-inf")) < FAULT_AGAIN_S:
            return
        self._fault_told_s[which] = now_s
        fault = Happening(
            n=0, kind="fault", at_ms=self._clock.now_ms(), slot=cut(which[0], 200), code=which[1][:12],
            text=cut(str(data.get("message", "")), 2000),
        )  # fmt: skip
        self._faults.append(fault)
        self._wake.set()

    async def run(self) -> None:
        """Collect until cancelled."""
        while True:
            self._wake.clear()
            stirred, self._stirred = self._stirred, False
            try:
                if self._belongs() and (await self.collect() or stirred):
                    self.told()
            except LenskeepError as error:  # a full or failing disk: what was not taken is taken later
                self._stirred |= stirred
                log.warning("%s outbox: %s", error.code, error)
            try:
                async with asyncio.timeout(COLLECT_S):
                    await self._wake.wait()
                    await asyncio.sleep(0.05)  # what happens at once is taken at once
            except TimeoutError:
                continue

    async def collect(self) -> bool:
        """Take what has come together; say whether the fleet should hear of it soon."""
        async with self._collecting:
            return await self._collect()

    async def _collect(self) -> bool:
        vitals = [await self._vitals()] if self._clock.monotonic_s() >= self._vitals_due_s else []
        happenings, entry = await self._events()
        trials, tried = await self._trials()
        faults, now_s = list(self._faults), int(self._clock.now_s())
        async with self._windows.read() as tx:
            ripe, begun = await outbox.ripe(tx, now_s - LATE_S, now_s), await outbox.state(tx) is not None
        if not (vitals or happenings or trials or faults or ripe or entry is not None or not begun):
            return False
        async with self._windows.write() as tx:
            if ripe:
                await outbox.close(tx, now_s - LATE_S, now_s, self._providers())
            if entry is not None:
                await outbox.take_entries(tx, happenings, entry)
            if trials:
                await outbox.take_trials(tx, trials, tried)
            await outbox.add(tx, [*faults, *vitals])
            if await outbox.make_room(tx, bytes_max=self._bytes_max, records_max=self._records_max):
                log.warning("the outbox is full: the fleet was not reached for long")
        del self._faults[: len(faults)]
        if vitals:
            self._vitals_due_s = self._clock.monotonic_s() + VITALS_S
        return bool(happenings or trials or faults)

    async def _events(self) -> tuple[list[Happening], int | None]:
        """Read the record behind the last entry that was taken; return its events, and how far it was read."""
        async with self._windows.read() as tx:
            found = await outbox.state(tx)
        async with self._registry.read() as tx:
            newest = await audit.newest(tx)
            if newest is None or (found is not None and newest.sequence == found.entry):
                return [], None
            if found is not None and found.entry >= 0 and not (self._agreed or self._by_stick):
                return [], None  # it lies safe in the record
            if found is None or found.entry < 0:
                return [], await _joined(tx, newest.sequence)
            if newest.sequence < found.entry:  # the registry was put back: its record goes on from there
                return [], newest.sequence
            entries = await audit.after(tx, found.entry, ENTRIES_AT_ONCE)
        told = [happening_of(entry) for entry in entries if entry.action in KINDS]
        if len(entries) == ENTRIES_AT_ONCE:
            self._wake.set()
        return told, entries[-1].sequence

    async def _trials(self) -> tuple[list[Trial], int]:
        """Read the trials behind the last one that was taken, and how far they go; none while no fleet takes them.

        A fleet that takes records from sticks knows them.
        """
        async with self._windows.read() as tx:
            found = await outbox.state(tx)
        if found is None or not ("trial" in self.kinds if self._agreed else self._by_stick):
            return [], 0
        async with self._registry.read() as tx:
            tried = await bundles.trials_after(tx, found.trial, TRIALS_AT_ONCE)
        if len(tried) == TRIALS_AT_ONCE:
            self._wake.set()
        return [trial_of(one) for one in tried], tried[-1].trial.sequence if tried else 0

    async def _vitals(self) -> Vitals:
        return msgspec.structs.replace(await self._read_vitals(), version=version("lenskeep"))

    # --- what goes out --------------------------------------------------------------------------------------------

    async def batch(self) -> tuple[str, int, list[Record]]:
        """Return the outbox's name, the number up to which nothing is held, and the oldest records, noted as sent."""
        async with self._windows.read() as tx:
            found, after = await outbox.state(tx), await outbox.gone_up_to(tx)
            records = await outbox.oldest(tx, RECORDS_MAX)
        if found is None:
            return "", -1, []
        if not self._agreed:
            return found.name, after, []
        if records and records[-1].n > found.sent:
            async with self._windows.write() as tx:
                current = await outbox.oldest(tx, RECORDS_MAX)  # it may have been made smaller in between
                await outbox.note_sent(tx, current[-1].n if current else -1)
                after, records = await outbox.gone_up_to(tx), current
        return found.name, after, records

    async def taken(self, name: str, taken: int, after: int | None) -> int:
        """Take the fleet's word for what it has; return how many records could be forgotten.

        Args:
            after: what the call that is answered said is gone. An answer that was held may be older than what other
                calls heard meanwhile: only one that contradicts its own call says that the fleet was put back.
        """
        async with self._windows.read() as tx:
            found, gone_up_to = await outbox.state(tx), await outbox.gone_up_to(tx)
        if found is None or found.name != name:
            return 0
        if taken <= gone_up_to:
            if after is not None and taken < after and found.trial >= 0:
                await self._tell_trials_again()
            self._agree()
            return 0
        if taken > found.shown:
            await self._give_up()
            self._agree()
            return 0
        async with self._windows.write() as tx:
            gone = await outbox.forget(tx, taken)
        self._agree()
        return gone

    async def _give_up(self) -> None:
        """Go on under a new name: this outbox was put back from a copy."""
        async with self._windows.write() as tx:
            gone = await outbox.rename(tx, self._born_n)
            found = await outbox.state(tx)
            if found is not None and not self._by_stick:  # else all of it was read in this start, each entry once
                await outbox.take_entries(tx, [], self._begun)
                await outbox.take_trials(tx, [], max(found.trial, self._tried))
        self._born_n = 0
        log.warning("the outbox was put back from a copy; %d records that the fleet may have were given up", gone)

    async def _tell_trials_again(self) -> None:
        """The fleet was put back, or is another one: what counts now it may not have."""
        now_s = self._clock.monotonic_s()
        if now_s - self._tried_again_s >= TRIALS_AGAIN_S:
            self._tried_again_s = now_s
            async with self._windows.write() as tx:
                await outbox.take_trials(tx, [], -1)
            self._wake.set()

    def _agree(self) -> None:
        if not self._agreed:
            self._agreed = True
            self._wake.set()  # what is in the record and not told yet
            self.told()

    # --- by stick -------------------------------------------------------------------------------------------------

    async def carry(self, above: int) -> tuple[OutboxState, int, list[Record], int] | None:
        """Return the oldest records above a number, noted as carried away; they stay until they are acknowledged.

        Returns: the outbox, the number up to which nothing is held, records, and how many have higher numbers.
        """
        if above < 0:
            self._by_stick = True
            await self._catch_up()
        async with self._windows.write() as tx:
            found, after = await outbox.state(tx), await outbox.gone_up_to(tx)
            records = await outbox.oldest(tx, RECORDS_MAX, above=above)
            if found is None or not records:
                return None
            last = records[-1].n
            await outbox.note_carried(tx, last)
            left = await outbox.left_above(tx, last)
        async with self._registry.write() as tx:
            await journal.note(tx, _mark(found.name), max(await journal.noted(tx, _mark(found.name)), last + 1))
        return found, after, records, left

    async def _catch_up(self) -> None:
        """Collect until the whole record was read: after months without a fleet that takes more than one step."""
        before: tuple[int, int] | None = None
        while True:
            await self.collect()
            async with self._windows.read() as tx:
                found = await outbox.state(tx)
            if found is None or (found.entry, found.trial) == before:
                return
            before = (found.entry, found.trial)

    async def acknowledged(self, name: str, taken: int) -> int:
        """Take what a proven receipt says; return how many records could be forgotten.

        A receipt may be old, so it is not heard as the fleet's word for how things stand now.
        """
        async with self._windows.read() as tx:
            found = await outbox.state(tx)
        if found is None or found.name != name:
            return 0
        if taken > found.shown:
            await self._give_up()
            return 0
        async with self._windows.write() as tx:
            return await outbox.forget(tx, taken)

    async def held(self) -> tuple[Held, int]:
        """Return what is held, and how many records were ever dropped."""
        async with self._windows.read() as tx:
            has, found = await outbox.held(tx), await outbox.state(tx)
        return has, found.dropped if found is not None else 0


def _mark(name: str) -> str:
    """Name the registry's note of what an outbox has put onto sticks: one above the newest number."""
    return f"carried {name}"


async def _joined(tx: Transaction, newest: int) -> int:
    """Return the entry from which on a new member tells: its enrolment, if that was in this start of the daemon."""
    start = await audit.last_of(tx, "start")
    joined = [found.sequence for action in JOINING if (found := await audit.last_of(tx, action)) is not None]
    if start is not None and joined and max(joined) > start.sequence:
        return max(joined)
    return newest


def happening_of(entry: Entry) -> Happening:
    """Say an entry of the record in the words of the fleet."""
    kind, _, slot = entry.subject.partition(" ")
    bundle = entry.after.split(" ")[0] if "@" in entry.after.split(" ")[0] else ""
    code = entry.reason[:7] if entry.reason.startswith("LK-") else ""
    text = f"{entry.action} by {entry.actor}" + (f": {entry.reason}" if entry.reason else "")
    if kind != "slot":
        text += f" ({entry.subject})"
    return Happening(
        n=0, kind=KINDS[entry.action], at_ms=max(0, entry.at_ms), slot=cut(slot, 200) if kind == "slot" else "",
        bundle=cut(bundle, 130), code=code, text=cut(text, 2000),
    )  # fmt: skip


def trial_of(tried: TriedVersion) -> Trial:
    """Say a trial in the words of the fleet."""
    trial, report = tried.trial, tried.trial.report
    return Trial(
        n=0, at_ms=max(0, trial.at_ms), bundle=cut(tried.ref, 130), digest=tried.model_sha256,
        provider=cut(trial.provider, 200), hardware=cut(trial.runtime_key, 200), code=report.code[:12],
        golden_passed=report.golden_passed, golden_total=report.golden_total,
        golden_score=min(1.0, max(0.0, report.golden_score)), p50_ms=min(MS_MAX, max(0.0, report.p50_ms)),
        p99_ms=min(MS_MAX, max(0.0, report.p99_ms)), memory_mb=max(0, report.memory_mb),
    )  # fmt: skip
