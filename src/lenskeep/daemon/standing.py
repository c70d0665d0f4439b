"""Where each slot stands with what it was assigned, in the words of the fleet; and the device's own state."""

from __future__ import annotations

from collections.abc import Callable

from lenskeep.clock import Clock
from lenskeep.daemon.follower import Follower
from lenskeep.daemon.health import Box
from lenskeep.daemon.pointers import runtime_key
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.database import Database
from lenskeep.lifecycle import SlotState
from lenskeep.messages.fleet import cut
from lenskeep.messages.sync import SlotNow, Vitals
from lenskeep.registry import repository, slots
from lenskeep.registry.blobs import MEBIBYTE, Blobs
from lenskeep.registry.repository import Assigned
from lenskeep.registry.slots import StoredSlot

SLOTS_MAX = 64


class Standing:
    """Looks at slots and at the box."""

    def __init__(
        self, database: Database, supervisor: Supervisor, follower: Follower, trust: TrustKeeper, blobs: Blobs,
        box: Callable[[], Box], certificate_ends_s: Callable[[], float], clock: Clock,
    ) -> None:  # fmt: skip
        self._database = database
        self._supervisor = supervisor
        self._follower = follower
        self._trust = trust
        self._blobs = blobs
        self._box = box
        self._certificate_ends_s = certificate_ends_s
        self._clock = clock

    async def slots(self) -> list[SlotNow]:
        """Return how every slot stands; one that the fleet assigned something to and that is not here stands too."""
        await self._follower.look()
        async with self._database.read() as tx:
            assigned = {one.slot: one for one in await repository.assigned(tx)}
            here = {slot.name: slot for slot in await slots.everything(tx) if slot.name in self._supervisor.processes}
        names = [*here, *(name for name in assigned if name not in here)]
        return [self._slot(name, assigned.get(name), here.get(name)) for name in names[:SLOTS_MAX]]

    def _slot(self, name: str, one: Assigned | None, slot: StoredSlot | None) -> SlotNow:
        beat = self._supervisor.processes[name].beat if slot is not None else None
        wait = self._follower.waits.get(name, "") if one is not None and one.state in ("new", "staged", "asked") else ""
        state: str = one.state if one is not None else ""
        if state == "new" and name in self._follower.fetching:
            state = "downloading"
        if state == "followed" and slot is not None and slot.state == SlotState.PROBATION:
            state = "probation"
        return SlotNow(
            slot=name, generation=one.generation if one is not None else 0, state=state,
            code=one.code if one is not None else "", reason=cut(wait or (one.reason if one is not None else ""), 2000),
            bundle=cut(beat.active, 130) if beat else "", digest=beat.digest if beat else "",
            busy=bool(wait) or (slot is not None and slot.held),
        )  # fmt: skip

    async def vitals(self) -> Vitals:
        """Return the device's own state."""
        box, known = self._box(), await self._trust.known()
        return Vitals(
            n=0, at_ms=self._clock.now_ms(), clock_trusted=self._clock.trusted(),
            disk_free_mb=max(0, self._blobs.free_bytes() // MEBIBYTE), memory_free_mb=box.memory_free_mb, load=box.load,
            temperature_c=box.temperature_c,
            metadata_ends_s=int(min((role.expires_s for role in known.roles), default=0)) if known else 0,
            certificate_ends_s=int(self._certificate_ends_s()), hardware=runtime_key(),
        )  # fmt: skip

    def providers(self) -> dict[str, str]:
        """Return what each slot's session runs on."""
        return {name: one.beat.provider if one.beat else "" for name, one in self._supervisor.processes.items()}
