"""Who is asking, and may they: peer credentials on the Unix socket, bearer tokens on loopback TCP.

Rules. The socket's file mode lets only root, the service and its group connect; here each gets a role: the first line
of the configured members that fits the account or one of its groups, else the role of the socket's group. On TCP nobody
is somebody without a token, and nobody may at most read. A browser is let in only for a page that this daemon served:
the Host must be one of ours (against DNS rebinding), the Origin must be that Host, and a request that another site made
is refused. No answer ever carries a CORS header.
"""

from __future__ import annotations

import functools
import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from lenskeep.config import Control
from lenskeep.daemon.control.rooms import Tokens
from lenskeep.errors import NotPermittedError, NotSignedInError, TokenReachError
from lenskeep.permissions import TABLE, Permission, Role, may, who_may

SO_PEERGROUPS = 59  # Linux; not among the names of the socket module
GROUPS_MAX = 256  # what getsockopt of Python can carry
_CREDENTIALS = struct.Struct("3i")


@dataclass(frozen=True)
class Identity:
    """Who is asking."""

    by: str
    role: Role
    anonymous: bool = False
    person: str = ""  # whom an approval counts for
    slots: frozenset[str] = frozenset()  # a token may be bound to some; empty = all
    left_s: float | None = None  # how long the token still counts


WHO = web.RequestKey("who", Identity)


def require(who: Identity | None, permission: Permission) -> None:
    """Let pass who may. Raises: NotSignedInError, NotPermittedError."""
    if who is None or (who.anonymous and not may(who.role, permission)):
        raise NotSignedInError(f"This needs a token with the role {who_may(permission)}. Nothing was changed.")
    if not may(who.role, permission):
        raise NotPermittedError(
            f"This needs the role {who_may(permission)}; {who.by} is {who.role}. Nothing was changed."
        )


def require_reach(who: Identity, permission: Permission, slot: str | None) -> None:
    """Let a token that is bound to slots change these and nothing else. Raises: TokenReachError."""
    reach = TABLE[permission].reach
    if who.slots and reach != "reading" and (reach == "device" or slot not in who.slots):
        what = "the whole device" if reach == "device" else f"slot {slot}"
        raise TokenReachError(
            f"{who.by} changes only {', '.join(sorted(who.slots))}; this is about {what}. Nothing was changed."
        )


async def identify(request: web.Request, control: Control, tokens: Tokens) -> Identity | None:
    """Say who is asking; None is somebody without a token where that opens nothing.

    Raises: NotSignedInError for a token that is not known or has expired, NotPermittedError for a stranger's
    account.
    """
    connection = _connection(request)
    if connection is not None and connection.family == socket.AF_UNIX:
        return _peer(connection, control)
    secret = _bearer(request)
    if secret is not None:
        token = await tokens.find(secret)
        if token is None:
            raise NotSignedInError("This token is not known here or has expired. Nothing was changed.")
        by, slots = f"token:{token.name}", frozenset(token.slots)
        return Identity(by, token.role, person=token.person, slots=slots, left_s=token.left_s)
    return None if control.anonymous_role == "none" else Identity("anonymous", "viewer", anonymous=True)


def _connection(request: web.Request) -> socket.socket | None:
    transport = request.transport
    return None if transport is None else transport.get_extra_info("socket")


def _bearer(request: web.Request) -> str | None:
    header = request.headers.get("Authorization")
    if header is None:
        return None
    scheme, _, secret = header.partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise NotSignedInError("The Authorization header must read `Bearer TOKEN`. Nothing was changed.")
    return secret.strip()


def _peer(connection: socket.socket, control: Control) -> Identity:
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, gid = _CREDENTIALS.unpack(raw)
    account = _account(uid)
    by = f"unix:{account}"
    if uid in (0, os.getuid()):
        return Identity(by, "admin", person=account)
    path, groups = connection.getsockname(), {gid, *_groups(connection)}
    for member in control.member:
        if member.account == account or (member.group and _gid(member.group) in groups):
            return Identity(by, member.role, person=account)
    if os.stat(path).st_gid in groups:  # noqa: PTH116 - one system call on our own socket
        return Identity(by, control.group_role, person=account)
    raise NotPermittedError(f"{by} is not in the group of {path}. Nothing was changed.")


def _groups(connection: socket.socket) -> tuple[int, ...]:
    """Return the groups that the peer really had when it connected; no name service is asked."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * GROUPS_MAX)
    except OSError:  # a kernel before 4.13, or an account in more groups than that: then only its own group counts
        return ()
    return struct.unpack(f"{len(raw) // 4}I", raw)


@functools.lru_cache(maxsize=64)
def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _gid(group: str) -> int | None:
    """Return a group's number; one that does not exist yet is looked up again at the next request."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def check_site(request: web.Request, hosts: frozenset[str]) -> None:
    """Refuse what another web site made a browser send. Asserts: the request came over TCP."""
    host = request.headers.get("Host", "").lower()
    if host not in hosts:
        raise NotPermittedError(
            "The Host header is not a name of this device. Nothing was changed.",
            hint="Use http://127.0.0.1:PORT, or add the name to control.hosts in the configuration.",
        )
    origin = request.headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host:
        raise NotPermittedError(
            "Another web site asked for this. Nothing was changed.", hint="Open the device's own page."
        )
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") and not _opens_a_page(request):
        raise NotPermittedError(
            "Another web site asked for this. Nothing was changed.", hint="Open the device's own page."
        )


def _opens_a_page(request: web.Request) -> bool:
    """A link somewhere else may open our page in a tab; it may not touch the API."""
    return (
        request.method == "GET"
        and request.headers.get("Sec-Fetch-Mode") == "navigate"
        and request.headers.get("Sec-Fetch-Dest") == "document"
        and not request.path.startswith("/v")
    )


def is_tcp(request: web.Request) -> bool:
    """Say whether the request came over TCP."""
    connection = _connection(request)
    return connection is None or connection.family != socket.AF_UNIX


def allowed_hosts(control: Control, port: int) -> frozenset[str]:
    """Return the Host headers that are names of this device."""
    own = {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]")}
    if port == 80:
        own |= {"127.0.0.1", "localhost", "[::1]"}
    return frozenset(own | {host.lower() for host in control.hosts})
