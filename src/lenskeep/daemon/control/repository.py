"""The repository that this device follows: what is trusted, and syncs, also with files that the asker carries."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from lenskeep.daemon.control.bundles import accepted
from lenskeep.daemon.control.requests import upload_chunks
from lenskeep.daemon.control.route import OCTETS, Ask, Reply, Route
from lenskeep.errors import RequestError
from lenskeep.messages.control import Operation
from lenskeep.messages.repository import CarryFault, RepositoryView, RootRequest, SyncRequest, WantedFile

METADATA_BYTES_MAX = 8 << 20


class WaitQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`wait`: seconds to wait for something to be wanted."""

    wait: Annotated[float, Meta(ge=0, le=30)] = 0.0


async def show(ask: Ask) -> RepositoryView:
    return await ask.rooms.sync.view()


async def follow(ask: Ask) -> RepositoryView:
    await ask.rooms.trust.follow(ask.body.root.encode(), ask.who.by)
    ask.rooms.sync.ask()
    return await ask.rooms.sync.view()


async def begin(ask: Ask) -> Reply:
    return accepted(await ask.rooms.sync.begin(ask.body, ask.who.by))


async def wanted(ask: Ask) -> WantedFile:
    courier = ask.rooms.sync.courier(ask.part("id"))
    want = await courier.wanted(ask.query.wait)
    if want is None:
        return WantedFile(number=0, name="", offset=0, bytes_max=0, done=courier.closed)
    return WantedFile(
        number=want.number, name=want.name, offset=want.offset, bytes_max=want.bytes_max, done=False,
        length=want.length,
    )  # fmt: skip


async def bring(ask: Ask) -> None:
    bytes_max = max(METADATA_BYTES_MAX, (ask.config.limits.bundle_mb_max + 1) << 20)
    courier = ask.rooms.sync.courier(ask.part("id"))
    await courier.bring(_number(ask), upload_chunks(ask.request, bytes_max))


async def absent(ask: Ask) -> None:
    await ask.rooms.sync.courier(ask.part("id")).absent(_number(ask))


async def failed(ask: Ask) -> None:
    await ask.rooms.sync.courier(ask.part("id")).failed(_number(ask), ask.body.message)


def _number(ask: Ask) -> int:
    text = ask.part("number")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise RequestError(f"{text[:20]!r} is no number of a wanted file.")
    return int(text)


ROUTES = [
    Route(
        method="GET", path="/v1/repository", permission="look", handler=show, answer=RepositoryView,
        summary="Show the repository that this device follows: roles, assignments, what was withdrawn",
    ),
    Route(
        method="PUT", path="/v1/repository/root", permission="trust", handler=follow, answer=RepositoryView,
        body=RootRequest,
        summary="Follow the repository of this root from now on",
    ),
    Route(
        method="POST", path="/v1/syncs", permission="sync", handler=begin, answer=Operation, body=SyncRequest,
        status=202,
        summary="Look at the repository now and do what it assigns",
    ),
    Route(
        method="GET", path="/v1/syncs/{id}/wanted", permission="sync", handler=wanted, answer=WantedFile,
        query=WaitQuery,
        summary="Say which file a carried sync needs next",
    ),
    Route(
        method="PUT", path="/v1/syncs/{id}/files/{number}", permission="sync", handler=bring, answer=None, status=204,
        upload=True, media=OCTETS,
        summary="Bring the wanted file",
    ),
    Route(
        method="DELETE", path="/v1/syncs/{id}/files/{number}", permission="sync", handler=absent, answer=None,
        status=204,
        summary="Say that the wanted file is not there",
    ),
    Route(
        method="POST", path="/v1/syncs/{id}/files/{number}/fault", permission="sync", handler=failed, answer=None,
        body=CarryFault, status=204,
        summary="Say that the wanted file cannot be read",
    ),
]  # fmt: skip
