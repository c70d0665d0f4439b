"""What happened: results, windows, deployments, the audit trail, and the stream of events."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from lenskeep.daemon.control.route import Ask, Reply, Route
from lenskeep.daemon.control.streams import closing, send_events
from lenskeep.errors import RequestError
from lenskeep.messages.control import AuditEntry, Deployment, Event, ResultPage, SlotName, Window, result_view
from lenskeep.messages.record import RecordHead, RecordVerdict
from lenskeep.trust import recordfile

Limit = Annotated[int, Meta(ge=1, le=1000)]
Sequence = Annotated[int, Meta(ge=0)]
Day = Annotated[str, Meta(pattern=r"^\d{4}-\d\d-\d\d$(?!\n)")]

JSON_LINES = "application/x-ndjson"


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


class ExportQuery(Struct, frozen=True, forbid_unknown_fields=True, rename={"first": "from"}):
    """Days such as 2027-01-31, in UTC; entries outside are left out, with their digests in their place."""

    first: Day | None = None
    until: Day | None = None


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


async def export_record(ask: Ask) -> web.StreamResponse:
    """Stream the lines; the head is signed before the first header goes out, so a full disk is still a problem."""
    first_ms, until_ms = recordfile.days_ms(ask.query.first or "", ask.query.until or "")
    async with closing(ask.rooms.record.export(first_ms, until_ms)) as lines:
        first = await anext(lines)
        answer = web.StreamResponse(headers={"Content-Type": JSON_LINES})
        await answer.prepare(ask.request)
        await answer.write(first)
        async for piece in lines:
            await answer.write(piece)
        await answer.write_eof()
    return answer


async def verify_record(ask: Ask) -> RecordVerdict:
    return await ask.rooms.record.verify()


async def record_head(ask: Ask) -> RecordHead:
    return await ask.rooms.record.head()


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
        method="GET", path="/v1/audit/head", permission="read-record", handler=record_head, answer=RecordHead,
        summary="Show up to where the record goes, signed by the device; kept elsewhere, it is a witness",
    ),
    Route(
        method="GET", path="/v1/audit/export", permission="read-record", handler=export_record, answer=str,
        query=ExportQuery, media=JSON_LINES,
        summary="Download the record as JSON lines that can be verified with the device's public key alone",
    ),
    Route(
        method="POST", path="/v1/audit/verification", permission="read-record", handler=verify_record,
        answer=RecordVerdict,
        summary="Read the whole record and say whether anything was changed, removed or moved",
    ),
    Route(
        method="GET", path="/v1/events", permission="look", handler=events, answer=Event, query=EventsQuery,
        media="text/event-stream",
        summary="Follow what happens; resume with Last-Event-ID or since",
    ),
]  # fmt: skip
