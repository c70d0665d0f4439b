"""The head of a call, read without a library: whatever is read at all is read as aiohttp's parser reads it."""

from __future__ import annotations

import asyncio
import random
from unittest import mock

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import example, given
from hypothesis import strategies as st

from lenskeep.fleet.callline import HEAD_BYTES_MAX, read_call

BODY_MAX = 4 << 20
PLAIN = (
    b"POST /v1/devices/cam-7/sync HTTP/1.1\r\nHost: fleet:8443\r\nAccept-Encoding: identity\r\n"
    b"Content-Type: application/msgpack\r\nAccept: application/msgpack\r\nContent-Length: 3\r\n"
    b"User-Agent: Python/3.13 aiohttp/3.14.5\r\n\r\nabc"
)
PIECES = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b": ", b",", b"\0", b"\xff", b"0", b"+3", b"-1", b"3, 3", b"0x3", b"3\r\n 4",
    b"Content-Length: 3\r\n", b"Content-Length: 4\r\n", b"content-length: 9\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Host: other\r\n", b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\n", b"/../", b"%2f",
    b"HTTP/1.0", b"GET", b"?a=b", b"#", b"Content-Encoding: gzip\r\n", b" Content-Length: 5\r\n", b"\r\n\r\n",
]  # fmt: skip


def by_aiohttp(data: bytes) -> tuple[str, str, str, int] | None:
    """Return method, path, media and length of a head; None when it is refused, not whole, or asks for more."""
    loop = asyncio.new_event_loop()
    try:
        protocol = BaseProtocol(loop, None)
        protocol.transport = mock.create_autospec(asyncio.Transport, instance=True)
        parser = HttpRequestParser(protocol, loop, 1 << 16, auto_decompress=False)
        protocol._parser = parser
        try:
            messages, _, _ = parser.feed_data(data)
        except HttpProcessingError:
            return None
        if not messages:
            return None
        head = messages[0][0]
        if head.should_close or head.upgrade or head.chunked or head.compression:
            return None
        length = int(head.headers.get("Content-Length", "-1"))
        return head.method, head.path, head.headers.get("Content-Type", ""), length
    finally:
        loop.close()


def assert_read_alike(data: bytes) -> bool:
    read = read_call(data, BODY_MAX)
    if read is None:
        return False
    found = by_aiohttp(data[: read.begins])
    assert found is not None, data
    method, path, media, length = found
    assert (method, path) == ("POST", f"/v1/devices/{read.device}/sync")
    assert length == read.ends - read.begins
    assert read.media in (media, "")
    assert data[: read.begins].endswith(b"\r\n\r\n") and data.index(b"\r\n\r\n") + 4 == read.begins
    return True


def test_a_call_as_devices_write_it_is_read() -> None:
    read = read_call(PLAIN, BODY_MAX)
    assert read is not None
    assert (read.device, read.media, PLAIN[read.begins : read.ends]) == ("cam-7", "application/msgpack", b"abc")
    assert assert_read_alike(PLAIN)


@pytest.mark.parametrize("seed", range(20))
def test_heads_that_were_tampered_with_are_read_as_by_aiohttp_or_left_to_it(seed: int) -> None:
    rng, read = random.Random(seed), 0
    for _ in range(200):
        data = bytearray(PLAIN)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            at, piece = rng.randrange(len(data)), rng.choice(PIECES)
            data[at : at + rng.choice((0, 0, 1, len(piece)))] = piece
        read += assert_read_alike(bytes(data))
    assert read, f"seed {seed}: every case was refused, so nothing was compared"


@given(st.lists(st.sampled_from([line + b"\r\n" for line in PLAIN.split(b"\r\n")[1:-2]] + PIECES), max_size=8))
@example([b"Host: x\r\n", b"Content-Length: 3\r\n", b"Content-Length: 3\r\n"])
@example([b"Content-Length: 3\r\n"])
def test_lines_in_any_order_are_read_as_by_aiohttp_or_left_to_it(lines: list[bytes]) -> None:
    assert_read_alike(b"POST /v1/devices/cam-7/sync HTTP/1.1\r\n" + b"".join(lines) + b"\r\nabc")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Content-Length: 3", b"Content-Length: 4194305"), (b"Content-Length: 3", b"Content-Length: 99999999"),
        (b"Content-Length: 3\r\n", b""), (b"Content-Length: 3", b"Content-Length: 3\r\nContent-Length: 3"),
        (b"Host: fleet:8443\r\n", b""), (b"Host: fleet:8443", b"Host: a\r\nHost: b"),
        (b"Accept: ", b"Transfer-Encoding: chunked\r\nAccept: "), (b"Accept: ", b"Expect: 100-continue\r\nAccept: "),
        (b"Accept: ", b"Connection: close\r\nAccept: "), (b"Accept: ", b"Content-Encoding: gzip\r\nAccept: "),
        (b"HTTP/1.1", b"HTTP/1.0"), (b"POST", b"PUT"), (b"cam-7/sync", b"cam-7/record"), (b"cam-7", b"cam%2d7"),
        (b"User-Agent: ", b"User-Agent: " + b"x" * HEAD_BYTES_MAX), (b"\r\n", b"\n"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_aiohttp(old: bytes, new: bytes) -> None:
    assert old in PLAIN
    assert read_call(PLAIN.replace(old, new), BODY_MAX) is None
