"""Decides what each slot runs: takes wishes, makes them so, watches the newcomer, and takes it back when it must.

Intent, then loop. A request writes the wanted version in one transaction and wakes the slot's loop; the loop asks the
runner, writes down what it did, and carries the new version through probation. A power cut between any two of these
steps is found at the next start, from the slot's state alone.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import msgspec

from lenskeep.config import Probation
from lenskeep.daemon import gates
from lenskeep.daemon.metrics import Metrics
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.policy import Pending, Policy
from lenskeep.daemon.qualifier import Qualifier, fault_of
from lenskeep.daemon.recheck import Recheck
from lenskeep.daemon.slotbook import DEVICE, SlotBook, budget_ms
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.database import Database
from lenskeep.errors import (
    ApprovalVoidError,
    BundleError,
    ConflictError,
    IncompatibleError,
    KeyRevokedError,
    LenskeepError,
    ListingMismatchError,
    NotConfirmedError,
    NothingToRollBackToError,
    NotListedError,
    QualificationError,
    RequestError,
    SlotError,
    SwapRefusedError,
)
from lenskeep.lifecycle import BundleState, SlotEvent, SlotState
from lenskeep.messages.control import ActivationRequest, Operation
from lenskeep.messages.runner import Back, Cancel, Hold, Swap, Swapped
from lenskeep.policy import ApprovalEvent, ApprovalState
from lenskeep.registry import access, bundles
from lenskeep.registry.approvals import StoredApproval
from lenskeep.registry.bundles import StoredBundle
from lenskeep.registry.slots import StoredSlot

log = logging.getLogger(__name__)

LOOK_S = 0.5  # while a version is being exchanged or watched
REST_S = 5.0  # otherwise; a wish wakes the loop
SWAP_MARGIN_S = 10.0


class Activator:
    """What people and time ask of slots."""

    def __init__(
        self, database: Database, book: SlotBook, qualifier: Qualifier, supervisor: Supervisor, metrics: Metrics,
        operations: Operations, probation: Probation, trust: TrustKeeper, policy: Policy,
        recheck: Recheck,
    ) -> None:  # fmt: skip
        self._recheck = recheck
        self._policy = policy
        self._trust = trust
        self._database = database
        self._book = book
        self._qualifier = qualifier
        self._supervisor = supervisor
        self._metrics = metrics
        self._operations = operations
        self._limits = probation
        self._wake = {name: asyncio.Event() for name in book.changing}

    # --- what people ask ------------------------------------------------------------------------------------------

    def slot_name(self, slot: str | None) -> str:
        """Return the slot meant; with only one it need not be named. Raises: RequestError, UnknownNameError."""
        if slot is not None:
            return self._book.plans.slot_config(slot).name
        if len(self._wake) == 1:
            return next(iter(self._wake))
        raise RequestError(f"There are several slots ({', '.join(self._wake)}); name one with --slot.")

    async def activate(self, request: ActivationRequest, by: str) -> Operation:
        """Make a slot want a version. Raises: what stands against it; nothing is changed then."""
        name = self.slot_name(request.slot)
        bundle = await self._qualifier.find(request.bundle)
        await self._require_fit(bundle)
        await self._require_free(name, bundle)
        admission = await self._policy.admit(name, bundle, by, request)
        if isinstance(admission, Pending):
            return admission.operation
        operation = await self._operations.begin("activate", bundle.ref, by)
        try:
            await self._book.wish(name, bundle, request, by, operation.id)
        except LenskeepError as error:
            await self._operations.fail(operation.id, error)
            raise
        self._wake[name].set()
        return operation

    async def _require_free(self, name: str, bundle: StoredBundle) -> None:
        """Refuse a wish that the slot cannot take now. Raises: ConflictError."""
        slot = await self._book.get(name)
        if slot.active == bundle.id and slot.state != SlotState.SWAPPING:
            raise ConflictError(f"{bundle.ref} is already active in slot {name}.")
        if slot.state in (SlotState.PROBATION, SlotState.SWAPPING):
            busy = "is being exchanged" if slot.state == SlotState.SWAPPING else "has not proved its new version yet"
            raise ConflictError(
                f"Slot {name} {busy}. Nothing was changed.",
                hint="Keep the new version with `lenskeep confirm`, or take it back with `lenskeep rollback`.",
            )

    async def _require_fit(self, bundle: StoredBundle) -> None:
        await self._trust.require_listed(bundle)
        async with self._database.read() as tx:
            trial = await bundles.newest_trial(tx, bundle.id)
            key = None if self._trust.follows else await access.key(tx, bundle.key_id)
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
        async with self._book.changing[name]:
            current = await self._book.get(name)
            if current.state == SlotState.SETTLED:
                raise SlotError(f"Slot {name} has no version on trial; what runs there is settled.")
            await self._book.settle(current, by, reason)
        return name

    async def rollback(self, slot: str | None, by: str, reason: str) -> Operation:
        """Go back to the previous version, at once. Raises: NothingToRollBackToError."""
        name = self.slot_name(slot)
        current = await self._book.get(name)
        if current.state == SlotState.SWAPPING:
            return await self._cancel(current, by, reason)
        await self._require_way_back(name, current.previous)
        previous = await self._book.plans.bundle_ref(current.previous)
        operation = await self._operations.begin("rollback", previous.ref, by)

        async def work() -> dict[str, Any]:
            async with self._book.changing[name]:
                now = await self._book.get(name)
                if now.previous != current.previous:  # another step back came first: the next one has its own answer
                    await self._require_way_back(name, now.previous)
                swapped = await self._go_back(now, SlotEvent.ROLLBACK_ASKED, by, reason, operation.id)
            return {"bundle": swapped.bundle, "interval_ms": swapped.interval_ms}

        self._operations.spawn(operation.id, work)
        return operation

    async def _require_way_back(self, slot: str, bundle_id: str) -> None:
        """Refuse to go back to what was withdrawn, or is not on a locked slot's list. Raises: TrustError, SlotError."""
        if not bundle_id:
            raise NothingToRollBackToError(f"Slot {slot} has no previous version. What runs there goes on.")
        async with self._database.read() as tx:
            bundle = await bundles.get(tx, bundle_id)
        await self._trust.require_listed(bundle, going_back=True)
        self._policy.require_listed(slot, bundle, "gone back to")

    async def _cancel(self, slot: StoredSlot, by: str, reason: str) -> Operation:
        """Take back a wish that has not been carried out yet."""
        operation = await self._operations.begin("rollback", slot.name, by)
        if await self._book.unwish(slot, SlotEvent.ROLLBACK_ASKED, by, reason):
            self._supervisor.process(slot.name).say(Cancel(op=slot.operation))
            fault = SwapRefusedError("The activation was taken back before the exchange. What runs goes on.")
            await self._operations.fail(slot.operation, fault)
        await self._operations.succeed(operation.id, None)
        return self._operations.get(operation.id)

    async def hold(self, slot: str | None, held: bool, by: str) -> str:
        """Hold swaps while the line must not change, or let them go on."""
        name = self.slot_name(slot)
        await self._book.hold(name, held, by)
        self._supervisor.hold(name, held)
        return name

    # --- the loop of each slot ------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Make every slot what it should be, until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._wake:
                tasks.create_task(self._keep(name), name=f"activator {name}")
            tasks.create_task(self._keep_requests(), name="activator requests")

    async def _keep_requests(self) -> None:
        """Look after what waits for approval: what may not run any more ends, what is granted is carried out."""
        while True:
            for asked in await self._policy.open_ones():
                await self._look_at(asked)
            try:
                async with asyncio.timeout(REST_S):
                    await self._policy.granted.wait()
            except TimeoutError:
                pass
            self._policy.granted.clear()

    async def _look_at(self, asked: StoredApproval) -> None:
        async with self._database.read() as tx:
            bundle = await bundles.get(tx, asked.bundle_id)
        try:
            await self._require_fit(bundle)
            if asked.state == ApprovalState.GRANTED:
                await self._require_free(asked.slot, bundle)
                await self._carry_out(asked, bundle)
        except (BundleError, QualificationError, NotListedError, ListingMismatchError) as error:
            fault = ApprovalVoidError(f"{bundle.ref} may not run here any more: {error.code} {error}")
            await self._policy.end(asked, ApprovalEvent.VOIDED, fault, DEVICE)
        except LenskeepError as error:  # the slot is busy, or the repository out of date: looked at again
            log.info("request %s waits on: %s %s", asked.id, error.code, error)

    async def _carry_out(self, asked: StoredApproval, bundle: StoredBundle) -> None:
        """Write the wish that was granted; the same transaction uses the request up."""
        await self._operations.go_on(asked.operation)
        request = msgspec.json.decode(asked.request, type=ActivationRequest)
        await self._book.wish(asked.slot, bundle, request, asked.asked_by, asked.operation, approval=asked.id)
        self._wake[asked.slot].set()

    async def _keep(self, name: str) -> None:
        pause_s = LOOK_S
        while True:
            try:
                async with asyncio.timeout(pause_s):
                    await self._wake[name].wait()
            except TimeoutError:
                pass
            self._wake[name].clear()
            async with self._book.changing[name]:
                slot = await self._book.get(name)
                pause_s = LOOK_S if slot.state in (SlotState.SWAPPING, SlotState.PROBATION) else REST_S
                if slot.state == SlotState.SWAPPING and self._supervisor.process(name).connected.is_set():
                    await self._swap(slot)
                elif slot.state == SlotState.PROBATION:
                    await self._watch(slot)

    async def _swap(self, slot: StoredSlot) -> None:
        process = self._supervisor.process(slot.name)
        wanted = await self._book.plans.bundle_ref(slot.wanted)
        process.say(Hold(held=slot.held))
        try:
            self._operations.progress(slot.operation, "verify", 0, 0, "")
            await self._recheck.require_signed(slot.wanted)
            if (await self._book.get(slot.name)).operation != slot.operation:
                return  # taken back meanwhile
            self._operations.progress(slot.operation, "prepare", 0, 0, "")
            swapped = await process.exchange(Swap(op=slot.operation, bundle=wanted), self._exchange_max_s(slot))
        except LenskeepError as error:
            if process.connected.is_set() and await self._book.unwish(
                slot, SlotEvent.SWAP_REFUSED, DEVICE, f"{error.code} {error}"
            ):
                await self._operations.fail(slot.operation, error)
                self._book.fault(slot.name, error)
            return  # a process that died is the recovery's matter; the wish stands until it has spoken
        await self._book.swapped(slot, wanted, swapped)

    def _exchange_max_s(self, slot: StoredSlot) -> float:
        """The runner gives up at three times its deadline; what is longer than that is no answer."""
        return self._book.plans.slot_config(slot.name).swap_deadline_s * 4 + SWAP_MARGIN_S

    async def _watch(self, slot: StoredSlot) -> None:
        active = await self._book.plans.bundle_ref(slot.active)
        before = (await self._book.plans.bundle_ref(slot.previous)).ref if slot.previous else ""
        new, old = self._metrics.tenure(slot.name, active.ref), self._metrics.tenure(slot.name, before)
        fault: SlotError | None = gates.judge(
            new, old, budget_ms=budget_ms(active), limits=self._limits, accepted=slot.accept_risks
        )
        over = self._book.probation_left_s(slot.name) == 0.0
        if fault is None and over and slot.trial_s is not None:
            fault = NotConfirmedError(f"{active.ref} was not confirmed within {slot.trial_s:.0f} s.")
        if fault is not None:
            await self._take_back(slot, fault)
        elif over and new.frames:
            await self._book.settle(slot, DEVICE, f"probation passed with {new.frames} frames")

    async def _take_back(self, slot: StoredSlot, fault: SlotError) -> None:
        self._book.fault(slot.name, fault)
        reason = f"{fault.code} {fault}"
        if not await self._book.way_back(slot):
            # nothing to go back to: it stays, visibly at fault, rather than leaving the line with nothing
            await self._book.settle(slot, DEVICE, f"{reason} There is no previous version.")
            return
        try:
            await self._go_back(slot, SlotEvent.GATE_BROKEN, DEVICE, reason, f"gate-{slot.operation}")
        except LenskeepError as error:  # tried again at the next look; the slot is still in probation
            self._book.fault(slot.name, error)

    async def _go_back(self, slot: StoredSlot, event: SlotEvent, by: str, reason: str, operation: str) -> Swapped:
        """Exchange to the previous version: the warm one between two frames, else by loading it again."""
        if not slot.previous:
            raise NothingToRollBackToError(f"Slot {slot.name} has no previous version. What runs there goes on.")
        previous = await self._book.plans.bundle_ref(slot.previous)
        process = self._supervisor.process(slot.name)
        beat = process.beat
        message: Back | Swap = Back(op=operation)
        # a warm version runs from bytes that were hashed when they were loaded; no disk is waited for
        warm = beat is not None and (beat.previous, beat.previous_digest) == (previous.ref, previous.model_sha256)
        if not warm:
            whole = await self._recheck.way_back(slot.name, slot.previous, never=slot.active)
            slot = msgspec.structs.replace(slot, previous=whole)
            message = Swap(op=operation, bundle=await self._book.plans.bundle_ref(whole))
        swapped = await process.exchange(message, self._exchange_max_s(slot))
        await self._book.went_back(slot, event, by, reason)
        if warm:
            self._operations.aside(self._recheck.look_after(slot.previous), f"look after {previous.ref}")
        return swapped
