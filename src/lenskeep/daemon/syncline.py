"""The held line to the fleet: one call, one answer, over a connection that stays open.

Rules. The connection proves itself once and is used again; when it broke, the next one goes on with its TLS session. A
redirect is not followed, and an answer has a size and a time. Nothing is tried twice here but a call that met a
connection which somebody on the way had closed while it idled. A second call may go out while the first one is held by
the fleet; it gets a connection of its own, which is closed soon after.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from urllib.parse import quote

import aiohttp
import msgspec

from lenskeep.daemon.fleetline import fault_of, read_answer, translated
from lenskeep.daemon.way import REACH_S, Way
from lenskeep.errors import (
    FleetAnswerError,
    FleetBusyError,
)
from lenskeep.messages.sync import MEDIA_MSGPACK, Answer, Call

CONNECT_S, ANSWER_S = 10.0, 30.0
IDLE_S = 75.0
STALE_S = 1.0
CONNECTIONS = 2
HEADERS = {"Accept-Encoding": "identity", "Content-Type": MEDIA_MSGPACK, "Accept": MEDIA_MSGPACK}
LATER_STATUS = (429, 502, 503, 504, 507)
LATER_S_MAX = 3600.0


class _StaleError(Exception):
    """A connection was closed while nobody spoke. For this module; no person meets it."""


@dataclass(slots=True)
class _Use:
    """Whether a call went out on a connection that had been used before."""

    began_s: float
    again: bool = False


class SyncLine:
    """Speaks `POST /v1/devices/{id}/sync`."""

    def __init__(self, device: str, way: Way | None = None) -> None:
        self.after_s = 0.0  # what the fleet asked for when it sent us away
        self._device = device
        self._way = way or Way()
        self._session: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None

    async def ask(self, fleet: str, context: ssl.SSLContext, call: Call) -> Answer:
        """Ask once. Raises: what the fleet refuses with, FleetBusyError, PeerError, IdentityError, ConfigError."""
        for _ in range(CONNECTIONS):  # each of them may have been closed
            with contextlib.suppress(_StaleError):
                return await self._ask(fleet, context, call)
        return await self._ask(fleet, context, call, patient=False)

    async def _ask(self, fleet: str, context: ssl.SSLContext, call: Call, *, patient: bool = True) -> Answer:
        session = await self._held(context)
        url = f"{fleet}/v1/devices/{quote(self._device)}/sync"
        limits = aiohttp.ClientTimeout(total=call.wait_s + ANSWER_S, connect=REACH_S, sock_connect=CONNECT_S)
        used = _Use(began_s=time.monotonic())
        with self._judging(url, used, patient):
            async with session.post(
                url, data=msgspec.msgpack.encode(call), allow_redirects=False, timeout=limits, trace_request_ctx=used,
                **self._way.words(url, HEADERS),
            ) as answer:  # fmt: skip
                data = await read_answer(answer)
                if answer.status in LATER_STATUS and (after_s := _seconds(answer.headers.get("Retry-After", ""))):
                    self.after_s = after_s
                    raise FleetBusyError(f"{url} asks to come back in {after_s:.0f} s.")
                if answer.status != 200:
                    raise fault_of(answer.status, data, url)
        try:
            return msgspec.msgpack.decode(data, type=Answer)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise FleetAnswerError(f"The answer of {url} cannot be read: {error}.") from error

    @contextmanager
    def _judging(self, url: str, used: _Use, patient: bool) -> Iterator[None]:
        """Translate what a call met. Raises: _StaleError when it met a connection that was closed before."""
        with translated(url, self._way):
            try:
                yield
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                if patient and used.again and time.monotonic() - used.began_s < STALE_S:
                    raise _StaleError from None
                raise

    async def _held(self, context: ssl.SSLContext) -> aiohttp.ClientSession:
        """Return the session of this context; a renewed certificate begins another one."""
        if self._session is None or self._context is not context:
            await self.close()
            connector = aiohttp.TCPConnector(
                ssl=context, limit=CONNECTIONS, keepalive_timeout=IDLE_S, ttl_dns_cache=300
            )
            self._session = self._way.session(connector, trace_configs=[_noting_use()])
            self._context = context
        return self._session

    async def close(self) -> None:
        """Let the connection go."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


async def _note_use(_session: aiohttp.ClientSession, context: SimpleNamespace, _params: object) -> None:
    context.trace_request_ctx.again = True


def _noting_use() -> aiohttp.TraceConfig:
    trace = aiohttp.TraceConfig()
    trace.on_connection_reuseconn.append(_note_use)
    return trace


def _seconds(text: str) -> float:
    """Read a Retry-After in seconds; a date or nonsense counts as none."""
    try:
        return min(LATER_S_MAX, max(0.0, float(text)))
    except ValueError:
        return 0.0
