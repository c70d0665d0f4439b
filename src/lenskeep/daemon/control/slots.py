"""Slots: what each should run, what it runs, and the operations that change it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from lenskeep.daemon.control.auth import require
from lenskeep.daemon.control.bundles import accepted
from lenskeep.daemon.control.route import Ask, Reply, Route
from lenskeep.errors import PreconditionError, RequestError
from lenskeep.messages.control import (
    ActivationRequest,
    HoldRequest,
    Operation,
    SlotRequest,
    SlotView,
)


class WaitQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`wait`: answer when the operation has ended, or after so many seconds."""

    wait: Annotated[float, Meta(ge=0, le=60)] = 0.0


def tagged(slot: SlotView) -> Reply:
    """Answer with a slot and the ETag of this state of it."""
    return Reply(slot, headers={"ETag": f'"{slot.etag}"'})


async def list_slots(ask: Ask) -> list[SlotView]:
    return await ask.rooms.views.slots()


async def get_slot(ask: Ask) -> Reply:
    return tagged(await ask.rooms.views.slot(ask.part("slot")))


async def activate(ask: Ask) -> Reply:
    """Whoever may activate may not always do so in a locked slot, even what is on its list."""
    if any(slot.locked for slot in ask.config.slot if ask.body.slot in (None, slot.name)):
        require(ask.who, "activate-locked")
    return accepted(await ask.rooms.activator.activate(ask.body, ask.who.by))


async def confirm(ask: Ask) -> Reply:
    name = await ask.rooms.activator.confirm(ask.body.slot, ask.who.by, ask.body.reason)
    return tagged(await ask.rooms.views.slot(name))


async def rollback(ask: Ask) -> Reply:
    return accepted(await ask.rooms.activator.rollback(ask.body.slot, ask.who.by, ask.body.reason))


async def hold(ask: Ask) -> Reply:
    name = ask.part("slot")
    if ask.body.slot not in (None, name):
        raise RequestError(f"/slot: the path says {name}, the body {ask.body.slot}. Nothing was changed.")
    await _check_unchanged(ask, name)
    await ask.rooms.activator.hold(name, ask.body.held, ask.who.by)
    return tagged(await ask.rooms.views.slot(name))


async def _check_unchanged(ask: Ask, name: str) -> None:
    wanted = ask.request.headers.get("If-Match")
    if wanted in (None, "*"):
        return
    current = (await ask.rooms.views.slot(name)).etag
    if f'"{current}"' not in {tag.strip() for tag in wanted.split(",")}:
        raise PreconditionError(f"The slot {name} has changed since you looked at it. Nothing was changed.")


async def list_operations(ask: Ask) -> list[Operation]:
    return ask.rooms.operations.list()


async def get_operation(ask: Ask) -> Operation:
    if ask.query.wait:
        return await ask.rooms.operations.wait(ask.part("id"), ask.query.wait)
    return ask.rooms.operations.get(ask.part("id"))


ROUTES = [
    Route(
        method="GET", path="/v1/slots", permission="look", handler=list_slots, answer=list[SlotView],
        summary="List the slots: what each should run and what it runs",
    ),
    Route(
        method="GET", path="/v1/slots/{slot}", permission="look", handler=get_slot, answer=SlotView,
        summary="Show one slot, with its ETag",
    ),
    Route(
        method="PUT", path="/v1/slots/{slot}/hold", permission="hold", handler=hold, answer=SlotView,
        body=HoldRequest,
        summary="Hold swaps while the line must not change, or let them go on; If-Match is honoured",
    ),
    Route(
        method="POST", path="/v1/activations", permission="activate", handler=activate, answer=Operation,
        body=ActivationRequest, status=202,
        summary="Make a slot run a version, watched for a while after the swap",
    ),
    Route(
        method="POST", path="/v1/confirmations", permission="confirm", handler=confirm, answer=SlotView,
        body=SlotRequest,
        summary="Keep the version that is on trial",
    ),
    Route(
        method="POST", path="/v1/rollbacks", permission="rollback", handler=rollback, answer=Operation,
        body=SlotRequest, status=202,
        summary="Go back to the version before",
    ),
    Route(
        method="GET", path="/v1/operations", permission="look", handler=list_operations, answer=list[Operation],
        summary="List long work, newest first",
    ),
    Route(
        method="GET", path="/v1/operations/{id}", permission="look", handler=get_operation, answer=Operation,
        query=WaitQuery,
        summary="Show one operation, or wait for its end",
    ),
]  # fmt: skip
