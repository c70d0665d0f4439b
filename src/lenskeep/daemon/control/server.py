"""The HTTP server: opens the doors, and walks every request through the same steps.

The way of a request: name it, refuse foreign sites, find its route, ask who it is and whether that role may, read query
and body strictly, give a repeated request its first answer, call the handler, answer. Whatever is raised on the way
becomes a problem document. Not here: what a route does (its own module), what the parts do (the rest of the daemon).
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import stat
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from weakref import WeakValueDictionary

import msgspec
from aiohttp import web

from lenskeep.config import Config
from lenskeep.daemon.control import answers, auth
from lenskeep.daemon.control.page import add_page
from lenskeep.daemon.control.requests import decode_body, decode_query, read_json
from lenskeep.daemon.control.rooms import Rooms
from lenskeep.daemon.control.route import JSON, Ask, Reply, Route
from lenskeep.daemon.control.streams import STREAMS, Streams
from lenskeep.daemon.control.table import ROUTES
from lenskeep.errors import RequestError

SOCKET_NAME = "lenskeep.sock"
STOP_S = 2.0
KEY_LENGTH_MAX = 128

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_ID = web.RequestKey("request_id", str) if hasattr(web, "RequestKey") else "request_id"
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


@asynccontextmanager
async def control_server(config: Config, rooms: Rooms, runtime_dir: Path) -> AsyncIterator[int]:
    """Answer on the Unix socket, and on 127.0.0.1 when a port is configured, until the block ends."""
    app = build_app(config, rooms)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_S, handle_signals=False)
    async with AsyncExitStack() as stack:
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        path = runtime_dir / SOCKET_NAME
        await _listen(runner, path)
        stack.callback(path.unlink, missing_ok=True)
        if config.control.port:
            await web.TCPSite(runner, "127.0.0.1", config.control.port, reuse_address=True).start()
        yield config.control.port
