"""Decides what each slot runs: writes what is wanted, makes it so, watches it, and takes it back when it must.

Intent, then loop. A request writes the wanted version in one transaction and wakes the slot's loop; the loop asks the
runner, records what it did, and carries the new version through probation. A power cut between any two of these steps
is found at the next start, from the slot's state alone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from lenskeep.bundle import manifest as manifests
from lenskeep.clock import Clock
from lenskeep.config import Probation
from lenskeep.daemon import gates
from lenskeep.daemon.events import Events
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.plans import Plans
from lenskeep.daemon.qualifier import Qualifier, fault_of
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.database import Database, Transaction
from lenskeep.errors import (
    ConflictError,
    CrashedInProbationError,
    CrashLoopError,
    IncompatibleError,
    KeyRevokedError,
    LenskeepError,
    NotConfirmedError,
    NothingToRollBackToError,
    RequestError,
    SlotError,
    SwapRefusedError,
    fault_book,
)
from lenskeep.lifecycle import BundleState, SlotEvent, SlotState
from lenskeep.messages.control import ActivationRequest, Operation
from lenskeep.messages.runner import Back, Beat, BundleRef, Cancel, Hold, Swap, Swapped
from lenskeep.registry import access, audit, bundles, slots
from lenskeep.registry.bundles import StoredBundle
from lenskeep.registry.slots import StoredSlot

log = logging.getLogger(__name__)

LOOK_S = 0.5


class Activator:
    """The one place that changes what a slot wants, runs and ran before."""

    def __init__(
        self, database: Database, plans: Plans, qualifier: Qualifier, supervisor: Supervisor, metrics: Metrics,
        operations: Operations, events: Events, clock: Clock, probation: Probation,
    ) -> None:  # fmt: skip
        self._database = database
        self._plans = plans
        self._qualifier = qualifier
        self._supervisor = supervisor
        self._metrics = metrics
        self._operations = operations
        self._events = events
        self._clock = clock
        self._limits = probation
        self._wake = {slot: asyncio.Event() for slot in supervisor.processes}
        self._changing = {slot: asyncio.Lock() for slot in supervisor.processes}
        self._ends_at: dict[str, float] = {}
        self._crashes_in_swap: dict[str, int] = {}

    # --- what people ask ------------------------------------------------------------------------------------------

    def slot_name(self, slot: str | None) -> str:
        """Return the slot meant; with only one it need not be named. Raises: RequestError."""
        if slot is not None:
            return self._plans.slot_config(slot).name
        if len(self._wake) == 1:
            return next(iter(self._wake))
        raise RequestError(f"There are several slots ({', '.join(self._wake)}); name one with --slot.")

    async def activate(self, request: ActivationRequest, by: str) -> Operation:
        """Make a slot want a version. Raises: what stands against it; nothing is changed then."""
        slot_name = self.slot_name(request.slot)
        bundle = await self._qualifier.find(request.bundle)
        await self._require_fit(bundle)
        operation = await self._operations.begin("activate", bundle.ref, by)
        try:
            async with self._database.write() as tx:
                slot = await slots.get(tx, slot_name)
                if slot.active == bundle.id and slot.state != SlotState.SWAPPING:
                    raise ConflictError(f"{bundle.ref} is already active in slot {slot_name}.")
                await slots.move(
                    tx, slot, SlotEvent.SWAP_ASKED, wanted_id=bundle.id, reason=request.reason, asked_by=by,
                    trial_s=request.trial_s, accept_risks=" ".join(request.accept_risks), operation=operation.id,
                )  # fmt: skip
                await self._note(tx, slot, "activate", by, request.reason, bundle)
        except LenskeepError as error:
            await self._operations.fail(operation.id, error)
            raise
        self._wake[slot_name].set()
        self._tell(slot_name)
        return operation

    async def _require_fit(self, bundle: StoredBundle) -> None:
        async with self._database.read() as tx:
            trial = await bundles.newest_trial(tx, bundle.id)
            key = await access.key(tx, bundle.key_id)
        if key is not None and key["revoked_ms"] is not None:
            raise KeyRevokedError(
                f"{bundle.ref} is signed by {bundle.signer}, whose key was revoked. Nothing was changed."
            )
        if bundle.state == BundleState.REJECTED and trial is not None:
            raise fault_of(trial.report)
        if bundle.state != BundleState.QUALIFIED:
            raise IncompatibleError(
                f"{bundle.ref} has not proved itself on this device yet. Nothing was changed.",
                hint=f"Try it first: lenskeep check {bundle.ref}",
            )

    async def confirm(self, slot: str | None, by: str, reason: str) -> str:
        """Let the version on trial stay. Raises: SlotError when none is on trial."""
        name = self.slot_name(slot)
        async with self._changing[name]:
            async with self._database.read() as tx:
                current = await slots.get(tx, name)
            if current.state == SlotState.SETTLED:
                raise SlotError(f"Slot {name} has no version on trial; what runs there is settled.")
            await self._settle(current, by, reason)
        return name

    async def rollback(self, slot: str | None, by: str, reason: str) -> Operation:
        """Go back to the previous version, at once. Raises: NothingToRollBackToError."""
        name = self.slot_name(slot)
        async with self._database.read() as tx:
            current = await slots.get(tx, name)
            previous = await bundles.get(tx, current.previous) if current.previous else None
        if current.state == SlotState.SWAPPING:
            return await self._cancel(current, by, reason)
        if previous is None:
            raise NothingToRollBackToError(f"Slot {name} has no previous version. What runs there goes on.")
        operation = await self._operations.begin("rollback", previous.ref, by)

        async def work() -> dict[str, Any]:
            async with self._changing[name]:
                async with self._database.read() as tx:
                    now = await slots.get(tx, name)
                swapped = await self._go_back(now, SlotEvent.ROLLBACK_ASKED, by, reason or "asked for", operation.id)
            return {"bundle": previous.ref, "interval_ms": swapped.interval_ms if swapped else None}

        self._operations.spawn(operation.id, work)
        return operation

    async def _cancel(self, slot: StoredSlot, by: str, reason: str) -> Operation:
        """Take back a wish that has not been carried out yet."""
        operation = await self._operations.begin("rollback", slot.name, by)
        fault = SwapRefusedError("The activation was taken back before the exchange.")
        async with self._database.write() as tx:
            current = await slots.get(tx, slot.name)
            await slots.move(tx, current, SlotEvent.ROLLBACK_ASKED, wanted_id=current.active, reason=reason)
            await self._note(tx, current, "rollback", by, reason, None)
        self._supervisor.process(slot.name).say(Cancel(op=slot.operation))
        await self._operations.fail(slot.operation, fault)
        await self._operations.succeed(operation.id, None)
        self._tell(slot.name)
        return self._operations.get(operation.id)

    async def hold(self, slot: str | None, held: bool, by: str) -> str:
        """Hold swaps while the line must not change, or let them go on."""
        name = self.slot_name(slot)
        async with self._database.write() as tx:
            before = await slots.hold(tx, name, held)
            await self._note(tx, before, "hold" if held else "resume", by, "", None)
        self._supervisor.hold(name, held)
        self._tell(name)
        return name

    # --- the loop of each slot ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make every slot what it should be, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._wake:
                tasks.create_task(self._keep(name), name=f"activator {name}")

    async def _keep(self, name: str) -> None:
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._wake[name].wait()
            except TimeoutError:
                pass
            self._wake[name].clear()
            async with self._changing[name]:
                async with self._database.read() as tx:
                    slot = await slots.get(tx, name)
                if slot.state == SlotState.SWAPPING and self._supervisor.process(name).connected.is_set():
                    await self._swap(slot)
                elif slot.state == SlotState.PROBATION:
                    await self._watch(slot)

    async def _swap(self, slot: StoredSlot) -> None:
        process = self._supervisor.process(slot.name)
        wanted = await self._plans.bundle_ref(slot.wanted)
        self._operations.progress(slot.operation, "prepare", 0, 0, "")
        process.say(Hold(held=slot.held))
        timeout_s = self._plans.slot_config(slot.name).swap_deadline_s * 4 + 10
        try:
            swapped = await process.exchange(Swap(op=slot.operation, bundle=wanted), timeout_s)
        except LenskeepError as error:
            await self._swap_failed(slot, error)
            return
        await self._swapped(slot, wanted, swapped)

    async def _swap_failed(self, slot: StoredSlot, error: LenskeepError) -> None:
        async with self._database.write() as tx:
            current = await slots.get(tx, slot.name)
            if current.state != SlotState.SWAPPING or current.operation != slot.operation:
                return  # a crash or a newer wish was faster
            await slots.move(
                tx, current, SlotEvent.SWAP_REFUSED, wanted_id=current.active, reason=f"{error.code} {error}",
                since_ms=self._clock.now_ms(),
            )  # fmt: skip
            await self._note(tx, current, "swap refused", "device", f"{error.code} {error}", None)
        await self._operations.fail(slot.operation, error)
        self._fault(slot.name, error)

    async def _swapped(self, slot: StoredSlot, wanted: BundleRef, swapped: Swapped) -> None:
        self._metrics.set_budget(wanted.ref, _budget_ms(wanted))
        self._metrics.begin_tenure(slot.name, wanted.ref)
        now_ms = self._clock.now_ms()
        async with self._database.write() as tx:
            current = await slots.get(tx, slot.name)
            previous = current.active if current.active != slot.wanted else current.previous
            await slots.end_deployment(tx, slot.name, at_ms=now_ms, outcome="replaced")
            await slots.begin_deployment(tx, slot.name, slot.wanted, at_ms=now_ms, by=slot.asked_by, reason=slot.reason)
            await slots.move(
                tx, current, SlotEvent.SWAPPED, active_id=slot.wanted, previous_id=previous, since_ms=now_ms
            )
            await self._note(
                tx, current, "swapped", "device", f"interval {swapped.interval_ms:.1f} ms", None, wanted.ref
            )
        self._begin_probation(slot)
        result = {"bundle": wanted.ref, "interval_ms": swapped.interval_ms, "prepare_ms": swapped.prepare_ms}
        await self._operations.succeed(slot.operation, result)
        self._tell(slot.name)

    def _begin_probation(self, slot: StoredSlot) -> None:
        self._ends_at[slot.name] = self._clock.monotonic_s() + (slot.trial_s or self._limits.seconds)

    def probation_left_s(self, slot: str) -> float | None:
        """Return how long the version in probation is still watched."""
        ends_at = self._ends_at.get(slot)
        return None if ends_at is None else max(0.0, ends_at - self._clock.monotonic_s())

    async def _watch(self, slot: StoredSlot) -> None:
        active = await self._plans.bundle_ref(slot.active)
        before = (await self._plans.bundle_ref(slot.previous)).ref if slot.previous else ""
        new, old = self._metrics.tenure(slot.name, active.ref), self._metrics.tenure(slot.name, before)
        fault: SlotError | None = gates.judge(
            new, old, budget_ms=_budget_ms(active), limits=self._limits, accepted=slot.accept_risks
        )
        over = self.probation_left_s(slot.name) == 0.0
        if fault is None and over and slot.trial_s is not None:
            fault = NotConfirmedError(f"{active.ref} was not confirmed within {slot.trial_s:.0f} s.")
        if fault is not None:
            await self._take_back(slot, fault)
        elif over and new.frames >= 1:
            await self._settle(slot, "device", f"probation passed with {new.frames} frames")

    async def _take_back(self, slot: StoredSlot, fault: SlotError) -> None:
        self._fault(slot.name, fault)
        if not slot.previous:
            # nothing to go back to: it stays, visibly at fault, rather than leaving the line with nothing
            await self._settle(slot, "device", f"{fault.code} {fault} There is no previous version.")
            return
        await self._go_back(slot, SlotEvent.GATE_BROKEN, "device", f"{fault.code} {fault}", f"gate-{slot.operation}")

    async def _settle(self, slot: StoredSlot, by: str, reason: str) -> None:
        active = await self._plans.bundle_ref(slot.active)
        async with self._database.write() as tx:
            current = await slots.get(tx, slot.name)
            await slots.move(tx, current, SlotEvent.CONFIRMED, reason=current.reason)
            await slots.settle_deployment(tx, slot.name)
            await self._note(tx, current, "confirm", by, reason, None, active.ref)
        self._ends_at.pop(slot.name, None)
        await self._plans.write_pointer(slot.name, active)
        self._tell(slot.name)

    # --- back -----------------------------------------------------------------------------------------------------

    async def _go_back(
        self, slot: StoredSlot, event: SlotEvent, by: str, reason: str, operation_id: str
    ) -> Swapped | None:
        """Exchange to the previous version: the warm one between two frames, else by loading it again."""
        previous = await self._plans.bundle_ref(slot.previous)
        process = self._supervisor.process(slot.name)
        beat = process.beat
        message: Swap | Back = Swap(op=operation_id, bundle=previous)
        if beat is not None and beat.previous_digest == previous.model_sha256 and beat.previous == previous.ref:
            message = Back(op=operation_id)
        swapped = await process.exchange(message, self._plans.slot_config(slot.name).swap_deadline_s * 4 + 10)
        await self._record_back(slot, event, by, reason)
        return swapped

    async def _record_back(self, slot: StoredSlot, event: SlotEvent, by: str, reason: str) -> None:
        now_ms = self._clock.now_ms()
        async with self._database.write() as tx:
            current = await slots.get(tx, slot.name)
            target = slot.previous
            leaving = await bundles.get(tx, slot.active)
            await slots.end_deployment(tx, slot.name, at_ms=now_ms, outcome="rolled_back")
            await slots.begin_deployment(tx, slot.name, target, at_ms=now_ms, by=by, reason=reason)
            await slots.settle_deployment(tx, slot.name)
            # going back twice must not bring the bad version again: the next step back is an older good one
            earlier = await slots.earlier_good(tx, slot.name, {target, slot.active})
            await slots.move(
                tx,
                current,
                event,
                wanted_id=target,
                active_id=target,
                previous_id=earlier,
                since_ms=now_ms,
                reason=reason,
            )
            await self._note(tx, current, "rollback", by, reason, None, leaving.ref)
        self._ends_at.pop(slot.name, None)
        back = await self._plans.bundle_ref(target)
        self._metrics.begin_tenure(slot.name, back.ref)
        await self._plans.write_pointer(slot.name, back)
        self._tell(slot.name)

    # --- what the supervisor asks ---------------------------------------------------------------------------------

    async def on_start(self, slot_name: str, beat: Beat | None) -> BundleRef | None:
        """Say what a slot starts with; an adopted process already runs something, and that is believed."""
        async with self._changing[slot_name]:
            async with self._database.read() as tx:
                slot = await slots.get(tx, slot_name)
            if slot.held and beat is not None:
                self._supervisor.hold(slot_name, True)
            if beat is not None and beat.digest:
                await self._believe(slot, beat)
            elif slot.state == SlotState.PROBATION and slot.previous:
                # power was cut or the process died before the version proved itself
                fault = CrashedInProbationError(
                    "The device or its process stopped before the version had proved itself."
                )
                self._fault(slot_name, fault)
                await self._record_back(slot, SlotEvent.RUNNER_CRASHED, "device", f"{fault.code} {fault}")
            return await self._current(slot_name)

    async def _believe(self, slot: StoredSlot, beat: Beat) -> None:
        """Bring the record in line with what an adopted process really runs."""
        for bundle_id in (slot.active, slot.wanted, slot.previous):
            if bundle_id and (await self._plans.bundle_ref(bundle_id)).ref == beat.active:
                break
        else:
            return
        if bundle_id == slot.active and slot.state == SlotState.PROBATION:
            self._begin_probation(slot)
        elif bundle_id == slot.wanted and slot.state == SlotState.SWAPPING:
            wanted = await self._plans.bundle_ref(bundle_id)
            await self._swapped(
                slot, wanted, Swapped(op=slot.operation, bundle=wanted.ref, digest=wanted.model_sha256, prepare_ms=0.0,
                                      interval_ms=0.0, sequence=0),
            )  # fmt: skip
        elif bundle_id == slot.previous and slot.state in (SlotState.PROBATION, SlotState.SETTLED):
            await self._record_back(slot, SlotEvent.ROLLBACK_ASKED, "device", "the process had gone back by itself")

    async def _current(self, slot_name: str) -> BundleRef | None:
        async with self._database.read() as tx:
            slot = await slots.get(tx, slot_name)
        if slot.active:
            active = await self._plans.bundle_ref(slot.active)
            self._metrics.set_budget(active.ref, _budget_ms(active))
            return active
        # a registry that was lost knows nothing, the pointer file still does
        return self._plans.read_pointer(slot_name) if slot.state == SlotState.EMPTY else None

    async def on_crash(self, slot_name: str, how: str, recent: int) -> BundleRef | None:
        """Record a crash and say what to run next."""
        async with self._changing[slot_name]:
            async with self._database.read() as tx:
                slot = await slots.get(tx, slot_name)
            crashes_max = self._plans.slot_config(slot_name).crashes_max
            reason = f"The process {how}."
            if slot.state == SlotState.PROBATION and slot.previous:
                fault: SlotError = CrashedInProbationError(reason)
                self._fault(slot_name, fault)
                await self._record_back(slot, SlotEvent.RUNNER_CRASHED, "device", f"{fault.code} {fault}")
            elif slot.state == SlotState.SWAPPING:
                await self._crashed_in_swap(slot, reason)
            elif recent >= crashes_max and slot.previous and slot.state in (SlotState.SETTLED, SlotState.ROLLED_BACK):
                fault = CrashLoopError(f"{reason} It was the {recent}. time within a minute.")
                self._fault(slot_name, fault)
                await self._record_back(slot, SlotEvent.CRASH_LOOP, "device", f"{fault.code} {fault}")
            return await self._current(slot_name)

    async def _crashed_in_swap(self, slot: StoredSlot, reason: str) -> None:
        """One crash while a new version was being loaded may be chance; a second one is the version."""
        count = self._crashes_in_swap.get(slot.operation, 0) + 1
        self._crashes_in_swap = {slot.operation: count}
        if count >= 2:
            fault = CrashedInProbationError(f"{reason} It happened {count} times while the new version was loaded.")
            async with self._database.write() as tx:
                current = await slots.get(tx, slot.name)
                await slots.move(
                    tx,
                    current,
                    SlotEvent.CRASH_LOOP,
                    wanted_id=current.active,
                    reason=f"{fault.code} {fault}",
                )
                await self._note(tx, current, "swap refused", "device", f"{fault.code} {fault}", None)
            self._fault(slot.name, fault)
            await self._operations.fail(slot.operation, fault)

    async def on_reflex(self, slot_name: str, swapped: Swapped) -> None:
        """Record that the process went back by itself because the new version failed on live frames."""
        async with self._changing[slot_name]:
            async with self._database.read() as tx:
                slot = await slots.get(tx, slot_name)
            fault = fault_book().get(swapped.reflex, SlotError)("It failed on live frames right after the exchange.")
            self._fault(slot_name, fault)
            if slot.previous:
                event = SlotEvent.GATE_BROKEN if slot.state == SlotState.PROBATION else SlotEvent.ROLLBACK_ASKED
                await self._record_back(slot, event, "device", f"{fault.code} {fault}")

    # --- small things ---------------------------------------------------------------------------------------------

    async def _note(
        self,
        tx: Transaction,
        slot: StoredSlot,
        action: str,
        by: str,
        reason: str,
        wanted: StoredBundle | None,
        detail: str = "",
    ) -> None:
        before = await bundles.get(tx, slot.active) if slot.active else None
        after = wanted.ref if wanted else detail
        if not after:
            now = await slots.get(tx, slot.name)
            after = (await bundles.get(tx, now.active)).ref if now.active else ""
        await audit.add(
            tx, self._clock, by=by, action=action, subject=f"slot {slot.name}", reason=reason,
            before=f"{slot.state} {before.ref if before else ''}".strip(), after=after,
        )  # fmt: skip

    def _fault(self, slot: str, fault: LenskeepError) -> None:
        log.error("%s slot %s: %s", fault.code, slot, fault)
        self._events.publish("fault", {"slot": slot, "code": fault.code, "message": str(fault), "hint": fault.hint})

    def _tell(self, slot: str) -> None:
        self._events.publish("slot", {"slot": slot})
        self._supervisor.changed.set()


def _budget_ms(ref: BundleRef) -> float:
    return manifests.parse(ref.manifest_json).budget.latency_p99_ms
