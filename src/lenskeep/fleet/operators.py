"""The operators' door: a Unix socket with peer credentials, and loopback with tokens.

Rules. Root and the service's own account are admin, the socket's group has the configured role, a token has its own.
Who lets devices in or out must be operator; who makes tokens for others must be admin. Every deed is written down.
"""

from __future__ import annotations

import hashlib
import os
import pwd
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

from aiohttp import web

from lenskeep.clock import Clock, rfc3339
from lenskeep.errors import NotPermittedError, NotSignedInError
from lenskeep.fleet import answers
from lenskeep.fleet.admission import Admission
from lenskeep.fleet.authority import FleetAuthority
from lenskeep.fleet.reports import Reports
from lenskeep.fleet.store.store import Store
from lenskeep.messages.fleet import (
    FLEET_ROLES,
    FleetRole,
    GrantAsk,
    InvitationAsk,
    OperatorToken,
    OperatorTokenAsk,
    RevocationAsk,
)
from lenskeep.trust.stick import REPORT_BYTES_MAX

_CREDENTIALS = struct.Struct("3i")
SO_PEERGROUPS = 59  # Linux; not among the names of the socket module
GROUPS_MAX = 256
DEEDS_MAX = 1000


@dataclass(frozen=True)
class Operator:
    """Who is asking."""

    by: str
    role: FleetRole


Ask = Callable[[web.Request, Operator], Awaitable[web.StreamResponse]]
Route = tuple[str, str, FleetRole, Ask]  # method, path, the least role, what answers


