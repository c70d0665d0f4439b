"""Writes down what happens to slots: state, deployment, record and pointer file, always together.

Whoever changes a slot holds `changing[slot]` while doing so. What is written here has already happened in the runner,
or is about to be asked of it; deciding is the activator's and the recovery's.
"""

from __future__ import annotations

import asyncio
import logging

from lenskeep.bundle import manifest as manifests
from lenskeep.clock import Clock
from lenskeep.config import Probation
from lenskeep.daemon.events import Events
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.plans import Plans
from lenskeep.database import Database, Transaction
from lenskeep.errors import LenskeepError
from lenskeep.lifecycle import SlotEvent, SlotState
from lenskeep.messages.control import ActivationRequest
from lenskeep.messages.runner import BundleRef, Swapped
from lenskeep.policy import ApprovalEvent, listed
from lenskeep.registry import approvals, audit, bundles, slots
from lenskeep.registry.bundles import StoredBundle
from lenskeep.registry.slots import StoredSlot

log = logging.getLogger(__name__)

DEVICE = "device"  # who did it, when no person did


class SlotBook:
    """The record of every slot."""

    def __init__(
        self, database: Database, plans: Plans, metrics: Metrics, operations: Operations, events: Events, clock: Clock,
        probation: Probation, names: list[str],
    ) -> None:  # fmt: skip
        self.plans = plans
        self.changing = {name: asyncio.Lock() for name in names}
        self._database = database
        self._metrics = metrics
        self._operations = operations
        self._events = events
        self._clock = clock
        self._probation = probation
        self._ends_at: dict[str, float] = {}

    async def get(self, name: str) -> StoredSlot:
        """Return a slot as it is written now. Raises: UnknownNameError."""
        async with self._database.read() as tx:
            return await slots.get(tx, name)

    async def way_back(self, slot: StoredSlot) -> bool:
        """Say whether there is a version to go back to; a locked slot goes back to versions of its list only."""
        if not slot.previous:
            return False
        locked = self.plans.slot_config(slot.name).locked
        async with self._database.read() as tx:
            previous = await bundles.get(tx, slot.previous)
        return listed(locked, previous.name, previous.version, previous.digest)

    # --- on the way there -----------------------------------------------------------------------------------------

    async def wish(
        self, name: str, bundle: StoredBundle, request: ActivationRequest, by: str, operation: str, approval: str = ""
    ) -> None:
        """Write what a slot should run, and use up the approval that it needed.

        Raises: SlotError when it cannot be asked now, ApprovalOverError when the approval was used or ended before.
        """
        why = request.reason
        async with self._database.write() as tx:
            if approval:
                granted = await approvals.finish(tx, approval, ApprovalEvent.CARRIED_OUT, at_ms=self._clock.now_ms())
                people = ", ".join(f"{one.person} ({one.meaning})" for one in granted.signatures)
                why = f"{why} (request {approval}, approved by {people})".strip()
            slot = await slots.get(tx, name)
            await slots.move(
                tx, slot, SlotEvent.SWAP_ASKED, wanted_id=bundle.id, reason=request.reason, asked_by=by,
                trial_s=request.trial_s, accept_risks=" ".join(request.accept_risks), operation=operation,
            )  # fmt: skip
            await self._note(tx, slot, "activate", by, why, bundle.ref)
        self.tell(name)

    async def unwish(self, slot: StoredSlot, event: SlotEvent, by: str, reason: str) -> bool:
        """Write that a wish will not come true; say whether it was still standing."""
        async with self._database.write() as tx:
            current = await slots.get(tx, slot.name)
            if current.state != SlotState.SWAPPING or current.operation != slot.operation:
                return False  # a crash, a newer wish or a person was faster
            await slots.move(tx, current, event, wanted_id=current.active, reason=reason, since_ms=self._clock.now_ms())
            await self._note(tx, current, "not activated", by, reason, await self._active_ref(tx, current))
        self.tell(slot.name)
        return True

    async def swapped(self, slot: StoredSlot, wanted: BundleRef, swapped: Swapped) -> None:
        """Write that the wanted version runs, and begin its probation."""
        self.expect(wanted)
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
            interval = f"{swapped.interval_ms:.1f} ms between two results"
            await self._note(tx, current, "swapped", DEVICE, interval, _bytes_of(wanted))
        self.begin_probation(slot)
        result = {"bundle": wanted.ref, "interval_ms": swapped.interval_ms, "prepare_ms": swapped.prepare_ms}
        await self._operations.succeed(slot.operation, result)
        self.tell(slot.name)

    def begin_probation(self, slot: StoredSlot) -> None:
        """Begin to watch; a restart of the daemon begins again, because clocks may have lied in between."""
        self._ends_at[slot.name] = self._clock.monotonic_s() + (slot.trial_s or self._probation.seconds)

    def probation_left_s(self, name: str) -> float | None:
        """Return how long the version in probation is still watched."""
        ends_at = self._ends_at.get(name)
        return None if ends_at is None else max(0.0, ends_at - self._clock.monotonic_s())

    async def settle(self, slot: StoredSlot, by: str, reason: str) -> None:
        """Write that the active version stays, and remember it as the one to start from."""
        active = await self.plans.bundle_ref(slot.active)
        async with self._database.write() as tx:
            current = await slots.get(tx, slot.name)
            await slots.move(tx, current, SlotEvent.CONFIRMED, reason=current.reason)
            await slots.settle_deployment(tx, slot.name)
            await self._note(tx, current, "confirm", by, reason, active.ref)
        self._ends_at.pop(slot.name, None)
        await self.plans.write_pointer(slot.name, active)
        self.tell(slot.name)

    # --- and back -------------------------------------------------------------------------------------------------

    async def went_back(self, slot: StoredSlot, event: SlotEvent, by: str, reason: str) -> None:
        """Write that the previous version runs again."""
        now_ms, target = self._clock.now_ms(), slot.previous
        back = await self.plans.bundle_ref(target)
        async with self._database.write() as tx:
            current = await slots.get(tx, slot.name)
            await slots.end_deployment(tx, slot.name, at_ms=now_ms, outcome="rolled_back")
            await slots.begin_deployment(tx, slot.name, target, at_ms=now_ms, by=by, reason=reason)
            await slots.settle_deployment(tx, slot.name)
            # going back twice must not bring the bad version again: the next step back is an older good one
            earlier = await slots.earlier_good(tx, slot.name, {target, slot.active})
            await slots.move(
                tx, current, event, wanted_id=target, active_id=target, previous_id=earlier, since_ms=now_ms,
                reason=reason,
            )  # fmt: skip
            await self._note(tx, current, "rollback", by, reason, _bytes_of(back))
        self._ends_at.pop(slot.name, None)
        self.expect(back)
        self._metrics.begin_tenure(slot.name, back.ref)
        await self.plans.write_pointer(slot.name, back)
        self.tell(slot.name)

    async def drop_previous(self, name: str, withdrawn: set[str], by: str) -> None:
        """Write that a withdrawn version is not gone back to; an older good one takes its place, if there is one."""
        async with self._database.write() as tx:
            slot = await slots.get(tx, name)
            if slot.previous not in withdrawn:
                return
            dropped = (await bundles.get(tx, slot.previous)).ref
            earlier = await slots.earlier_good(tx, name, {*withdrawn, slot.active})
            await slots.set_previous(tx, name, earlier)
            after = (await bundles.get(tx, earlier)).ref if earlier else ""
            await audit.add(
                tx, self._clock, by=by, action="withdraw", subject=f"slot {name}", reason="not gone back to any more",
                before=dropped, after=after,
            )  # fmt: skip
        self.tell(name)

    async def stop(self, name: str, by: str, reason: str) -> None:
        """Write that nothing runs in a slot any more, not even after a start without the registry."""
        now_ms = self._clock.now_ms()
        await self.plans.remove_pointer(name)
        async with self._database.write() as tx:
            slot = await slots.get(tx, name)
            await slots.end_deployment(tx, name, at_ms=now_ms, outcome="stopped")
            await slots.move(
                tx, slot, SlotEvent.STOPPED, wanted_id="", active_id="", previous_id="", since_ms=now_ms, reason=reason
            )
            await self._note(tx, slot, "stop", by, reason, "")
        self._ends_at.pop(name, None)
        self.tell(name)

    # --- small things ---------------------------------------------------------------------------------------------

    async def hold(self, name: str, held: bool, by: str) -> None:
        """Write that swaps are held, or may go on."""
        async with self._database.write() as tx:
            was = (await slots.get(tx, name)).held
            await slots.hold(tx, name, held)
            await audit.add(
                tx, self._clock, by=by, action="hold" if held else "resume", subject=f"slot {name}",
                before="held" if was else "free", after="held" if held else "free",
            )  # fmt: skip
        self.tell(name)

    def expect(self, ref: BundleRef) -> None:
        """Say from which duration a frame of this version is late."""
        self._metrics.set_budget(ref.ref, budget_ms(ref))

    def fault(self, name: str, fault: LenskeepError) -> None:
        """Say a fault of a slot where people and machines look."""
        log.error("%s slot %s: %s", fault.code, name, fault)
        self._events.publish("fault", {"slot": name, "code": fault.code, "message": str(fault), "hint": fault.hint})

    def tell(self, name: str) -> None:
        """Say that a slot has changed."""
        self._events.publish("slot", {"slot": name})

    async def _note(self, tx: Transaction, before: StoredSlot, action: str, by: str, reason: str, after: str) -> None:
        was = f"{before.state} {await self._active_ref(tx, before)}".strip()
        await audit.add(
            tx, self._clock, by=by, action=action, subject=f"slot {before.name}", reason=reason, before=was, after=after
        )

    async def _active_ref(self, tx: Transaction, slot: StoredSlot) -> str:
        return (await bundles.get(tx, slot.active)).ref if slot.active else ""


def _bytes_of(ref: BundleRef) -> str:
    """Name a version with the digests of what was signed and of the bytes that run."""
    return f"{ref.ref} bundle {ref.digest} model {ref.model_sha256}"


def budget_ms(ref: BundleRef) -> float:
    """Return what a frame may take with this version."""
    return manifests.parse(ref.manifest_json).budget.latency_p99_ms
