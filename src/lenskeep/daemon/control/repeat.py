"""A request sent twice is done once: the Idempotency-Key of a technician who taps twice, or of a script that
retries.

Rules. A key stands for one request of one asker; with another body it is refused. The second of two at the
same time waits for the first. Only an answer that did something is kept; a refusal changed nothing and may be
tried again. An answer that holds a secret is never kept, so there a key is not taken.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from weakref import WeakValueDictionary

import msgspec
from aiohttp import web

from lenskeep.daemon.control.rooms import Idempotency
from lenskeep.daemon.control.route import JSON, Ask, Route
from lenskeep.errors import RequestError

HEADER = "Idempotency-Key"
KEY_LENGTH_MAX = 128

Answer = Callable[[Route, Ask], Awaitable[web.StreamResponse]]


class Repeats:
    """Answers already given, and the requests that are being answered now."""

    def __init__(self, store: Idempotency) -> None:
        self._store = store
        self._busy: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def once(self, route: Route, ask: Ask, data: bytes, answer: Answer) -> web.StreamResponse:
        """Answer, or give again what the same request got before."""
        key = ask.request.headers.get(HEADER)
        if key is None or route.method != "POST":
            return await answer(route, ask)
        if not route.repeatable:
            raise RequestError(f"{HEADER} is not taken here, because the answer holds a secret. Nothing was changed.")
        if not 0 < len(key) <= KEY_LENGTH_MAX:
            raise RequestError(f"{HEADER} must have 1 to {KEY_LENGTH_MAX} characters. Nothing was changed.")
        digest = hashlib.sha256(b"\0".join([ask.who.by.encode(), ask.request.path.encode(), data])).hexdigest()
        async with self._busy.setdefault(key, asyncio.Lock()):
            given = await self._store.find(key, digest)
            if given is not None:
                return _again(*given)
            fresh = await answer(route, ask)
            if isinstance(fresh, web.Response) and isinstance(fresh.body, bytes) and fresh.status < 300:
                await self._store.store(key, digest, fresh.status, _kept(fresh))
            return fresh


class _Kept(msgspec.Struct):
    headers: dict[str, str]
    body: msgspec.Raw


def _kept(answer: web.Response) -> bytes:
    """Keep the body with the headers that belong to it."""
    headers = {name: answer.headers[name] for name in ("Location", "ETag") if name in answer.headers}
    assert isinstance(answer.body, bytes), "the caller looked"
    return msgspec.json.encode(_Kept(headers, msgspec.Raw(answer.body)))


def _again(status: int, body: bytes) -> web.Response:
    kept = msgspec.json.decode(body, type=_Kept)
    headers = {**kept.headers, "Idempotency-Replayed": "true"}
    return web.Response(body=bytes(kept.body), status=status, headers=headers, content_type=JSON)
