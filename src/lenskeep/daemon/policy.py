"""What slots demand before a version is activated: lists of versions, and requests that wait for people's approval.

Intent, then loop, here too: a signature is written in one transaction together with what became of the request; the
activator looks at open requests, carries the granted ones out, and uses each up in the transaction that writes the
wish. So a power cut loses no signature, and two people who approve at once activate once. What is decided stands in
`lenskeep.policy`; here is who is asked, what is written, and what is told. Whoever asks, the fleet included, asks here.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass

import msgspec

from lenskeep.clock import Clock, rfc3339
from lenskeep.config import Slot
from lenskeep.daemon.events import Events
from lenskeep.daemon.operations import Operations
from lenskeep.database import Database, Transaction
from lenskeep.errors import (
    ApprovalOverError,
    ApprovalRefusedError,
    ApprovalVoidError,
    ConflictError,
    LenskeepError,
    NotPermittedError,
    SlotLockedError,
    UnknownNameError,
)
from lenskeep.lifecycle import BundleState
from lenskeep.messages.control import ActivationRequest, Approval, Operation, RefuseRequest, SignatureView, SignRequest
from lenskeep.policy import ApprovalEvent, ApprovalState, Demand, Signature, listed, overtaken, sign
from lenskeep.registry import access, approvals, audit, bundles
from lenskeep.registry.approvals import StoredApproval, StoredSignature
from lenskeep.registry.bundles import StoredBundle

HISTORY_MAX = 100


@dataclass(frozen=True)
class Admitted:
    """Nothing stands against it: it may be activated now."""


@dataclass(frozen=True)
class Pending:
    """It waits for approval; the operation goes on by itself once it is granted."""

    operation: Operation


class Policy:
    """The demands of every slot, and the requests that wait because of them."""

    def __init__(
        self, database: Database, operations: Operations, events: Events, clock: Clock, slots: list[Slot]
    ) -> None:
        self._database = database
        self._operations = operations
        self._events = events
        self._clock = clock
        self._demands = {slot.name: slot.demand() for slot in slots}
        self._asking = asyncio.Lock()
        self.granted = asyncio.Event()

    def demand(self, slot: str) -> Demand:
        """Return what a slot demands; one that is configured no more admits nothing without a person."""
        return self._demands.get(slot, Demand(approvals=1))

    # --- may it be activated --------------------------------------------------------------------------------------

    async def admit(self, slot: str, bundle: StoredBundle, by: str, request: ActivationRequest) -> Admitted | Pending:
        """Say whether a version may be activated in a slot now, or let the wish wait for approval.

        Raises: SlotLockedError; ConflictError when somebody else's request waits there.
        """
        self.require_listed(slot, bundle, "activated")
        demand = self.demand(slot)
        if not demand.approvals:
            return Admitted()
        async with self._asking:
            await self.end_overtaken()
            async with self._database.read() as tx:
                waiting = await approvals.open_ones(tx, slot)
                person = await access.person(tx, by, self._clock.now_ms())
            for other in waiting:
                if (other.bundle_id, other.digest) == (bundle.id, bundle.digest):
                    return Pending(self._operations.get(other.operation))
                if other.asker != person:
                    raise ConflictError(
                        f"In slot {slot} another version waits for approval, asked for by {other.asked_by}."
                        " Nothing was changed.",
                        hint=f"Approve or refuse it first: lenskeep approvals, lenskeep refuse {other.id} --reason …",
                    )
                replaced = ApprovalVoidError(f"{other.asked_by} asked for {bundle.ref} instead.")
                await self.end(other, ApprovalEvent.VOIDED, replaced, by)
            return Pending(await self._ask(slot, bundle, by, person, demand, request))

    async def _ask(
        self, slot: str, bundle: StoredBundle, by: str, person: str, demand: Demand, request: ActivationRequest
    ) -> Operation:
        approval_id, now_ms = uuid.uuid4().hex[:8], self._clock.now_ms()
        operation = await self._operations.begin("activate", bundle.ref, by, waits=_waits(approval_id, 0, demand))
        new = StoredApproval(
            id=approval_id, slot=slot, bundle_id=bundle.id, digest=bundle.digest, demand=demand.text(),
            request=msgspec.json.encode(request).decode(), asked_by=by, asker=person, asked_ms=now_ms,
            expires_ms=now_ms + int(demand.hours * 3_600_000), operation=operation.id, state=ApprovalState.WAITING,
            ended_ms=None, ended_reason="", signatures=[],
        )  # fmt: skip
        async with self._database.write() as tx:
            await approvals.add(tx, new)
            await self._note(tx, new, "ask approval", by, request.reason, f"{bundle.ref} {bundle.digest}")
        self._tell(slot)
        return operation

    def require_listed(self, slot: str, bundle: StoredBundle, what: str) -> None:
        """Let only versions of its list into a locked slot. Raises: SlotLockedError."""
        if not listed(self.demand(slot).locked, bundle.name, bundle.version, bundle.digest):
            raise SlotLockedError(
                f"Slot {slot} is locked and {bundle.ref} is not on its list, so it is not {what}. Nothing was changed."
            )

    # --- people ---------------------------------------------------------------------------------------------------

    async def approve(self, slot: str, request: SignRequest, by: str, role: str) -> Approval:
        """Write one person's approval; the last one that is needed lets the activation go on.

        Raises: ApprovalOverError, ApprovalMismatchError, NotYourApprovalError, UnknownNameError.
        """
        await self.end_overtaken()
        now_ms = self._clock.now_ms()
        async with self._database.write() as tx:
            stored = await self._of_slot(tx, slot, request.id)
            demand, person = self.demand(slot), await access.person(tx, by, now_ms)
            signature = Signature(person=person, role=role, meaning=request.meaning, digest=request.digest)
            asked = sign(stored.asked(), demand, signature, now_ms)
            written = StoredSignature(
                person=person, actor=by, role=role, meaning=request.meaning, reason=request.reason,
                digest=request.digest, at_ms=now_ms,
            )  # fmt: skip
            await approvals.sign(tx, stored.id, written, asked.state)
            count = f"{len(asked.signatures)} of {demand.approvals}"
            after = f"{asked.state} {count} {request.meaning} as {role} by {person} for {request.digest}"
            await self._note(tx, stored, "approve", by, request.reason, after)
        if asked.state == ApprovalState.GRANTED:
            await self._operations.go_on(stored.operation)
            self.granted.set()
        else:
            await self._operations.await_approval(stored.operation, _waits(stored.id, len(asked.signatures), demand))
        self._tell(slot)
        return await self._view(stored.id)

    async def refuse(self, slot: str, request: RefuseRequest, by: str, role: str) -> Approval:
        """End a request with a no. Who may approve may refuse, and who asked may take it back."""
        await self.end_overtaken()
        async with self._database.read() as tx:
            stored = await self._of_slot(tx, slot, request.id)
            person = await access.person(tx, by, self._clock.now_ms())
        if person != stored.asker and role not in self.demand(slot).roles_that_sign():
            wanted = " or ".join(self.demand(slot).roles_that_sign())
            raise NotPermittedError(f"Here the role {wanted} refuses; {by} is {role}. Nothing was changed.")
        fault = ApprovalRefusedError(f"{by} refused it: {request.reason}")
        if not await self.end(stored, ApprovalEvent.REFUSED, fault, by, request.reason):
            raise ApprovalOverError("The request waits no longer. Nothing was changed.")
        return await self._view(stored.id)

    async def _of_slot(self, tx: Transaction, slot: str, approval_id: str) -> StoredApproval:
        """Return a request; a right in one slot says nothing about another slot's."""
        stored = await approvals.get(tx, approval_id)
        if stored.slot != slot:
            raise UnknownNameError(f"No request for approval {approval_id!r} is about slot {slot}.")
        return stored

    # --- what became of requests ----------------------------------------------------------------------------------

    async def open_ones(self) -> list[StoredApproval]:
        """Return the requests that wait or are granted, after those are ended that time or a change has overtaken."""
        await self.end_overtaken()
        async with self._database.read() as tx:
            return await approvals.open_ones(tx)

    async def end_overtaken(self) -> None:
        """End what waits for nothing any more: its time is over, its bundle or its slot's policy is another."""
        async with self._database.read() as tx:
            found = await approvals.open_ones(tx)
            digests = {one.bundle_id: await _digest(tx, one.bundle_id) for one in found}
        for one in found:
            over = overtaken(one.asked(), self.demand(one.slot), digests[one.bundle_id], self._clock.now_ms())
            if over is not None:
                await self.end(one, *over, "device")

    async def end(
        self, stored: StoredApproval, event: ApprovalEvent, fault: LenskeepError, by: str, reason: str = ""
    ) -> bool:
        """Write the end of a request and of its operation; say whether it was still open."""
        try:
            async with self._database.write() as tx:
                said = reason or f"{fault.code} {fault}"
                ended = await approvals.finish(tx, stored.id, event, at_ms=self._clock.now_ms(), reason=said)
                await self._note(tx, stored, f"approval {ended.state}", by, said, ended.state)
        except ApprovalOverError:
            return False
        await self._operations.fail(stored.operation, fault)
        self._tell(stored.slot)
        return True

    async def standing(self) -> set[str]:
        """Return the operations that wait on after a start."""
        async with self._database.read() as tx:
            return {one.operation for one in await approvals.open_ones(tx)}

    async def list(self, everything: bool) -> list[Approval]:
        """Return what waits, or the newest requests with how each ended."""
        await self.end_overtaken()
        async with self._database.read() as tx:
            found = await approvals.newest(tx, HISTORY_MAX) if everything else await approvals.open_ones(tx)
            return [await view_of(tx, one) for one in found]

    async def _view(self, approval_id: str) -> Approval:
        async with self._database.read() as tx:
            return await view_of(tx, await approvals.get(tx, approval_id))

    async def _note(
        self, tx: Transaction, stored: StoredApproval, action: str, by: str, reason: str, after: str
    ) -> None:
        before = f"{stored.state} request {stored.id}"
        await audit.add(
            tx, self._clock, by=by, action=action, subject=f"slot {stored.slot}", reason=reason, before=before,
            after=after,
        )  # fmt: skip

    def _tell(self, slot: str) -> None:
        self._events.publish("slot", {"slot": slot})


