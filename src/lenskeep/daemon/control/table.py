"""The one table of routes; the API's description of itself is part of it."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

from msgspec import Struct

from lenskeep.daemon.control import (
    access,
    approvals,
    bundles,
    cameras,
    device,
    history,
    identity,
    openapi,
    repository,
    slots,
)
from lenskeep.daemon.control.route import Ask, Reply, Route


class Capabilities(Struct, frozen=True):
    """What this API offers: paths that can be asked as they are, each with what it shows."""

    service: str
    version: str
    api: str
    links: dict[str, str]


@functools.cache
def package_version() -> str:
    """Return the installed version. Cost: reads the package's metadata once."""
    return importlib.metadata.version("lenskeep")


async def capabilities(_ask: Ask) -> Capabilities:
    links = {route.path: route.summary for route in ROUTES if route.method == "GET" and "{" not in route.path}
    return Capabilities(service="lenskeep", version=package_version(), api="v1", links=links)


@functools.cache
def document() -> dict[str, Any]:
    """Return the OpenAPI document of the whole table."""
    return openapi.describe(ROUTES, package_version())


async def show_document(_ask: Ask) -> Reply:
    return Reply(document())


ROUTES: list[Route] = [
    Route(
        method="GET", path="/v1", permission="look", handler=capabilities, answer=Capabilities,
        summary="List what this API offers",
    ),
    *device.ROUTES,
    *slots.ROUTES,
    *approvals.ROUTES,
    *bundles.ROUTES,
    *cameras.ROUTES,
    *history.ROUTES,
    *access.ROUTES,
    *repository.ROUTES,
    *identity.ROUTES,
    Route(
        method="GET", path="/openapi.json", permission=None, handler=show_document, answer=dict[str, Any],
        summary="This document",
    ),
]  # fmt: skip
