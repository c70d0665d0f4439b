"""Cameras: how they do, what they see, whether they can be opened."""

from __future__ import annotations

from typing import Annotated, Any

from aiohttp import web
from msgspec import Meta, Struct

from lenskeep.daemon.control.route import Ask, Reply, Route
from lenskeep.daemon.control.streams import picture_headers, send_pictures
from lenskeep.messages.runner import CameraState

SNAPSHOT_TIMEOUT_S = 5.0


class PreviewQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """Watching must not cost the line its deadline, so pictures are few."""

    fps: Annotated[float, Meta(gt=0, le=5)] = 2.0


class ProbeQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """How long to look."""

    seconds: Annotated[float, Meta(gt=0, le=60)] = 5.0


async def cameras(ask: Ask) -> list[CameraState]:
    return await ask.rooms.views.cameras()


async def snapshot(ask: Ask) -> web.Response:
    picture = await ask.rooms.supervisor.snapshot(ask.part("camera"), SNAPSHOT_TIMEOUT_S)
    return web.Response(body=picture.jpeg, content_type="image/jpeg", headers=picture_headers(picture))


async def preview(ask: Ask) -> web.StreamResponse:
    return await send_pictures(ask.request, ask.rooms.supervisor.pictures(ask.part("camera"), ask.query.fps))


async def probe(ask: Ask) -> Reply:
    return Reply(await ask.rooms.supervisor.probe(ask.part("camera"), ask.query.seconds))


async def devices(ask: Ask) -> list[dict[str, Any]]:
    return await ask.rooms.supervisor.list_devices()


ROUTES = [
    Route(
        method="GET", path="/v1/cameras", permission="look", handler=cameras, answer=list[CameraState],
        summary="List the configured cameras and how they do",
    ),
    Route(
        method="GET", path="/v1/cameras/{camera}/snapshot.jpg", permission="look", handler=snapshot, answer=bytes,
        media="image/jpeg",
        summary="Show what the camera sees now, with the frame's age in the headers",
    ),
    Route(
        method="GET", path="/v1/cameras/{camera}/preview.mjpg", permission="look", handler=preview, answer=bytes,
        media="multipart/x-mixed-replace", query=PreviewQuery,
        summary="Watch the camera, a few pictures a second",
    ),
    Route(
        method="POST", path="/v1/cameras/{camera}/test", permission="test", handler=probe,
        answer=dict[str, Any], query=ProbeQuery,
        summary="Open the camera apart from the line and measure what it delivers",
    ),
    Route(
        method="GET", path="/v1/camera-devices", permission="look", handler=devices, answer=list[dict[str, Any]],
        summary="List the cameras that are plugged into this machine",
    ),
]  # fmt: skip
