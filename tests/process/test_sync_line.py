"""The held line of a device to its fleet, over real TLS: sessions go on, refusals are understood, two calls at once."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from lenskeep.clock import Clock
from lenskeep.daemon.syncline import SyncLine
from lenskeep.errors import FleetAnswerError, FleetBusyError, FleetUnreachableError
from lenskeep.fleet.authority import FleetAuthority, open_authority
from lenskeep.messages.sync import Answer, Call
from lenskeep.trust import tls

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> FleetAuthority:
    return open_authority(tmp_path_factory.mktemp("authority"), Clock(), 30)[0]


@asynccontextmanager
async def door(authority: FleetAuthority, handler: Handler) -> AsyncIterator[str]:
    app = web.Application()
    app.router.add_post("/v1/devices/{device}/sync", handler)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=authority.server_context()).start()
        yield f"https://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def said(answer: Answer) -> web.Response:
    return web.Response(body=msgspec.msgpack.encode(answer), content_type="application/msgpack")


def context(authority: FleetAuthority) -> ssl.SSLContext:
    return tls.fleet_context(authority.pem, Clock())


async def test_a_connection_is_held_and_the_next_one_goes_on_with_its_session(authority: FleetAuthority) -> None:
    seen: list[tuple[int, bool]] = []

    async def answer(request: web.Request) -> web.Response:
        assert request.transport is not None
        connection: ssl.SSLObject = request.transport.get_extra_info("ssl_object")
        seen.append((id(request.transport), connection.session_reused is True))
        return said(Answer(taken=-1))

    line, shown = SyncLine("cam-1"), context(authority)
    async with door(authority, answer) as url:
        for _ in range(3):
            await line.ask(url, shown, Call())
        await line.close()
        await line.ask(url, shown, Call())
        await line.close()
    assert len({number for number, _ in seen[:3]}) == 1, "one connection for three calls"
    assert [reused for _, reused in seen] == [False, False, False, True]


async def test_a_second_call_passes_one_that_the_fleet_holds(authority: FleetAuthority) -> None:
    news = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        call = msgspec.msgpack.decode(await request.read(), type=Call)
        if call.wait_s:
            await news.wait()
        return said(Answer(taken=call.seen))

    line, shown = SyncLine("cam-1"), context(authority)
    async with door(authority, answer) as url:
        held = asyncio.create_task(line.ask(url, shown, Call(seen=1, wait_s=50.0)))
        beside = await line.ask(url, shown, Call(seen=2))
        assert beside.taken == 2
        assert not held.done()
        news.set()
        assert (await held).taken == 1
        await line.close()


async def test_a_fleet_that_sends_us_away_is_believed_for_how_long(authority: FleetAuthority) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=503, headers={"Retry-After": "17"})

    line = SyncLine("cam-1")
    async with door(authority, answer) as url:
        with pytest.raises(FleetBusyError):
            await line.ask(url, context(authority), Call())
        assert line.after_s == 17.0
        await line.close()


@pytest.mark.parametrize(
    "body", [b"<html>sign in</html>", b"", msgspec.msgpack.encode({"taken": "all"}), b"x" * 100_000]
)
async def test_an_answer_that_is_none_is_a_fault_and_not_an_acknowledgement(
    authority: FleetAuthority, body: bytes
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(body=body)

    line = SyncLine("cam-1")
    async with door(authority, answer) as url:
        with pytest.raises(FleetAnswerError):
            await line.ask(url, context(authority), Call())
        await line.close()


async def test_a_redirect_is_not_followed(authority: FleetAuthority) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "/elsewhere"})

    line = SyncLine("cam-1")
    async with door(authority, answer) as url:
        with pytest.raises(FleetAnswerError):
            await line.ask(url, context(authority), Call())
        await line.close()


async def test_nobody_there_is_said_so(authority: FleetAuthority) -> None:
    line = SyncLine("cam-1")
    with pytest.raises(FleetUnreachableError):
        await line.ask("https://127.0.0.1:9", context(authority), Call())
    await line.close()


async def test_the_server_of_another_authority_hears_nothing(authority: FleetAuthority, tmp_path: Path) -> None:
    heard: list[bytes] = []

    async def answer(request: web.Request) -> web.Response:
        heard.append(await request.read())
        return said(Answer(taken=99))

    other = open_authority(tmp_path / "other", Clock(), 30)[0]
    line = SyncLine("cam-1")
    async with door(other, answer) as url:
        with pytest.raises(Exception, match="Nothing was sent"):
            await line.ask(url, context(authority), Call())
        await line.close()
    assert heard == []
