"""The HTTP server: opens the doors, and walks every request through the same steps.

The way of a request: name it, refuse foreign sites, find its route, ask who it is and whether that role may,
read query and body strictly, give a repeated request its first answer, call the handler, answer. Whatever is
raised on the way becomes a problem document. Not here: what a route does (its own module), what the parts do
(the rest of the daemon).
"""

from __future__ import annotations

import errno
import re
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from lenskeep.config import Config
from lenskeep.daemon.control import answers, auth
from lenskeep.daemon.control.page import add_page
from lenskeep.daemon.control.repeat import Repeats
from lenskeep.daemon.control.requests import decode_body, decode_query, read_json
from lenskeep.daemon.control.rooms import Rooms
from lenskeep.daemon.control.route import Ask, Reply, Route
from lenskeep.daemon.control.streams import STREAMS, Streams
from lenskeep.daemon.control.table import ROUTES
from lenskeep.errors import ConfigError, ConflictError

SOCKET_NAME = "lenskeep.sock"
SOCKET_MODE = 0o660
STOP_S = 2.0
READ_BUFFER_BYTES = 512 << 10  # an upload is hashed and written in pieces of about this size

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
REQUEST_ID = web.RequestKey("request_id", str)
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")


@asynccontextmanager
async def control_server(config: Config, rooms: Rooms, runtime_dir: Path) -> AsyncIterator[None]:
    """Answer on the Unix socket, and on 127.0.0.1 when a port is configured, until the block ends.

    Raises: ConfigError when a door cannot be opened as configured, ConflictError when another service holds
    it.
    """
    runner = web.AppRunner(
        build_app(config, rooms), access_log=None, shutdown_timeout=STOP_S, handle_signals=False,
        auto_decompress=False, read_bufsize=READ_BUFFER_BYTES,
    )  # fmt: skip
    async with AsyncExitStack() as stack:
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        path = runtime_dir / SOCKET_NAME
        await _open_socket(runner, path)
        stack.callback(path.unlink, missing_ok=True)
        if config.control.port:
            await _open_port(runner, config.control.port)
        yield


async def _open_socket(runner: web.AppRunner, path: Path) -> None:
    try:
        listener = _bind(path)
    except OSError as error:
        raise ConfigError(f"storage.runtime_dir: the control socket {path} cannot be made: {error}.") from error
    await web.SockSite(runner, listener).start()


def _bind(path: Path) -> socket.socket:
    """Take the path. The mode is set between bind and listen, so nobody can come in before it is right."""
    if _is_served(path):
        raise ConflictError(
            f"Another Lenskeep service answers at {path} already.", hint="Stop it first: systemctl stop lenskeep."
        )
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(SOCKET_MODE)
    except OSError:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0


async def _open_port(runner: web.AppRunner, port: int) -> None:
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
    except OSError as error:
        why = "another program listens there" if error.errno == errno.EADDRINUSE else str(error)
        raise ConfigError(f"control.port: 127.0.0.1:{port} cannot be opened: {why}.") from error


def build_app(config: Config, rooms: Rooms) -> web.Application:
    """Put the table of routes and the page behind the steps that every request takes."""
    app = web.Application(middlewares=[_guard(auth.allowed_hosts(config.control, config.control.port))])
    app[STREAMS] = Streams()
    app.on_shutdown.append(app[STREAMS].end)
    app.on_response_prepare.append(_finish_headers)
    repeats = Repeats(rooms.idempotency)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, _serve(route, config, rooms, repeats))
    add_page(app)
    return app


def _guard(hosts: frozenset[str]) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Name the request, refuse foreign sites, and turn whatever is raised into a problem document."""
        given = request.headers.get(answers.REQUEST_ID, "")
        request[REQUEST_ID] = given if _GIVEN_ID.fullmatch(given) else uuid.uuid4().hex[:16]
        try:
            if auth.is_tcp(request):
                auth.check_site(request, hosts)
            return await handler(request)
        except Exception as error:  # noqa: BLE001 - the root of a request: every fault leaves as a problem, none silently
            return answers.translate(error, request, request[REQUEST_ID])

    return guard


async def _finish_headers(request: web.Request, answer: web.StreamResponse) -> None:
    answer.headers.update(answers.GUARD_HEADERS)
    answer.headers[answers.REQUEST_ID] = request.get(REQUEST_ID, "")
    answer.headers.setdefault("Cache-Control", "no-store")
    answer.headers.pop("Server", None)


def _serve(route: Route, config: Config, rooms: Rooms, repeats: Repeats) -> Handler:
    async def serve(request: web.Request) -> web.StreamResponse:
        who = auth.Identity("anybody", "viewer", anonymous=True)
        if route.permission is not None:
            known = await auth.identify(request, config.control, rooms.tokens)
            auth.require(known, route.permission)
            assert known is not None, "require lets nobody pass where a permission is needed"
            who = request[auth.WHO] = known
        if "Content-Encoding" in request.headers:
            raise web.HTTPUnsupportedMediaType(reason="an encoded body is not taken")
        query = decode_query(request, route.query)
        if route.body is None:
            _check_reach(route, who, request, None, config)
            return await _answer(route, Ask(request, rooms, config, who, query, None))
        data = await read_json(request)
        ask = Ask(request, rooms, config, who, query, decode_body(data, route.body))
        _check_reach(route, who, request, ask.body, config)
        return await repeats.once(route, ask, data, _answer)

    return serve


def _check_reach(route: Route, who: auth.Identity, request: web.Request, body: object, config: Config) -> None:
    """Look which slot a change is about: the path says it, or the body, or there is only one."""
    if route.permission is None:
        return
    slot = request.match_info.get("slot") or getattr(body, "slot", None)
    if slot is None and len(config.slot) == 1:
        slot = config.slot[0].name
    auth.require_reach(who, route.permission, slot)


async def _answer(route: Route, ask: Ask) -> web.StreamResponse:
    value = await route.handler(ask)
    if isinstance(value, web.StreamResponse):
        return value
    reply = value if isinstance(value, Reply) else Reply(value)
    return answers.json_answer(reply.value, reply.status or route.status, reply.headers)
