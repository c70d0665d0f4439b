"""Makes this device what the director assigned to it: fetch, verify, try, activate, in that order, slot by slot.

Rules. An assignment is followed once: each has a generation, and what a person decides here afterwards stands until a
newer one comes. Every step is written before the next one, so a power cut goes on where it was. What cannot be
followed is refused with its reason, for the fleet to see; what runs goes on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from lenskeep.bundle.manifest import version_key
from lenskeep.clock import Clock
from lenskeep.config import Trust
from lenskeep.daemon.activator import Activator
from lenskeep.daemon.downloads import Downloads, pieces
from lenskeep.daemon.importer import Importer
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.sources import RepositorySource
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.database import Database
from lenskeep.errors import AssignmentError, ConflictError, LenskeepError, QualificationError, fault_book
from lenskeep.lifecycle import BundleState
from lenskeep.messages.control import ActivationRequest, Operation
from lenskeep.registry import audit, bundles, repository, slots
from lenskeep.registry.bundles import StoredBundle
from lenskeep.registry.repository import Assigned
from lenskeep.trust import assignment as assignments
from lenskeep.trust.names import model_of

log = logging.getLogger(__name__)

FLEET = "fleet"
Told = Callable[[str, int, int, str], None]  # stage, done, total, unit


class Follower:
    """Follows assignments."""

    def __init__(
        self, database: Database, trust: TrustKeeper, downloads: Downloads, importer: Importer, activator: Activator,
        operations: Operations, clock: Clock, wishes: Trust, slot_names: list[str],
    ) -> None:  # fmt: skip
        self._database = database
        self._trust = trust
        self._downloads = downloads
        self._importer = importer
        self._activator = activator
        self._operations = operations
        self._clock = clock
        self._wishes = wishes
        self._slots = slot_names

    async def begin(self) -> None:
        """Put the folder of downloads in order after a start."""
        async with self._database.read() as tx:
            wanted = {one.sha256 for one in await repository.assigned(tx) if one.state == "new"}
        await asyncio.to_thread(self._downloads.prepare_in_thread, wanted)

    async def take(self, assignment: bytes) -> None:
        """Write down what a verified assignment asks of each slot; an older generation changes nothing.

        Raises: AssignmentError when it cannot be read or is not for this device.
        """
        if not assignment:
            return
        wanted = assignments.read(assignment, self._trust.device)
        async with self._database.write() as tx:
            before = {one.slot: one for one in await repository.assigned(tx)}
            for slot, one in wanted.slots.items():
                known = before.get(slot)
                same = known is not None and (known.target, known.sha256) == (one.target, one.sha256)
                if known is not None and (wanted.generation <= known.generation or (same and known.state != "refused")):
                    continue
                fresh = Assigned(
                    slot=slot, generation=wanted.generation, target=one.target, sha256=one.sha256, state="new"
                )
                await repository.assign(tx, fresh)
                await audit.add(
                    tx, self._clock, by=FLEET, action="assign", subject=f"slot {slot}",
                    before=known.target if known else "", after=one.target,
                    reason=f"generation {wanted.generation}, sha256 {one.sha256}",
                )  # fmt: skip

    async def follow(self, source: RepositorySource, told: Told) -> list[Assigned]:
        """Do what is open of every assignment, as far as this source carries; return how each stands."""
        if self._wishes.follow != "off":
            for one in await self._open():
                await self._follow_one(one, source, told)
        async with self._database.read() as tx:
            return await repository.assigned(tx)

    async def _open(self) -> list[Assigned]:
        async with self._database.read() as tx:
            return [one for one in await repository.assigned(tx) if one.state in ("new", "staged", "asked")]

    async def _follow_one(self, one: Assigned, source: RepositorySource, told: Told) -> None:
        try:
            if one.slot not in self._slots:
                raise AssignmentError(f"This device has no slot {one.slot}.")
            if one.state == "new":
                one = await self._stage(one, source, told)
            if one.state == "asked":
                one = await self._look_after(one)
            if one.state == "staged" and self._wishes.follow == "activate":
                await self._activate(one)
        except ConflictError as error:
            log.info("slot %s waits: %s", one.slot, error)  # the slot is busy; asked again at the next round
        except LenskeepError as error:
            if error.retryable:
                log.warning("%s slot %s: %s", error.code, one.slot, error)
                return
            await self._refuse(one, error)

    async def _stage(self, one: Assigned, source: RepositorySource, told: Told) -> Assigned:
        """Have the version here and tried."""
        listing = await self._trust.listing(one.target)
        if listing is None or listing.sha256 != one.sha256:
            await self._trust.refresh(source, [one.target])
            listing = await self._trust.listing(one.target)
        if listing is None or not listing.sha256:
            raise AssignmentError(f"The director assigned {one.target}, which no publisher lists.")
        if listing.sha256 != one.sha256:
            raise AssignmentError(f"The director assigned another {one.target} than {listing.role} lists.")
        bundle = await self._stored(one)
        if bundle is None:
            told("download", 0, listing.length_bytes, "bytes")
            path = await self._downloads.fetch(
                listing, source, lambda done, total: told("download", done, total, "bytes")
            )
            operation = await self._importer.receive(pieces(path), listing.length_bytes, FLEET, source)
            await asyncio.to_thread(self._downloads.done_with, path)
            told("trial", 0, 0, "")
            await self._ended(operation)
            bundle = await self._stored(one)
        if bundle is None or bundle.state == BundleState.REJECTED:
            raise QualificationError(f"{one.target} did not prove itself on this device.")
        return await self._write(one, state="staged")

    async def _ended(self, operation: Operation) -> None:
        """Wait for a trial. Raises: the fault that it ended with."""
        while operation.state == "running":
            operation = await self._operations.wait(operation.id, 60.0)
        if operation.error is not None:
            raise fault_book().get(operation.error.code, QualificationError)(operation.error.detail)

    async def _activate(self, one: Assigned) -> None:
        bundle = await self._stored(one)
        if bundle is None:
            await self._write(one, state="new")  # it was removed in between: fetched again at the next round
            return
        async with self._database.read() as tx:
            slot = await slots.get(tx, one.slot)
        if slot.active == bundle.id:
            await self._write(one, state="followed")
            return
        request = ActivationRequest(
            bundle=bundle.ref, slot=one.slot, reason=f"assigned by the fleet, generation {one.generation}"
        )
        operation = await self._activator.activate(request, FLEET)
        await self._write(one, state="asked", operation=operation.id)

    async def _look_after(self, one: Assigned) -> Assigned:
        """See what became of an activation; after a restart the slot itself says it."""
        bundle = await self._stored(one)
        async with self._database.read() as tx:
            slot = await slots.get(tx, one.slot)
        if bundle is not None and slot.active == bundle.id:
            return await self._write(one, state="followed")
        known = {operation.id: operation for operation in self._operations.list()}.get(one.operation)
        if known is None:
            return await self._write(one, state="staged", operation="")
        if known.error is not None:
            raise fault_book().get(known.error.code, AssignmentError)(known.error.detail)
        return one

    async def _stored(self, one: Assigned) -> StoredBundle | None:
        name, version = model_of(one.target) or ("", "")
        async with self._database.read() as tx:
            found = await bundles.of_name(tx, name)
        fits = [each for each in found if each.version == version and each.file_sha256 == one.sha256]
        return max(fits, key=lambda each: version_key(each.version), default=None)

    async def _refuse(self, one: Assigned, error: LenskeepError) -> None:
        log.error("%s slot %s: the assignment of %s is not followed: %s", error.code, one.slot, one.target, error)
        await self._write(one, state="refused", code=error.code, reason=str(error))

    async def _write(self, one: Assigned, **changes: str) -> Assigned:
        changed = msgspec.structs.replace(one, **changes)
        async with self._database.write() as tx:
            await repository.assign(tx, changed)
            if changed.state in ("followed", "refused"):
                await audit.add(
                    tx, self._clock, by=FLEET, action=f"assignment {changed.state}", subject=f"slot {one.slot}",
                    before=one.state, after=one.target, reason=f"{changed.code} {changed.reason}".strip(),
                )  # fmt: skip
        return changed
