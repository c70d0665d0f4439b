"""Connections that devices call on, at the real server: in pieces, ahead of answers, mixed with other requests, idle."""

from __future__ import annotations

import asyncio
import hashlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from lenskeep.fleet.callline import AHEAD_BYTES_MAX
from lenskeep.messages.control import Problem
from lenskeep.messages.sync import MEDIA_MSGPACK, Answer, Call, Happening, Record
from lenskeep.trust.tls import SERVER_NAME
from tests.fleetrig import WAIT_S, FleetServer, Member, running_fleet

IDLE_S, REQUEST_S = 1.2, 0.6


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    with running_fleet(request_s_max=REQUEST_S, idle_s_max=IDLE_S) as server:
        yield server


class Line:
    """A bare connection of a device."""

    def __init__(self, member: Member, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.member = member
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, member: Member) -> Line:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", member.fleet.port, ssl=member.context(), server_hostname=SERVER_NAME
        )
        return cls(member, reader, writer)

    def call(self, said: Call | bytes, *more: str, device: str = "") -> bytes:
        body = said if isinstance(said, bytes) else msgspec.msgpack.encode(said)
        lines = [f"POST /v1/devices/{device or self.member.device}/sync HTTP/1.1", "Host: x", *more]
        lines += [f"Content-Type: {MEDIA_MSGPACK}", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "\r\n"]).encode() + body

    async def heard(self) -> tuple[int, dict[str, str], bytes]:
        """Read one answer."""
        async with asyncio.timeout(WAIT_S):
            status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            body = await self.reader.readexactly(int(headers.get("content-length", "0")))
        return int(status.split()[1]), headers, body

    async def answer(self) -> Answer:
        status, _, body = await self.heard()
        assert status == 200, body
        return msgspec.msgpack.decode(body, type=Answer)

    async def ended(self) -> None:
        """Wait until the fleet hangs up."""
        async with asyncio.timeout(WAIT_S):
            try:
                while await self.reader.read(1 << 16):
                    pass
            except ConnectionError:
                pass
        self.writer.transport.abort()


@pytest.fixture(scope="module")
def member(fleet: FleetServer, tmp_path_factory: pytest.TempPathFactory) -> Member:
    return asyncio.run(Member(fleet, "line-1", tmp_path_factory.mktemp("member")).join())


@pytest.fixture
async def line(member: Member) -> AsyncIterator[Line]:
    made = await Line.open(member)
    yield made
    made.writer.transport.abort()


@pytest.fixture
def outbox(request: pytest.FixtureRequest) -> str:
    """A name of the test's own, so that its numbers begin at 0."""
    return hashlib.sha256(request.node.name.encode()).hexdigest()[:16]


def told(outbox: str, first: int, count: int) -> Call:
    records: list[Record] = [Happening(n=n, kind="other", at_ms=0, text="x" * 200) for n in range(first, first + count)]
    return Call(records=records, outbox=outbox, after=first - 1)


async def test_a_call_in_pieces_is_taken_whole_and_the_connection_goes_on(line: Line, outbox: str) -> None:
    data = line.call(told(outbox, 0, 300))
    for start in range(0, len(data), 10_000):
        line.writer.write(data[start : start + 10_000])
        await asyncio.sleep(0.01)
    assert (await line.answer()).taken == 299
    line.writer.write(line.call(told(outbox, 300, 1)))
    assert (await line.answer()).taken == 300


async def test_calls_that_do_not_wait_for_answers_are_answered_in_order(line: Line, outbox: str) -> None:
    data = b"".join(line.call(told(outbox, n, 1)) for n in range(20))
    line.writer.write(data[:-7])
    await asyncio.sleep(0.1)
    line.writer.write(data[-7:])
    assert [(await line.answer()).taken for _ in range(20)] == list(range(20))


async def test_another_request_on_the_connection_of_calls_is_answered_and_calls_after_it_too(
    line: Line, outbox: str
) -> None:
    for n in range(3):
        line.writer.write(line.call(told(outbox, n, 1)))
        assert (await line.answer()).taken == n
        line.writer.write(b"GET /v1/authority HTTP/1.1\r\nHost: x\r\n\r\n")
        status, headers, body = await line.heard()
        assert (status, headers["content-type"]) == (200, "application/json")
        assert b"BEGIN CERTIFICATE" in body


