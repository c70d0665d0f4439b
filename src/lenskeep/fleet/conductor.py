"""The loop that conducts rollouts: looks at what is due, writes what was decided, signs it, wakes the devices.

Rules. Intent, then loop. A look is decided and written in one transaction; what is to be signed stands in it as not
signed, and is signed afterwards, as often as it takes. So a kill at any point leaves a decision that is done at the
next start, and none is taken twice. A round signs once for all devices, and rounds keep a distance. Deadlines and
pauses are measured by a time that passes only while a conductor is at work. Before the first round it is seen whether
the repository assigns what this memory knows nothing of, because it was put back from a copy.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from msgspec.structs import replace

from lenskeep.clock import Clock
from lenskeep.errors import ClockUntrustedError, LenskeepError
from lenskeep.fleet import evidence
from lenskeep.fleet.director import Director, Order
from lenskeep.fleet.rollouts import judge, puttingback, windows
from lenskeep.fleet.rollouts.facts import Evidence, Member, Moment, Rollout, move
from lenskeep.fleet.rollouts.lifecycle import OVER, MemberEvent, MemberState, RolloutState
from lenskeep.fleet.rollouts.puttingback import Assigned
from lenskeep.fleet.store.rollouts import RolloutStore
from lenskeep.fleet.store.store import Store
from lenskeep.fleet.store.telemetry import TelemetryStore
from lenskeep.fleet.store.trials import TrialStore
from lenskeep.messages.rollouts import Plan, Way
from lenskeep.trust.names import model_of

log = logging.getLogger("lenskeep.fleet")

APART_S = 0.25  # between rounds: at most a few signings a second
LOOK_S, IDLE_S, AGAIN_S = 5.0, 60.0, 10.0
EVIDENCE_S = 2.0
PASSED_S_MAX = 60.0  # a machine that slept for longer did not hear its devices meanwhile
FLEET_ITSELF = ""  # alarms that are about no device

Leads = Callable[[], Awaitable[bool]]


class News(Protocol):
    """Where devices wait for news."""

    def expect(self, concerned: Iterable[str]) -> None:
        """Hear which devices get something new, before it can be seen."""
        ...

    async def look(self) -> None:
        """See that there is something new."""
        ...


class Nobody:
    """Where nobody waits."""

    def expect(self, concerned: Iterable[str]) -> None:
        """Tell nobody."""

    async def look(self) -> None:
        """Tell nobody."""


async def _alone() -> bool:
    return True


class Conductor:
    """Conducts rollouts."""

    def __init__(
        self, store: RolloutStore, alarms: Store, telemetry: TelemetryStore, trials: TrialStore, director: Director,
        clock: Clock, *, news: News | None = None, leads: Leads = _alone,
    ) -> None:  # fmt: skip
        self._store = store
        self._alarms = alarms
        self._telemetry = telemetry
        self._trials = trials
        self._director = director
        self._clock = clock
        self._news: News = news or Nobody()
        self._leads = leads
        self._owner = uuid.uuid4().hex
        self._woken = asyncio.Event()
        self._at_s: float | None = None
        self._seen: dict[int, tuple[float, Evidence]] = {}
        self._believed = False
        self._agreed = False  # with what the repository assigns

    def wake(self) -> None:
        """Have a look soon: something was said or decided."""
        self._woken.set()

    async def run(self) -> None:
        """Conduct until cancelled. What goes wrong is an alarm, and tried again."""
        while True:
            self._woken.clear()
            try:
                pause_s = LOOK_S
                if await self._leads():
                    await self.agree()
                    pause_s = await self.round()
            except LenskeepError as error:
                pause_s = AGAIN_S
                log.warning("%s Rollouts wait: %s", error.code, error)
                with contextlib.suppress(LenskeepError):  # the database may be what is away
                    await self._alarms.note_alarm(FLEET_ITSELF, error.code, str(error), now_ms=self._clock.now_ms())
            await asyncio.sleep(APART_S)
            try:
                async with asyncio.timeout(pause_s):
                    await self._woken.wait()
            except TimeoutError:
                pass

    async def begin(self) -> None:
        """Agree with the repository before devices are heard; what goes wrong is tried again by the loop."""
        try:
            if await self._leads():
                await self.agree()
        except LenskeepError as error:
            log.warning("%s Rollouts wait: %s", error.code, error)

    async def agree(self) -> None:
        """See once whether assignments are newer than this memory. Raises: RepositoryDamagedError, StorageError."""
        if self._agreed:
            return
        known = {(one.device, one.slot): one for one in await self._store.desired()}
        earlier = await self._store.earlier()
        numbers = {*await self._store.due(), *(one.rollout for one in known.values())}
        assigned = await asyncio.to_thread(self._director.assigned_in_thread) if numbers else {}
        moment = await self.moment()

        def decide(rollout: Rollout, members: list[Member]) -> judge.Look:
            slot, there, remembered = rollout.plan.slot, dict[str, Assigned](), dict[str, str]()
            for one in members:
                found = assigned[one.device].slots.get(slot) if one.device in assigned else None
                last = known.get((one.device, slot))
                if found is not None and (last is None or last.rollout <= rollout.id):
                    bundle = "@".join(model_of(found.target) or ("", ""))
                    there[one.device] = Assigned(bundle, assigned[one.device].generation, found.activate)
                remembered[one.device] = last.bundle if last is not None else ""
                if not one.signed:  # what is assigned may still be from before
                    remembered[one.device] = earlier.get((rollout.id, one.device), "")
            return puttingback.agree(rollout, members, there, remembered, moment)

        for number in sorted(numbers):
            after, _ = await self._store.revise(number, decide)
            if after.reason.startswith("put back"):
                log.warning("rollout %d of %s: %s", number, after.plan.bundle, after.reason)
        self._agreed = True

    async def moment(self, rollout: Rollout | None = None) -> Moment:
        """Return the times as they are now, and whether a rollout's windows are open."""
        open_ = rollout is None or windows.is_open(rollout.plan.windows, self._clock.now_s())
        steady_ms = await self._store.read_steady()
        return Moment(self._clock.now_ms(), steady_ms, open_, await self._store.gone())

    async def round(self) -> float:
        """Look at every rollout that is due, sign what was decided, and say in how many seconds to look again."""
        due = await self._store.due()
        pause_s = IDLE_S
        if due:
            await self._let_time_pass()
            for number in due:
                pause_s = min(pause_s, await self._look(number))
        else:
            self._at_s = None
        await self._sign()
        return pause_s

    async def _let_time_pass(self) -> None:
        now_s = self._clock.boot_s()
        passed_s = 0.0 if self._at_s is None else min(max(now_s - self._at_s, 0.0), PASSED_S_MAX)
        self._at_s = now_s
        await self._store.steady(self._owner, int(passed_s * 1000))

    async def _look(self, number: int) -> float:
        before, members = await self._store.get(number)
        moment = await self.moment(before)
        seen = await self._evidence(before, members)
        after, members = await self._store.revise(number, lambda now, ones: judge.look(now, ones, seen, moment))
        if (after.state, after.opened) != (before.state, before.opened):
            log.info("rollout %d of %s: %s: %s", number, after.plan.bundle, after.state, after.reason)
        wait_ms = judge.next_due_ms(after, members, moment)
        return LOOK_S if wait_ms is None else min(max(wait_ms / 1000, APART_S), LOOK_S)

    async def _evidence(self, rollout: Rollout, members: Sequence[Member]) -> Evidence:
        if rollout.state != RolloutState.RUNNING or not rollout.opened:
            return Evidence()
        now_s = self._clock.monotonic_s()
        known = self._seen.get(rollout.id)
        if known is None or now_s - known[0] >= EVIDENCE_S:
            found = await evidence.gather(self._telemetry, self._trials, rollout, members)
            self._seen[rollout.id] = known = (now_s, found)
        return known[1]

    # --- signing ----------------------------------------------------------------------------------------------------

    async def _sign(self) -> None:
        """Have everything signed that was decided. What no publisher lists any more ends there."""
        while missing := await self._sign_once():
            moment = await self.moment()
            for number in sorted({one.rollout for one in await self._store.unsigned()}):
                await self._store.revise(number, functools.partial(_give_up, missing=missing, moment=moment))

    async def _sign_once(self) -> frozenset[str]:
        """Sign once for all; return the versions that are not released. Raises: what the repository's tool refuses."""
        if not await self._store.unsigned():
            return frozenset()
        self._believed = self._believed or self._clock.trusted()
        if not self._believed:
            raise ClockUntrustedError("The fleet's clock cannot be right; nothing is signed by it.")
        loop = asyncio.get_running_loop()
        members: list[Member] = []

        def asked_in_thread() -> list[Order]:
            found = asyncio.run_coroutine_threadsafe(self._orders(), loop).result()
            members.extend(one for one, _ in found)
            return [order for _, order in found]

        def numbered_in_thread(generations: Mapping[str, int]) -> None:
            loop.call_soon_threadsafe(self._news.expect, [one.device for one in members])
            numbers = [(one, generations.get(one.device, 0)) for one in members if one.renumber]
            asyncio.run_coroutine_threadsafe(self._store.number(numbers), loop).result()

        signed = await asyncio.to_thread(
            self._director.sign_in_thread, asked_in_thread, self._clock.now_s(), numbered_in_thread
        )
        if signed.anew:
            log.info("signed what %d devices should run", signed.anew)
            await self._news.look()
        await self._store.signed(one for one in members if one.want not in signed.unlisted)
        return signed.unlisted

    async def _orders(self) -> list[tuple[Member, Order]]:
        found = []
        plans: dict[int, Plan] = {}
        for one in await self._store.unsigned():
            if one.rollout not in plans:
                plans[one.rollout] = (await self._store.get(one.rollout))[0].plan
            plan = plans[one.rollout]
            download: Way = plan.download if one.want == plan.bundle else "forced"
            found.append((one, Order(one.device, one.slot, one.want, download, one.activate, one.renumber)))
        return found


def _give_up(
    rollout: Rollout, members: list[Member], missing: frozenset[str], moment: Moment
) -> tuple[Rollout, list[Member]]:
    """End what cannot be signed because nobody releases it any more."""
    if rollout.plan.bundle in missing and rollout.state not in OVER and rollout.state != RolloutState.REVERTING:
        text = f"stopped itself: {rollout.plan.bundle} is not released any more"
        revert = rollout.plan.on_broken == "abort-revert"
        return judge.abort(rollout, members, text, moment, revert=revert)
    return rollout, [_stays(one, moment) if one.want in missing and not one.signed else one for one in members]


def _stays(member: Member, moment: Moment) -> Member:
    """Assign nothing to a device whose earlier version is gone: what it runs stays until somebody decides."""
    if member.state == MemberState.REVERTING:
        text = f"{member.want}, which ran there before, is not released any more: it stays as it is"
        member = move(member, MemberEvent.SAID_FAILED, text, moment.wall_ms)
    return replace(member, want="", signed=False)
