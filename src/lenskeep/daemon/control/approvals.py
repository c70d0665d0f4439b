"""What waits for people's approval, and their signatures."""

from __future__ import annotations

from msgspec import Struct

from lenskeep.daemon.control.route import Ask, Route
from lenskeep.messages.control import Approval, RefuseRequest, SignRequest


class ApprovalsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`all`: with those that have ended."""

    all: bool = False


async def show(ask: Ask) -> list[Approval]:
    return await ask.rooms.policy.list(ask.query.all)


async def approve(ask: Ask) -> Approval:
    return await ask.rooms.policy.approve(ask.part("slot"), ask.body, ask.who.by, ask.who.role)


async def refuse(ask: Ask) -> Approval:
    return await ask.rooms.policy.refuse(ask.part("slot"), ask.body, ask.who.by, ask.who.role)


ROUTES = [
    Route(
        method="GET", path="/v1/approvals", permission="look", handler=show, answer=list[Approval],
        query=ApprovalsQuery,
        summary="List the activations that wait for approval, and what each has got",
    ),
    Route(
        method="POST", path="/v1/slots/{slot}/approvals", permission="approve", handler=approve, answer=Approval,
        body=SignRequest, status=201,
        summary="Approve what waits in a slot: one person, one digest, with a meaning and a reason",
    ),
    Route(
        method="POST", path="/v1/slots/{slot}/refusals", permission="approve", handler=refuse, answer=Approval,
        body=RefuseRequest, status=201,
        summary="Refuse what waits in a slot, with the reason",
    ),
]  # fmt: skip
