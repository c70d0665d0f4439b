"""What happened: results, windows, deployments, the audit trail, and the stream of events."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from lenskeep.daemon.control.route import Ask, Reply, Route
from lenskeep.daemon.control.streams import send_events
from lenskeep.errors import RequestError
from lenskeep.messages.control import AuditEntry, Deployment, Event, ResultPage, SlotName, Window, result_view

Limit = Annotated[int, Meta(ge=1, le=1000)]
Sequence = Annotated[int, Meta(ge=0)]


class ResultsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`since`: results after this sequence."""

    slot: SlotName | None = None
    camera: SlotName | None = None
    limit: Limit = 100
    since: Sequence | None = None


class WindowsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`since_s`: how far back; `seconds`: the span of one window."""

    slot: SlotName | None = None
    since_s: Annotated[int, Meta(ge=1, le=400 * 86400)] = 3600
    seconds: Annotated[int, Meta(ge=60, le=86400)] = 60


class DeploymentsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`after`: go on below this sequence."""

    slot: SlotName | None = None
    limit: Limit = 100
    after: Sequence | None = None


class PageQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`after`: go on below this sequence."""

    limit: Limit = 100
    after: Sequence | None = None


class EventsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`since`: events after this sequence; Last-Event-ID counts before it.

    `types`: only these, separated by commas; `follow=false`: only those that are kept, then the end.
    """

    since: Sequence | None = None
    types: Annotated[str, Meta(pattern=r"^[a-z]+(,[a-z]+)*$(?!\n)")] | None = None
    follow: bool = True


async def results(ask: Ask) -> ResultPage:
    query = ask.query
    found = await ask.rooms.views.results(slot=query.slot, camera=query.camera, limit=query.limit, since=query.since)
    return ResultPage(results=[result_view(result) for result in found])


async def windows(ask: Ask) -> list[Window]:
    return await ask.rooms.views.windows(ask.query.slot, ask.query.since_s, ask.query.seconds)


async def deployments(ask: Ask) -> Reply:
    query = ask.query
    return _page(ask, await ask.rooms.views.deployments(query.slot, query.limit, query.after))


async def audit(ask: Ask) -> Reply:
    return _page(ask, await ask.rooms.views.audit(ask.query.limit, ask.query.after))


def _page(ask: Ask, rows: list[Any]) -> Reply:
    """Answer with a page of a list, and where the next one is when this one is full."""
    if len(rows) < ask.query.limit:
        return Reply(rows)
    target = ask.request.rel_url.update_query(after=str(rows[-1].sequence))
    return Reply(rows, headers={"Link": f'<{target}>; rel="next"'})


async def events(ask: Ask) -> web.StreamResponse:
    last = ask.request.headers.get("Last-Event-ID", "").strip()
    if last and not last.isdecimal():
        raise RequestError("Last-Event-ID must be the number of an event.")
    since = int(last) if last else ask.query.since
    types = frozenset(ask.query.types.split(",")) if ask.query.types else None
    return await send_events(ask.request, ask.rooms.events.subscribe(since), types, follow=ask.query.follow)


ROUTES = [
    Route(
        method="GET", path="/v1/results", permission="look", handler=results, answer=ResultPage,
        query=ResultsQuery,
        summary="Show the newest results, oldest first",
    ),
    Route(
        method="GET", path="/v1/windows", permission="look", handler=windows, answer=list[Window],
        query=WindowsQuery,
        summary="Show counts and latency over time",
    ),
    Route(
        method="GET", path="/v1/deployments", permission="look", handler=deployments, answer=list[Deployment],
        query=DeploymentsQuery,
        summary="Show what ran where, newest first",
    ),
    Route(
        method="GET", path="/v1/audit", permission="read-record", handler=audit, answer=list[AuditEntry],
        query=PageQuery,
        summary="Show every state change, newest first",
    ),
    Route(
        method="GET", path="/v1/events", permission="look", handler=events, answer=Event, query=EventsQuery,
        media="text/event-stream",
        summary="Follow what happens; resume with Last-Event-ID or since",
    ),
]  # fmt: skip