async def _digest(tx: Transaction, bundle_id: str) -> str:
    """Return the digest of a bundle that may run, or nothing."""
    bundle = await bundles.get(tx, bundle_id)
    return bundle.digest if bundle.state == BundleState.QUALIFIED else ""


def _waits(approval_id: str, given: int, demand: Demand) -> str:
    roles = ", ".join(demand.roles_that_sign())
    return f"{given} of {demand.approvals} approvals ({roles}): lenskeep approve {approval_id}"


async def view_of(tx: Transaction, stored: StoredApproval) -> Approval:
    """Say a request in the words of the API."""
    demand = msgspec.convert(msgspec.json.decode(stored.demand), Demand)
    request = msgspec.json.decode(stored.request, type=ActivationRequest)
    signatures = [
        SignatureView(
            person=one.person, by=one.actor, role=one.role, meaning=one.meaning,  # type: ignore[arg-type]
            reason=one.reason, at=rfc3339(one.at_ms / 1000),
        )
        for one in stored.signatures
    ]  # fmt: skip
    return Approval(
        id=stored.id, slot=stored.slot, bundle=(await bundles.get(tx, stored.bundle_id)).ref, digest=stored.digest,
        state=stored.state.value, by=stored.asked_by, person=stored.asker, reason=request.reason,
        asked=rfc3339(stored.asked_ms / 1000), expires=rfc3339(stored.expires_ms / 1000), needed=demand.approvals,
        roles=list(demand.roles_that_sign()), meanings=list(demand.meanings),  # type: ignore[arg-type]
        own=demand.own, signatures=signatures, operation=stored.operation,
        ended=rfc3339(stored.ended_ms / 1000) if stored.ended_ms is not None else "",
        ended_reason=stored.ended_reason,
    )  # fmt: skip


async def waiting_in(tx: Transaction, slot: str) -> Approval | None:
    """Return the request that is open in a slot."""
    found = await approvals.open_ones(tx, slot)
    return await view_of(tx, found[0]) if found else None
