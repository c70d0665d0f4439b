"""Answers that do not end by themselves: events as SSE, the preview as MJPEG.

Rules. A slow reader slows its own stream only, and there are at most `STREAMS_MAX` at a time. Every event
carries its number as the SSE id, so that a reader can go on where it stopped; a comment every 15 s shows that
the line is alive. When the daemon stops, the streams are ended at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import msgspec
from aiohttp import web

from lenskeep.daemon.control.auth import WHO, Identity
from lenskeep.errors import ConflictError
from lenskeep.messages.control import Event
from lenskeep.messages.runner import Picture

T = TypeVar("T")

HEARTBEAT_S = 15.0
QUIET_S = 0.05  # what is kept comes at once; a pause means that there is no more
STREAMS_MAX = 32
RETRY_MS = 2000
BOUNDARY = "lenskeep-picture"


class Streams:
    """The streams that are open now."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[object], str] = {}

    @contextmanager
    def enter(self, who: Identity | None = None) -> Iterator[None]:
        """Count the running request as a stream; it ends with the token that opened it.

        Raises: ConflictError when there are too many.
        """
        if len(self._tasks) >= STREAMS_MAX:
            raise ConflictError(f"{STREAMS_MAX} streams are open already; close one first.")
        task = asyncio.current_task()
        assert task is not None, "a request runs in a task"
        self._tasks[task] = who.by if who is not None else ""
        left_s = None if who is None else who.left_s
        timer = None if left_s is None else asyncio.get_running_loop().call_later(left_s, task.cancel)
        try:
            yield
        finally:
            del self._tasks[task]
            if timer is not None:
                timer.cancel()

    def end_of(self, by: str) -> None:
        """End the streams of somebody who may not see them any more."""
        for task in [task for task, whose in self._tasks.items() if whose == by]:
            task.cancel()

    async def end(self, _app: web.Application) -> None:
        """End them all, so that the server can stop."""
        for task in list(self._tasks):
            task.cancel()


STREAMS = web.AppKey("streams", Streams)


@asynccontextmanager
async def closing(stream: AsyncIterator[T]) -> AsyncIterator[AsyncIterator[T]]:
    """Close a generator when its reader goes, not when the collector finds it."""
    try:
        yield stream
    finally:
        if isinstance(stream, AsyncGenerator):
            await stream.aclose()


async def send_events(
    request: web.Request, events: AsyncIterator[Event], types: frozenset[str] | None = None, *, follow: bool = True
) -> web.StreamResponse:
    """Answer with events until the reader goes; without `follow` until nothing more is waiting."""
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    with request.app[STREAMS].enter(request.get(WHO)), contextlib.suppress(ConnectionResetError):
        async with closing(_with_heartbeats(events, follow)) as beats:
            await anext(beats)  # from here on nothing is missed
            await answer.prepare(request)
            await answer.write(b"retry: %d\n\n" % RETRY_MS)
            async for event in beats:
                if event is None:
                    await answer.write(b": alive\n\n")
                elif types is None or event.type in types:
                    await answer.write(_sse(event))
    return answer


def _sse(event: Event) -> bytes:
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (event.sequence, event.type.encode(), msgspec.json.encode(event))


async def _with_heartbeats(events: AsyncIterator[Event], follow: bool) -> AsyncIterator[Event | None]:
    """Yield None as soon as the subscription stands, then events, with a None in every long pause."""
    pause_s = HEARTBEAT_S if follow else QUIET_S
    coming = asyncio.ensure_future(anext(events, None))
    try:
        await asyncio.sleep(0)  # the generator runs up to its first wait: it listens now
        yield None
        while True:
            done, _ = await asyncio.wait({coming}, timeout=pause_s)
            if not done:
                if not follow:
                    return
                yield None
                continue
            event = coming.result()
            if event is None or (not follow and event.type == "result"):
                return  # results are never kept, so the first one comes after all that is
            coming = asyncio.ensure_future(anext(events, None))
            yield event
    finally:
        coming.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await coming
        if isinstance(events, AsyncGenerator):
            await events.aclose()


def picture_headers(picture: Picture) -> dict[str, str]:
    """Say how old a picture is and what judged it."""
    return {
        "X-Frame-Age-Ms": str(picture.age_ms),
        "X-Captured-Ms": str(picture.captured_ms),
        "X-Model-Version": picture.bundle,
        "X-Outcome": picture.outcome,
    }


async def send_pictures(request: web.Request, pictures: AsyncIterator[Picture]) -> web.StreamResponse:
    """Answer with JPEG pictures until the reader goes; the first one is there before the first header goes out."""
    answer = web.StreamResponse(headers={"Content-Type": f"multipart/x-mixed-replace; boundary={BOUNDARY}"})
    with request.app[STREAMS].enter(request.get(WHO)), contextlib.suppress(ConnectionResetError):
        async with closing(pictures) as stream:
            async for picture in stream:
                if not answer.prepared:
                    await answer.prepare(request)
                await answer.write(_part(picture))
    return answer


def _part(picture: Picture) -> bytes:
    lines = [f"--{BOUNDARY}", "Content-Type: image/jpeg", f"Content-Length: {len(picture.jpeg)}"]
    lines += [f"{name}: {value}" for name, value in picture_headers(picture).items()]
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + picture.jpeg + b"\r\n"
