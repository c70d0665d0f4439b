"""The repository's files as a fleet serves them: every range is the very file, on either loop, plain and over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import psutil
import pytest

from lenskeep.trust.names import target_file
from tests.ports import free_port

SHA256 = "ab" * 32
NAME = target_file("models/cap-inspect/1.0.0.lkb", SHA256)
SIZE = 24_000_000

SERVER = """
import asyncio, ssl, sys
from pathlib import Path
from aiohttp import web
from lenskeep.fleet.repository import Repository

async def main(folder, port, kind):
    context = None
    if kind == "tls":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.crt", folder / "server.key")
    app = web.Application()
    app.add_routes(Repository(folder).routes())
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    await asyncio.Event().wait()

folder, port, kind, loop = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
if loop == "uvloop":
    import uvloop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(folder, port, kind))
else:
    asyncio.run(main(folder, port, kind))
"""


def content() -> bytes:
    return random.Random(7).randbytes(SIZE)


@contextlib.asynccontextmanager
async def serving(folder: Path, kind: str, loop: str) -> AsyncIterator[tuple[str, psutil.Process]]:
    """Serve a folder in a process of its own."""
    port = free_port()
    file = folder / NAME
    file.parent.mkdir(parents=True)
    file.write_bytes(content())
    if kind == "tls":
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
             "-subj", "/CN=x", "-keyout", folder / "server.key", "-out", folder / "server.crt"],
            check=True, capture_output=True,
        )  # fmt: skip
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, folder, str(port), kind, loop)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.close()
                break
            except OSError:
                assert time.monotonic() < deadline and child.returncode is None
                await asyncio.sleep(0.05)
        yield (
            f"{'https' if kind == 'tls' else 'http'}://127.0.0.1:{port}/v1/repository/{NAME}",
            psutil.Process(child.pid),
        )
    finally:
        child.kill()
        await child.wait()


def session() -> aiohttp.ClientSession:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context))


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("kind", ["plain", "tls"])
async def test_every_range_is_the_very_file_at_a_low_cost(tmp_path: Path, kind: str, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    data = content()
    async with serving(tmp_path, kind, loop) as (url, server), session() as asking:
        before = sum(server.cpu_times()[:2])
        for _ in range(4):
            async with asking.get(url) as answer:
                assert answer.status == 200 and await answer.read() == data
                assert answer.headers["Cache-Control"].endswith("immutable")
        spent_s = sum(server.cpu_times()[:2]) - before
        print(f"{kind} {loop}: {spent_s / (4 * SIZE / 2**30):.2f} CPU s/GiB")
        assert spent_s < 4 * SIZE / 2**30 * 3.0, "asyncio's own sendfile over TLS costs 3.8 and more"
        for begin, end in ((0, 1), (1, 2048), (SIZE - 1, SIZE), (1_000_000, 3_500_000)):
            async with asking.get(url, headers={"Range": f"bytes={begin}-{end - 1}"}) as answer:
                assert answer.status == 206 and await answer.read() == data[begin:end]
        async with asking.get(url) as answer:
            etag = answer.headers["ETag"]
            await answer.content.readexactly(1000)  # and then hang up in the middle
        async with asking.get(url, headers={"If-None-Match": etag}) as answer:
            assert answer.status == 304
        async with asking.head(url) as answer:
            assert answer.status == 200 and answer.content_length == SIZE
        async with asking.get(url, headers={"Range": f"bytes={SIZE}-"}) as answer:
            assert answer.status == 416


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_many_at_once_each_get_the_very_file(tmp_path: Path, loop: str) -> None:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    data = content()
    async with serving(tmp_path, "plain", loop) as (url, server), session() as asking:

        async def one() -> bool:
            async with asking.get(url) as answer:
                return await answer.read() == data

        assert all(await asyncio.gather(*(one() for _ in range(8))))
        held = [await asyncio.open_connection("127.0.0.1", int(url.split(":")[2].split("/")[0])) for _ in range(4)]
        for _, writer in held:  # readers that never read
            writer.write(f"GET /v1/repository/{NAME} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            await writer.drain()
        assert await asyncio.wait_for(one(), 10)
        for _, writer in held:
            writer.transport.abort()
        assert await asyncio.wait_for(one(), 10)
        assert server.num_fds() < 60
