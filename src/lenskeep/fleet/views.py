"""What the operators' door shows of the whole fleet: overview, devices, versions, drift, history, and `/metrics`.

Rules. Reading needs the role viewer. Questions are read strictly: a word that this door does not know is refused.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from lenskeep.clock import Clock
from lenskeep.errors import RequestError
from lenskeep.fleet import answers
from lenskeep.fleet.exposition import Exposition
from lenskeep.fleet.operators import Operator, Route
from lenskeep.fleet.survey import Asked, Survey
from lenskeep.messages.fleetviews import HEALTHS, MyselfView

TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
PAGE_MAX = 1000
T = TypeVar("T", bound=Struct)


class _DevicesQuery(Struct, frozen=True, forbid_unknown_fields=True):
    health: str = ""  # one or several, with commas between
    target: str = ""
    runs: str = ""
    text: str = ""
    limit: int = 200
    after: str = ""


class _VersionsQuery(Struct, frozen=True, forbid_unknown_fields=True):
    bundle: str = ""
    hours: float = 24.0


class _HistoryQuery(Struct, frozen=True, forbid_unknown_fields=True):
    device: str = ""
    bundle: str = ""


class Views:
    """The routes."""

    def __init__(self, survey: Survey, exposition: Exposition, clock: Clock) -> None:
        self._survey = survey
        self._exposition = exposition
        self._clock = clock

    def routes(self) -> list[Route]:
        """Return the routes for the operators' door."""
        return [
            ("GET", "/v1/me", "viewer", self._me),
            ("GET", "/v1/fleet/overview", "viewer", self._overview),
            ("GET", "/v1/fleet/devices", "viewer", self._devices),
            ("GET", "/v1/fleet/devices/{device}", "viewer", self._device),
            ("GET", "/v1/fleet/versions", "viewer", self._versions),
            ("GET", "/v1/fleet/drift", "viewer", self._drift),
            ("GET", "/v1/fleet/history", "viewer", self._history),
            ("GET", "/metrics", "viewer", self._metrics),
        ]

    async def _me(self, _request: web.Request, who: Operator) -> web.Response:
        return answers.said(MyselfView(by=who.by, role=who.role))

    async def _overview(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._survey.overview())

    async def _devices(self, request: web.Request, _who: Operator) -> web.Response:
        query = _query(request, _DevicesQuery)
        health = frozenset(filter(None, query.health.split(",")))
        if unknown := health - set(HEALTHS):
            raise RequestError(f"health: {', '.join(sorted(unknown))} is none of {', '.join(HEALTHS)}.")
        if not 1 <= query.limit <= PAGE_MAX:
            raise RequestError(f"limit: between 1 and {PAGE_MAX}.")
        asked = Asked(health, query.target, query.runs, query.text)
        return answers.said(await self._survey.devices(asked, limit=query.limit, after=query.after))

    async def _device(self, request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._survey.device(request.match_info["device"]))

    async def _versions(self, request: web.Request, _who: Operator) -> web.Response:
        query = _query(request, _VersionsQuery)
        since_s = int(self._clock.now_s() - query.hours * 3600)
        return answers.said(await self._survey.versions(bundle=query.bundle, since_s=max(0, since_s)))

    async def _drift(self, _request: web.Request, _who: Operator) -> web.Response:
        return answers.said(await self._survey.drift())

    async def _history(self, request: web.Request, _who: Operator) -> web.Response:
        query = _query(request, _HistoryQuery)
        return answers.said(await self._survey.history(device=query.device, bundle=query.bundle))

    async def _metrics(self, _request: web.Request, _who: Operator) -> web.Response:
        return web.Response(body=await self._exposition.prometheus(), headers={"Content-Type": TEXT_FORMAT})


def _query(request: web.Request, type_: type[T]) -> T:
    try:
        return msgspec.convert(dict(request.query), type_, strict=False)
    except msgspec.ValidationError as error:
        raise RequestError(f"The question cannot be read: {error}.") from error
