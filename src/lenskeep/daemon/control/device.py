"""The device itself: status, health, configuration, and what monitoring systems ask."""

from __future__ import annotations

import re

import msgspec
from aiohttp import web
from msgspec import Struct

from lenskeep.config import Config
from lenskeep.daemon.control.route import Ask, Reply, Route
from lenskeep.messages.control import Check, Operation, ScrubView, Status

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


class Liveness(Struct, frozen=True):
    """The event loop turns; `failing` holds the codes of what keeps the device from being ready."""

    ok: bool
    failing: list[str] = []


async def status(ask: Ask) -> Status:
    return await ask.rooms.views.status()


async def health(ask: Ask) -> list[Check]:
    return await ask.rooms.views.health()


async def configuration(ask: Ask) -> Config:
    """Return what is in force; the passwords of camera addresses stay here."""
    cameras = [
        msgspec.structs.replace(camera, source=_CREDENTIALS.sub("***@", camera.source)) for camera in ask.config.camera
    ]
    return msgspec.structs.replace(ask.config, camera=cameras)


async def livez(ask: Ask) -> Reply:
    alive = ask.rooms.views.live()
    return Reply(Liveness(ok=alive), 200 if alive else 503)


async def readyz(ask: Ask) -> Reply:
    failing = ask.rooms.views.ready()
    return Reply(Liveness(ok=not failing, failing=failing), 503 if failing else 200)


async def metrics(ask: Ask) -> web.Response:
    text = ask.rooms.metrics.prometheus()
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def scrub(ask: Ask) -> ScrubView:
    return await ask.rooms.scrubber.view()


async def start_scrub(ask: Ask) -> Reply:
    operation = await ask.rooms.scrubber.start(ask.who.by)
    return Reply(operation, 202, {"Location": f"/v1/operations/{operation.id}"})


ROUTES = [
    Route(
        method="GET", path="/v1/status", permission="look", handler=status, answer=Status,
        summary="Show the device on one screen",
    ),
    Route(
        method="GET", path="/v1/health", permission="look", handler=health, answer=list[Check],
        summary="Examine the device; each finding with its code and fix",
    ),
    Route(
        method="GET", path="/v1/config", permission="look", handler=configuration, answer=Config,
        summary="Show the configuration in force, without passwords",
    ),
    Route(
        method="GET", path="/v1/scrub", permission="look", handler=scrub, answer=ScrubView,
        summary="Show how far the slow reading of all stored files is, and what it found",
    ),
    Route(
        method="POST", path="/v1/scrubs", permission="check", handler=start_scrub, answer=Operation, status=202,
        summary="Read all stored files now; nothing changes on the line",
    ),
    Route(
        method="GET", path="/livez", permission=None, handler=livez, answer=Liveness,
        summary="Say whether the service works at all",
    ),
    Route(
        method="GET", path="/readyz", permission=None, handler=readyz, answer=Liveness,
        summary="Say whether every slot inspects; 503 with the failing codes otherwise",
    ),
    Route(
        method="GET", path="/healthz", permission=None, handler=readyz, answer=Liveness,
        summary="The same as /readyz",
    ),
    Route(
        method="GET", path="/metrics", permission="look", handler=metrics, answer=str, media="text/plain",
        summary="Numbers in the Prometheus text format",
    ),
]  # fmt: skip
