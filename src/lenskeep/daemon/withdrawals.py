"""What becomes of a slot when the repository stops listing what runs there, or what it would go back to.

Rules. A withdrawn version is never activated and never gone back to. One that runs goes on with an alarm, gives way to
the version before, or stops, as the configuration says: only a person can know which of these is worse on a line.
"""

from __future__ import annotations

import logging

from lenskeep.config import Trust
from lenskeep.daemon.activator import Activator
from lenskeep.daemon.slotbook import SlotBook
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.database import Database
from lenskeep.errors import LenskeepError, NotListedError
from lenskeep.lifecycle import SlotState
from lenskeep.messages.control import Check
from lenskeep.messages.runner import Release
from lenskeep.registry import bundles, slots
from lenskeep.registry.slots import StoredSlot

log = logging.getLogger(__name__)

REPOSITORY = "repository"  # who did it


class Withdrawals:
    """Acts on what was withdrawn."""

    def __init__(
        self, database: Database, trust: TrustKeeper, book: SlotBook, activator: Activator, supervisor: Supervisor,
        wishes: Trust,
    ) -> None:  # fmt: skip
        self._database = database
        self._trust = trust
        self._book = book
        self._activator = activator
        self._supervisor = supervisor
        self._wishes = wishes
        self._told: set[tuple[str, str]] = set()

    async def apply(self) -> None:
        """Look at every slot after a look at the repository."""
        withdrawn = await self._trust.withdrawn()
        if not withdrawn:
            self._told.clear()
            return
        async with self._database.read() as tx:
            found = await slots.everything(tx)
            ids = {one.id: one.ref for one in await bundles.everything(tx) if one.ref in withdrawn}
        for slot in found:
            if slot.previous in ids:
                await self._drop_previous(slot, set(ids))
            if slot.active in ids and slot.state != SlotState.SWAPPING:
                await self._active(slot, ids[slot.active])

    async def faults(self) -> list[Check]:
        """Return the alarms for `status` and `doctor`."""
        withdrawn = await self._trust.withdrawn()
        async with self._database.read() as tx:
            active = {
                slot.name: await bundles.get(tx, slot.active) for slot in await slots.everything(tx) if slot.active
            }
        return [
            Check(
                name=name, passed=False, text=f"{bundle.ref} runs and was withdrawn by its publisher.",
                code=NotListedError.code, hint="Activate a version that is listed: lenskeep models", severity="fault",
            )
            for name, bundle in active.items()
            if bundle.ref in withdrawn
        ]  # fmt: skip

    async def _drop_previous(self, slot: StoredSlot, withdrawn: set[str]) -> None:
        async with self._book.changing[slot.name]:
            await self._book.drop_previous(slot.name, withdrawn, REPOSITORY)
        self._supervisor.process(slot.name).say(Release())

    async def _active(self, slot: StoredSlot, ref: str) -> None:
        if (slot.name, ref) not in self._told:
            self._told.add((slot.name, ref))
            self._book.fault(slot.name, NotListedError(f"{ref} runs in slot {slot.name} and was withdrawn."))
        reason = f"{NotListedError.code} {ref} was withdrawn by its publisher"
        if self._wishes.on_withdrawn == "fallback":
            try:
                await self._activator.rollback(slot.name, REPOSITORY, reason)
            except LenskeepError as error:  # nothing listed to go back to: it goes on, with its alarm
                log.warning("%s slot %s: %s", error.code, slot.name, error)
        elif self._wishes.on_withdrawn == "stop":
            async with self._book.changing[slot.name]:
                await self._book.stop(slot.name, REPOSITORY, reason)
            self._supervisor.process(slot.name).kill()  # its next start finds nothing to run
