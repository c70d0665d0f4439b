"""Bundles on this device: list, look, take in, hand out, try, pin, remove."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from aiohttp import web
from msgspec import Meta, Struct

from lenskeep.daemon.control.requests import upload_chunks, upload_size
from lenskeep.daemon.control.route import OCTETS, Ask, Reply, Route
from lenskeep.daemon.control.streams import closing
from lenskeep.messages.control import (
    Bundle,
    BundleDetail,
    CheckRequest,
    Operation,
    PinRequest,
    Verification,
)

HEADERS_BYTES = 1 << 20  # a bundle's headers and signature come on top of its files


class BundlesQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """`all`: with those that were removed."""

    all: bool = False


class RemovalQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Why it goes."""

    reason: Annotated[str, Meta(max_length=500)] = ""


def accepted(operation: Operation) -> Reply:
    """Answer with work that goes on, and where to look for it."""
    return Reply(operation, 202, {"Location": f"/v1/operations/{operation.id}"})


async def list_bundles(ask: Ask) -> list[Bundle]:
    return await ask.rooms.views.bundles(ask.query.all)


async def get_bundle(ask: Ask) -> BundleDetail:
    return await ask.rooms.views.bundle(ask.part("ref"))


async def receive(ask: Ask) -> Reply:
    chunks, size = _upload(ask)
    return accepted(await ask.rooms.importer.receive(chunks, size, ask.who.by))


async def verify(ask: Ask) -> Verification:
    return await ask.rooms.importer.verify(*_upload(ask))


def _upload(ask: Ask) -> tuple[AsyncIterator[bytes], int | None]:
    bytes_max = ask.config.limits.bundle_mb_max * (1 << 20) + HEADERS_BYTES
    return upload_chunks(ask.request, bytes_max), upload_size(ask.request, bytes_max)


async def export(ask: Ask) -> web.StreamResponse:
    """Stream the file; the first chunk is there before the first header goes out, so a refusal is still a problem."""
    stored = (await ask.rooms.views.bundle(ask.part("ref"))).bundle
    async with closing(ask.rooms.importer.export(f"{stored.name}@{stored.version}")) as chunks:
        first = await anext(chunks)
        answer = web.StreamResponse(
            headers={
                "Content-Type": OCTETS,
                "Content-Length": str(stored.size_bytes),
                "Content-Disposition": f'attachment; filename="{stored.name}-{stored.version}.lkb"',
                "ETag": f'"{stored.digest}"',
            }
        )
        await answer.prepare(ask.request)
        await answer.write(first)
        async for chunk in chunks:
            await answer.write(chunk)
        await answer.write_eof()
    return answer


async def remove(ask: Ask) -> None:
    await ask.rooms.importer.remove(ask.part("ref"), ask.who.by, ask.query.reason)


async def pin(ask: Ask) -> Bundle:
    await ask.rooms.importer.pin(ask.part("ref"), ask.body.pinned, ask.who.by)
    return (await ask.rooms.views.bundle(ask.part("ref"))).bundle


async def check(ask: Ask) -> Reply:
    return accepted(await ask.rooms.qualifier.check(ask.body, ask.who.by))


ROUTES = [
    Route(
        method="GET", path="/v1/bundles", permission="look", handler=list_bundles, answer=list[Bundle],
        query=BundlesQuery,
        summary="List the versions on this device",
    ),
    Route(
        method="GET", path="/v1/bundles/{ref}", permission="look", handler=get_bundle, answer=BundleDetail,
        summary="Show one version with its manifest, card, files and trials",
    ),
    Route(
        method="GET", path="/v1/bundles/{ref}/file", permission="look", handler=export, answer=bytes,
        media=OCTETS,
        summary="Download the bundle file, byte for byte as it was signed",
    ),
    Route(
        method="DELETE", path="/v1/bundles/{ref}", permission="bundles", handler=remove, answer=None,
        query=RemovalQuery, status=204,
        summary="Remove a version that is not in use",
    ),
    Route(
        method="PUT", path="/v1/bundles/{ref}/pin", permission="bundles", handler=pin, answer=Bundle,
        body=PinRequest,
        summary="Keep a version from being removed, or no longer",
    ),
    Route(
        method="POST", path="/v1/imports", permission="bundles", handler=receive, answer=Operation, upload=True,
        status=202,
        summary="Verify and store a bundle file; its trial on this device goes on in the operation",
    ),
    Route(
        method="POST", path="/v1/verifications", permission="test", handler=verify, answer=Verification,
        upload=True,
        summary="Verify a bundle file and store nothing",
    ),
    Route(
        method="POST", path="/v1/checks", permission="check", handler=check, answer=Operation,
        body=CheckRequest, status=202,
        summary="Try a version on this device; nothing changes on the line",
    ),
]  # fmt: skip
