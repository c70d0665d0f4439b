"""One route as data: what is asked, by whom, and what is answered. Handlers are plain coroutines over an
`Ask`.

Rules. Everything that the API promises about a request stands in its `Route`; the server enforces it and the
OpenAPI document is made from it, so neither can say what the other does not do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from msgspec import Struct

from lenskeep.config import Config
from lenskeep.daemon.control.auth import Identity
from lenskeep.daemon.control.rooms import Rooms
from lenskeep.permissions import Permission

JSON = "application/json"
OCTETS = "application/octet-stream"


class NoQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """A request that takes no query parameters."""


@dataclass(frozen=True)
class Ask:
    """One request, decoded and allowed."""

    request: web.Request
    rooms: Rooms
    config: Config
    who: Identity
    query: Any
    body: Any

    def part(self, name: str) -> str:
        """Return a part of the path."""
        return self.request.match_info[name]


@dataclass(frozen=True)
class Reply:
    """An answer that needs more than its value."""

    value: Any
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


Handler = Callable[[Ask], Awaitable[Any]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One door. A `permission` of None is open to everybody who reaches the port; `answer` None is an empty 204."""

    method: str
    path: str
    permission: Permission | None
    handler: Handler
    answer: Any
    summary: str
    body: type[Struct] | None = None
    upload: bool = False
    query: type[Struct] = NoQuery
    status: int = 200
    media: str = JSON
    repeatable: bool = True  # an Idempotency-Key is honoured; not where the answer holds a secret
