"""Makes this device what the director assigned to it: fetch, verify, try, activate, in that order, slot by slot.

Rules. An assignment is followed once: each has a generation, and what a person decides here afterwards stands until a
newer one comes. Every step is written before the next one, so a power cut goes on where it was. What cannot be
followed is refused with its reason, for the fleet to see; what runs goes on. A version that took itself back is not
tried again because a newer generation names it again, unless that says `forced`. Download and activation are asked for
apart, and wait for the device's own times; a person with a stick at the device is not kept waiting.
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
from lenskeep.daemon.maintenance import Maintenance
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.slotbook import DEVICE
from lenskeep.daemon.sources import Courier, RepositorySource
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.database import Database
from lenskeep.errors import AssignmentError, ConflictError, LenskeepError, QualificationError, fault_book
from lenskeep.lifecycle import BundleState
from lenskeep.messages.control import ActivationRequest, Operation
from lenskeep.registry import audit, bundles, journal, repository, slots
from lenskeep.registry.bundles import StoredBundle
from lenskeep.registry.repository import Assigned
from lenskeep.trust import assignment as assignments
from lenskeep.trust.assignment import SlotAssignment
from lenskeep.trust.names import model_of

log = logging.getLogger(__name__)

FLEET = "fleet"
PAUSED = "assignments paused"  # counter
DEPLOYMENTS_LOOKED_AT = 20
Told = Callable[[str, int, int, str], None]  # stage, done, total, unit


class Follower:
    """Follows assignments."""

    def __init__(
        self, database: Database, trust: TrustKeeper, downloads: Downloads, importer: Importer, activator: Activator,
        operations: Operations, clock: Clock, wishes: Trust, slot_names: list[str], maintenance: Maintenance,
    ) -> None:  # fmt: skip
        self._maintenance = maintenance
        self.paused = False
        self.waits: dict[str, str] = {}  # slot -> why its assignment waits
        self.fetching: set[str] = set()  # slots whose version is on its way
        self.moved: Callable[[], None] = lambda: None  # called when an assignment made a step
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
            self.paused = bool(await journal.noted(tx, PAUSED))
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
                if known is not None and wanted.generation <= known.generation:
                    continue
                if known is not None and same and not _tried_again(known, one):
                    await repository.assign(tx, msgspec.structs.replace(known, generation=wanted.generation))
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
            ways = await self._ways()
            for one in await self._open():
                self.waits.pop(one.slot, None)
                await self._follow_one(one, ways.get(one.slot), source, told)
        await self.look()
        async with self._database.read() as tx:
            return await repository.assigned(tx)

    async def has_open(self) -> bool:
        """Say whether an assignment is not at its end yet."""
        return self._wishes.follow != "off" and bool(await self._open())

    async def _open(self) -> list[Assigned]:
        async with self._database.read() as tx:
            return [one for one in await repository.assigned(tx) if one.state in ("new", "staged", "asked")]

    async def look(self) -> None:
        """See what became of what was asked for, and whether what was followed still runs; needs no source."""
        async with self._database.read() as tx:
            assigned = await repository.assigned(tx)
        for one in assigned:
            try:
                if one.state == "asked":
                    await self._look_after(one)
                elif one.state == "followed":
                    await self._still(one)
            except LenskeepError as error:
                if not error.retryable:
                    await self._refuse(one, error)

    async def pause(self, paused: bool) -> None:
        """Follow nothing over the network, or follow again; it stays so over a restart."""
        async with self._database.write() as tx:
            await journal.note(tx, PAUSED, int(paused))
            if paused != self.paused:
                action = "pause assignments" if paused else "resume assignments"
                await audit.add(tx, self._clock, by=FLEET, action=action, subject="device")
        self.paused = paused
        self.moved()

    async def _ways(self) -> dict[str, SlotAssignment]:
        """Return how the newest assignment wants each slot to be followed."""
        known = await self._trust.known()
        if known is None or not known.assignment:
            return {}
        return assignments.read(known.assignment, self._trust.device).slots

    def _why_not_now(self, one: Assigned, asked: SlotAssignment | None, source: RepositorySource) -> str:
        """Say why the next step of an assignment waits; nothing when it does not."""
        if isinstance(source, Courier):
            return ""  # somebody stands here with a stick
        if self.paused:
            return "the fleet has paused this device"
        if one.state == "new":
            return "it is not to be fetched yet" if asked is not None and asked.download == "skip" else ""
        return self._maintenance.why_not(one.slot, asked.activate if asked is not None else "attempt")

    async def _follow_one(
        self, one: Assigned, asked: SlotAssignment | None, source: RepositorySource, told: Told
    ) -> None:  # fmt: skip
        try:
            if one.slot not in self._slots:
                raise AssignmentError(f"This device has no slot {one.slot}.")
            if one.state == "new" and not self._waits(one, asked, source):
                one = await self._stage(one, source, told)
            if one.state == "asked":
                one = await self._look_after(one)
            if one.state == "staged" and self._wishes.follow == "activate" and not self._waits(one, asked, source):
                await self._activate(one)
        except ConflictError as error:
            self.waits[one.slot] = str(error)
            log.info("slot %s waits: %s", one.slot, error)  # the slot is busy; asked again at the next round
        except LenskeepError as error:
            if error.retryable:
                self.waits[one.slot] = f"{error.code} {error}"
                log.warning("%s slot %s: %s", error.code, one.slot, error)
                return
            await self._refuse(one, error)
        finally:
            self.fetching.discard(one.slot)

    def _waits(self, one: Assigned, asked: SlotAssignment | None, source: RepositorySource) -> bool:
        why = self._why_not_now(one, asked, source)
        if why:
            self.waits[one.slot] = why
            log.info("slot %s waits: %s", one.slot, why)
        return bool(why)

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
            self.fetching.add(one.slot)
            self.moved()
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
        if bundle is not None and (taken_back := await self._taken_back(one, bundle)) is not None:
            return taken_back
        known = {operation.id: operation for operation in self._operations.list()}.get(one.operation)
        if known is None:
            return await self._write(one, state="staged", operation="")
        if known.error is not None:
            raise fault_book().get(known.error.code, AssignmentError)(known.error.detail)
        return one

    async def _still(self, one: Assigned) -> None:
        """See whether what was followed was taken back since; that it was replaced by a person's choice stands."""
        bundle = await self._stored(one)
        async with self._database.read() as tx:
            active = (await slots.get(tx, one.slot)).active
        if bundle is not None and active != bundle.id:
            await self._taken_back(one, bundle)

    async def _taken_back(self, one: Assigned, bundle: StoredBundle) -> Assigned | None:
        """Write that the slot went back from a version, if that is how it ended there; None when it is not."""
        async with self._database.read() as tx:
            newest_first = await slots.deployments(tx, one.slot, limit=DEPLOYMENTS_LOOKED_AT)
        after = None
        for deployment in newest_first:
            if deployment.bundle_id == bundle.id:
                break
            after = deployment
        else:
            return None
        if deployment.outcome != "rolled_back" or after is None:
            return None
        if after.asked_by != DEVICE:
            return await self._write(one, state="rolled_back", reason=f"taken back by {after.asked_by}: {after.reason}")
        code, _, text = after.reason.partition(" ")
        return await self._write(one, state="rolled_back", code=code, reason=text)

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
            if changed.state in ("followed", "refused", "rolled_back"):
                await audit.add(
                    tx, self._clock, by=FLEET, action=f"assignment {changed.state}", subject=f"slot {one.slot}",
                    before=one.state, after=one.target, reason=f"{changed.code} {changed.reason}".strip(),
                )  # fmt: skip
        self.moved()
        return changed


def _tried_again(known: Assigned, one: SlotAssignment) -> bool:
    """Say whether a newer generation that names the same version begins it anew."""
    return known.state == "refused" or (known.state == "rolled_back" and one.activate == "forced")
