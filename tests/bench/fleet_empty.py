"""The empty handler that calls of devices are compared with: aiohttp over the same TLS, a body in, nothing done.

`python -m tests.bench.fleet_empty AUTHORITY_FOLDER PORT`
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from pathlib import Path

import uvloop
from aiohttp import web

from lenskeep.fleet.held import HeldConnections


async def _answer(request: web.Request) -> web.Response:
    await request.read()
    return web.Response(body=b"")


async def _main(folder: Path, port: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(folder / "authority.crt")
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    app = web.Application()
    app.router.add_post("/v1/devices/{device}/sync", _answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    assert runner.server is not None
    held = HeldConnections(runner.server, context, 2000)
    held.open("127.0.0.1", port)
    print("ready", flush=True)
    await held.run()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner_:
        runner_.run(_main(Path(sys.argv[1]), int(sys.argv[2])))