class OperatorDoor:
    """What operators may ask."""

    def __init__(
        self, store: Store, admission: Admission, reports: Reports, authority: FleetAuthority, clock: Clock, *,
        group_role: FleetRole, request_s_max: float,
    ) -> None:  # fmt: skip
        self._store = store
        self._admission = admission
        self._reports = reports
        self._authority = authority
        self._clock = clock
        self._group_role = group_role
        self._request_s_max = request_s_max

    def app(self, more: Iterable[Route] = ()) -> web.Application:
        """Return the door's application; `more` are routes of other rooms behind the same rules."""
        app = web.Application(middlewares=[answers.guard], client_max_size=REPORT_BYTES_MAX)
        table: list[Route] = [
            ("GET", "/v1/authority", "viewer", self._show_authority),
            ("GET", "/v1/devices", "viewer", self._devices),
            ("GET", "/v1/devices/{device}", "viewer", self._device),
            ("POST", "/v1/devices/{device}/revocation", "operator", self._revoke),
            ("POST", "/v1/devices/{device}/reports", "operator", self._take),
            ("POST", "/v1/invitations", "operator", self._invite),
            ("POST", "/v1/certificates", "operator", self._grant),
            ("GET", "/v1/alarms", "viewer", self._alarms),
            ("POST", "/v1/alarms/{id:[0-9]{1,15}}/acceptance", "operator", self._accept),
            ("GET", "/v1/deeds", "viewer", self._deeds),
            ("GET", "/v1/tokens", "admin", self._tokens),
            ("POST", "/v1/tokens", "admin", self._add_token),
            ("DELETE", "/v1/tokens/{name}", "admin", self._remove_token),
            *more,
        ]
        for method, path, role, ask in table:
            app.router.add_route(method, path, self._for(role, ask))
        return app

    def _for(self, role: FleetRole, ask: Ask) -> answers.Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            who = await self._identify(request)
            if FLEET_ROLES.index(who.role) < FLEET_ROLES.index(role):
                raise NotPermittedError(f"This needs the role {role}; {who.by} is {who.role}. Nothing was changed.")
            return await ask(request, who)

        return handle

    async def _identify(self, request: web.Request) -> Operator:
        connection = request.get_extra_info("socket")
        if connection is not None and connection.family == socket.AF_UNIX:
            return _peer(connection, self._group_role)
        scheme, _, secret = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() == "bearer" and secret:
            found = await self._store.operator(_hash(secret.strip()), now_ms=self._clock.now_ms())
            if found is not None:
                name, role = found
                return Operator(f"token:{name}", next(each for each in FLEET_ROLES if each == role))
        raise NotSignedInError(
            "The fleet's port needs a token (Authorization: Bearer). Nothing was changed.",
            hint="An administrator makes one on the fleet's machine: lenskeep fleet operator add NAME --role operator.",
        )

    # --- looking --------------------------------------------------------------------------------------------------

    async def _show_authority(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said(self._authority.view())

    async def _devices(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._store.devices())

    async def _device(self, request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._store.device(request.match_info["device"]))

    async def _alarms(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._store.alarms())

    async def _deeds(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._store.deeds(DEEDS_MAX))

    # --- devices in and out ---------------------------------------------------------------------------------------

    async def _invite(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, InvitationAsk, self._request_s_max)
        return answers.said(await self._admission.invite(ask, who.by), 201)

    async def _grant(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, GrantAsk, self._request_s_max)
        return answers.said(await self._admission.grant(ask, who.by), 201)

    async def _revoke(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, RevocationAsk, self._request_s_max)
        device = request.match_info["device"]
        await self._admission.revoke(device, reason=ask.reason, by=who.by)
        return answers.said(await self._store.device(device))

    async def _take(self, request: web.Request, _who: Operator) -> web.Response:
        """Take a report that came on a stick: its signature counts, not who carries it."""
        data = await answers.read_bytes(request, REPORT_BYTES_MAX, self._request_s_max)
        return answers.said(await self._reports.take(data, request.match_info["device"]))

    async def _accept(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, RevocationAsk, self._request_s_max)
        now_ms = self._clock.now_ms()
        await self._store.accept(int(request.match_info["id"]), reason=ask.reason, by=who.by, now_ms=now_ms)
        return answers.said(None)

    # --- other operators ------------------------------------------------------------------------------------------

    async def _tokens(self, _request: web.Request, _who: Operator) -> web.Response:
        found = await self._store.operators()
        return answers.said(
            [{"name": name, "role": role, "expires": rfc3339(expires_ms / 1000)} for name, role, expires_ms in found]
        )

    async def _add_token(self, request: web.Request, who: Operator) -> web.Response:
        ask = await answers.read_struct(request, OperatorTokenAsk, self._request_s_max)
        secret, now_ms = f"lkf_{secrets.token_urlsafe(32)}", self._clock.now_ms()
        expires_ms = now_ms + ask.days * 86_400_000
        await self._store.add_operator(
            ask.name, ask.role, _hash(secret), expires_ms=expires_ms, by=who.by, now_ms=now_ms
        )
        made = OperatorToken(name=ask.name, role=ask.role, expires=rfc3339(expires_ms / 1000), secret=secret)
        return answers.said(made, 201)

    async def _remove_token(self, request: web.Request, who: Operator) -> web.Response:
        await self._store.remove_operator(request.match_info["name"], by=who.by, now_ms=self._clock.now_ms())
        return answers.said(None)


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _peer(connection: socket.socket, group_role: FleetRole) -> Operator:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(raw)
    try:
        by = f"unix:{pwd.getpwuid(uid).pw_name}"
    except KeyError:
        by = f"unix:{uid}"
    if uid in (0, os.getuid()):
        return Operator(by, "admin")
    path = connection.getsockname()
    if os.stat(path).st_gid in {gid, *_groups(connection)}:  # noqa: PTH116 - one system call on our own socket
        return Operator(by, group_role)
    raise NotPermittedError(f"{by} is not in the group of {path}. Nothing was changed.")


def _groups(connection: socket.socket) -> tuple[int, ...]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * GROUPS_MAX)
    except OSError:  # a kernel before 4.13, or an account in more groups than that: then only its own group counts
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)
