"""What to run after a start, a crash, or a step back that a process took by itself: the decisions nobody asks for."""

from __future__ import annotations

import msgspec

from lenskeep.daemon.operations import Operations
from lenskeep.daemon.recheck import Recheck
from lenskeep.daemon.slotbook import DEVICE, SlotBook
from lenskeep.errors import (
    BlobDamagedError,
    CrashedInProbationError,
    CrashLoopError,
    LenskeepError,
    SlotError,
    fault_book,
)
from lenskeep.lifecycle import SlotEvent, SlotState
from lenskeep.messages.runner import Beat, BundleRef, SwapFailed, Swapped
from lenskeep.registry.slots import StoredSlot

FALLS_BACK = (SlotState.SETTLED, SlotState.ROLLED_BACK, SlotState.PROBATION)
CRASHES_IN_SWAP_MAX = 2  # one while a new version is loaded may be chance; a second one is the version
RESTING = (SlotState.SETTLED, SlotState.ROLLED_BACK)


class Recovery:
    """Answers the supervisor."""

    def __init__(self, book: SlotBook, operations: Operations, recheck: Recheck, *, after_orderly_stop: bool) -> None:
        self._recheck = recheck
        self._after_orderly_stop = after_orderly_stop
        self._book = book
        self._operations = operations
        self._crashes_in_swap: dict[str, int] = {}

    async def on_start(self, name: str, beat: Beat | None) -> BundleRef | None:
        """Say what a slot starts with; an adopted process already runs something, and that is believed."""
        async with self._book.changing[name]:
            slot = await self._book.get(name)
            if beat is not None and beat.digest:
                await self._believe(slot, beat)
            elif slot.state == SlotState.PROBATION and not self._after_orderly_stop and await self._book.way_back(slot):
                fault = CrashedInProbationError(
                    "The device or its process stopped before the version had proved itself."
                )
                await self._back(slot, SlotEvent.RUNNER_CRASHED, fault)
            elif slot.state == SlotState.PROBATION:
                self._book.begin_probation(slot)
            return await self._current(name)

    async def on_crash(self, name: str, how: str, recent: int) -> BundleRef | None:
        """Write down a crash, the `recent`-th within a minute, and say what to run next."""
        async with self._book.changing[name]:
            slot = await self._book.get(name)
            reason = f"The process {how}."
            crashes_max = self._book.plans.slot_config(name).crashes_max
            if slot.state == SlotState.PROBATION and await self._book.way_back(slot):
                await self._back(slot, SlotEvent.RUNNER_CRASHED, CrashedInProbationError(reason))
            elif slot.state == SlotState.SWAPPING:
                await self._crashed_in_swap(slot, reason)
            elif recent >= crashes_max and slot.state in RESTING and await self._book.way_back(slot):
                fault = CrashLoopError(f"{reason} It was the {recent}. time within a minute.")
                await self._back(slot, SlotEvent.CRASH_LOOP, fault)
            return await self._current(name)

    async def on_reflex(self, name: str, swapped: Swapped) -> None:
        """Write down that a process went back by itself because the new version failed on live frames."""
        async with self._book.changing[name]:
            slot = await self._book.get(name)
            fault = fault_book().get(swapped.reflex, SlotError)("It failed on its first live frames.")
            known = bool(slot.active) and (await self._book.plans.bundle_ref(slot.active)).ref == swapped.bundle
            if slot.previous and not known:
                event = SlotEvent.GATE_BROKEN if slot.state == SlotState.PROBATION else SlotEvent.ROLLBACK_ASKED
                await self._back(slot, event, fault)

    async def on_unloadable(self, name: str, failed: SwapFailed) -> BundleRef | None:
        """Write down that a process came up and could not load its version; the line goes on with one that is whole."""
        async with self._book.changing[name]:
            slot = await self._book.get(name)
            fault = fault_book().get(failed.code, SlotError)(failed.message)
            if not slot.active or slot.state == SlotState.SWAPPING:
                self._book.fault(name, fault)  # nothing to go back to, or the wish that stands comes anyway
                return None
            # what exactly is damaged is found out beside; the line does not wait for that
            self._operations.aside(self._recheck.look_after(slot.active), f"look after slot {name}")
            try:
                instead = await self._recheck.way_back(name, slot.previous, never=slot.active)
            except LenskeepError as error:
                self._book.fault(name, fault)
                self._book.fault(name, error)
                return None
            await self._back(msgspec.structs.replace(slot, previous=instead), SlotEvent.CRASH_LOOP, fault)
            return await self._current(name)

    async def _back(self, slot: StoredSlot, event: SlotEvent, fault: LenskeepError) -> None:
        self._book.fault(slot.name, fault)
        await self._book.went_back(slot, event, DEVICE, f"{fault.code} {fault}")

    async def _crashed_in_swap(self, slot: StoredSlot, reason: str) -> None:
        count = self._crashes_in_swap.get(slot.operation, 0) + 1
        self._crashes_in_swap = {slot.operation: count}
        if count < CRASHES_IN_SWAP_MAX:
            return  # the wish stands; it is asked again when the process is back
        fault = CrashedInProbationError(f"{reason} It happened {count} times while the new version was loaded.")
        if await self._book.unwish(slot, SlotEvent.CRASH_LOOP, DEVICE, f"{fault.code} {fault}"):
            self._book.fault(slot.name, fault)
            await self._operations.fail(slot.operation, fault)

    async def _believe(self, slot: StoredSlot, beat: Beat) -> None:
        """Bring the record in line with what an adopted process really runs."""
        refs = self._book.plans.bundle_ref
        if slot.active and (await refs(slot.active)).ref == beat.active:
            if slot.state == SlotState.PROBATION:
                self._book.begin_probation(slot)
        elif slot.state == SlotState.SWAPPING and (wanted := await refs(slot.wanted)).ref == beat.active:
            swapped = Swapped(
                op=slot.operation, bundle=wanted.ref, digest=beat.digest, prepare_ms=0.0, interval_ms=0.0, sequence=0
            )
            await self._book.swapped(slot, wanted, swapped)
        elif slot.previous and slot.state != SlotState.SWAPPING and (await refs(slot.previous)).ref == beat.active:
            reason = "the process had gone back while the service was away"
            await self._book.went_back(slot, SlotEvent.ROLLBACK_ASKED, DEVICE, reason)

    async def _current(self, name: str) -> BundleRef | None:
        slot = await self._book.get(name)
        if slot.active and slot.state in FALLS_BACK:
            instead = await self._recheck.start_instead(name, slot.active, slot.previous)
            if instead:
                fault = BlobDamagedError("The stored model was found damaged; the version before runs instead.")
                await self._back(msgspec.structs.replace(slot, previous=instead), SlotEvent.CRASH_LOOP, fault)
                slot = await self._book.get(name)
        if slot.active:
            active = await self._book.plans.bundle_ref(slot.active)
            self._book.expect(active)
            return active
        # a registry that was lost knows nothing, the pointer file still does
        pointed = self._book.plans.read_pointer(name) if slot.state == SlotState.EMPTY else None
        if pointed is not None:
            self._book.expect(pointed)
        return pointed