async def test_another_request_right_behind_a_call_waits_for_the_calls_answer(line: Line, outbox: str) -> None:
    line.writer.write(
        line.call(told(outbox, 0, 1)) + b"GET /v1/authority HTTP/1.1\r\nHost: x\r\n\r\n" + line.call(told(outbox, 1, 1))
    )
    assert (await line.answer()).taken == 0
    assert b"BEGIN CERTIFICATE" in (await line.heard())[2]
    assert (await line.answer()).taken == 1


async def test_a_call_that_is_written_otherwise_is_answered_alike(line: Line) -> None:
    line.writer.write(line.call(Call(outbox="a")))
    plain = await line.heard()
    line.writer.write(line.call(Call(outbox="a"), "X-Site: hall 3"))
    other = await line.heard()
    assert plain[0] == other[0] == 200
    marks = ("content-type", "cache-control", "x-content-type-options")
    assert [plain[1][name] for name in marks] == [other[1][name] for name in marks]
    assert msgspec.msgpack.decode(plain[2], type=Answer).known == msgspec.msgpack.decode(other[2], type=Answer).known


@pytest.mark.parametrize(
    ("body", "device", "status"), [(b"\xc1", "", 400), (b"", "", 400), (b"\x80", "somebody-else", 422)]
)
async def test_a_call_that_is_refused_says_why_and_the_connection_goes_on(
    line: Line, outbox: str, body: bytes, device: str, status: int
) -> None:
    line.writer.write(line.call(body, device=device))
    said, headers, problem = await line.heard()
    assert (said, headers["content-type"]) == (status, "application/problem+json")
    assert msgspec.json.decode(problem, type=Problem).code.startswith("LK-")
    line.writer.write(line.call(told(outbox, 0, 1)))
    assert (await line.answer()).taken == 0


async def test_who_has_no_certificate_is_refused_on_both_ways(fleet: FleetServer, tmp_path: Path) -> None:
    for more in ((), ("X-Site: hall 3",)):
        stranger = await Line.open(Member(fleet, "stranger", tmp_path))
        stranger.writer.write(stranger.call(Call(), *more))
        assert (await stranger.heard())[0] == 401
        stranger.writer.transport.abort()


async def test_a_strangers_body_is_not_waited_for(fleet: FleetServer, tmp_path: Path) -> None:
    stranger = await Line.open(Member(fleet, "stranger", tmp_path))
    head = f"POST /v1/devices/stranger/sync HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_MSGPACK}\r\n"
    stranger.writer.write(f"{head}Content-Length: 4000000\r\n\r\nx".encode())
    assert (await stranger.heard())[0] == 401
    await stranger.ended()


async def test_a_rest_that_does_not_come_ends_the_connection(line: Line, outbox: str) -> None:
    line.writer.write(line.call(told(outbox, 0, 1))[:-1])
    began_s = asyncio.get_running_loop().time()
    await line.ended()
    assert asyncio.get_running_loop().time() - began_s > REQUEST_S / 2


async def test_who_sends_ever_more_ahead_of_an_answer_is_hung_up_on(line: Line, outbox: str) -> None:
    line.writer.write(line.call(Call(wait_s=30.0)))
    for _ in range(20):
        line.writer.write(line.call(told(outbox, 0, 30)))
    await line.ended()


async def test_who_reads_no_answers_fills_no_memory_and_is_hung_up_on(line: Line, outbox: str) -> None:
    some = line.call(Call(outbox=outbox)) * 100  # one piece for TLS
    assert len(some) < 16 << 10
    with socket.socket() as bare:
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        bare.settimeout(WAIT_S)
        bare.connect(("127.0.0.1", line.member.fleet.port))
        deaf = line.member.context().wrap_socket(bare, server_hostname=SERVER_NAME)
        sent = 0
        with pytest.raises(OSError):
            for _ in range(500):
                await asyncio.to_thread(deaf.sendall, some)
                sent += len(some)
                await asyncio.sleep(0.02)  # these are answered before the next ones
        deaf.close()
    assert sent > 2 * AHEAD_BYTES_MAX
    other = await Line.open(line.member)
    other.writer.write(other.call(Call(outbox=outbox)))
    await other.answer()
    other.writer.transport.abort()


async def test_who_idles_is_hung_up_on_and_who_waits_for_news_is_not(line: Line) -> None:
    waiting = await Line.open(line.member)
    waiting.writer.write(waiting.call(Call(wait_s=2 * IDLE_S)))
    line.writer.write(line.call(Call()))
    await line.answer()
    await line.ended()
    assert (await waiting.answer()).next_s > 0
    waiting.writer.transport.abort()
