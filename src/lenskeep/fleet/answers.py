"""Requests and answers of the fleet's doors: read strictly and in time, refused as RFC 9457 problems.

Rules. A body has a size and a time; unknown words are refused where a request is read. Whatever is raised on the way
becomes a problem document with our code and the fix.
"""

from __future__ import annotations

import asyncio
import http
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

import msgspec
from aiohttp import web
from msgspec import Struct

from lenskeep.errors import (
    BlobStoreError,
    ClockUntrustedError,
    FleetBusyError,
    IdentityError,
    LenskeepError,
    LimitExceededError,
    NotEnrolledError,
    NotPermittedError,
    NotSignedInError,
    PeerError,
    RequestError,
    StorageError,
    StorageFullError,
    StoreBusyError,
    StoreUnreachableError,
    TokenUsedError,
    TooManyTriesError,
    UnknownNameError,
    UnlistedDeviceError,
)
from lenskeep.messages.control import Problem

log = logging.getLogger("lenskeep.fleet")

JSON_BYTES_MAX = 64 << 10
PROBLEM_MEDIA = "application/problem+json"
T = TypeVar("T", bound=Struct)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

# The nearest entry up the fault's own tree counts.
HTTP_STATUS: dict[type[LenskeepError], int] = {
    LenskeepError: 500,
    RequestError: 400,
    NotSignedInError: 401,
    NotPermittedError: 403,
    UnknownNameError: 404,
    LimitExceededError: 413,
    IdentityError: 422,
    NotEnrolledError: 401,
    UnlistedDeviceError: 403,
    TokenUsedError: 409,
    TooManyTriesError: 429,
    StorageError: 503,
    StoreUnreachableError: 503,
    StoreBusyError: 503,
    BlobStoreError: 503,
    StorageFullError: 507,
    ClockUntrustedError: 503,
    PeerError: 503,
}
RETRY_AFTER_S: dict[type[LenskeepError], int] = {TooManyTriesError: 60, FleetBusyError: 5, StorageError: 30}


async def read_bytes(request: web.Request, bytes_max: int, seconds_max: float) -> bytes:
    """Return a body. Raises: LimitExceededError, RequestError when it does not come in time or breaks off."""
    if (request.content_length or 0) > bytes_max or "Content-Encoding" in request.headers:
        raise LimitExceededError(f"At most {bytes_max} bytes, as they are, are taken here. Nothing was changed.")
    body = bytearray()
    try:
        async with asyncio.timeout(seconds_max):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > bytes_max:
                    raise LimitExceededError(f"At most {bytes_max} bytes are taken here. Nothing was changed.")
    except TimeoutError:
        raise RequestError(f"The request was not there within {seconds_max:g} s. Nothing was changed.") from None
    except (OSError, web.PayloadAccessError, web.RequestPayloadError) as error:
        raise RequestError("The request broke off. Nothing was changed.") from error
    return bytes(body)


async def read_struct(request: web.Request, type_: type[T], seconds_max: float) -> T:
    """Return a JSON body as its type. Raises: RequestError."""
    data = await read_bytes(request, JSON_BYTES_MAX, seconds_max)
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"The request cannot be read: {error}. Nothing was changed.") from error


def said(value: Any, status: int = 200) -> web.Response:
    """Answer with a value as JSON, or with nothing."""
    if value is None:
        return web.Response(status=http.HTTPStatus.NO_CONTENT)
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever is raised into a problem document, and mark every answer as one of a moment."""
    try:
        answer = await handler(request)
    except LenskeepError as error:
        answer = _refused(error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        fault = UnknownNameError if error.status == http.HTTPStatus.NOT_FOUND else RequestError
        answer = _refused(fault(f"{request.method} {request.path}: {error.reason}."), error.status)
    except Exception:  # the root of a request: every fault leaves as a problem, none silently
        log.exception("%s %s failed", request.method, request.path)
        answer = _refused(unforeseen())
    answer.headers.setdefault("Cache-Control", "no-store")
    answer.headers.setdefault("X-Content-Type-Options", "nosniff")
    return answer


def _refused(error: LenskeepError, status: int = 0) -> web.Response:
    refused = refusal(error, status)
    headers = {"Retry-After": str(refused.retry_after_s)} if refused.retry_after_s else None
    return web.Response(body=refused.body, status=refused.status, headers=headers, content_type=PROBLEM_MEDIA)


class Refusal(NamedTuple):
    """A fault, as it is answered."""

    status: int
    body: bytes  # a problem document
    retry_after_s: int  # 0 = nothing is said of it


def refusal(error: LenskeepError, status: int = 0) -> Refusal:
    """Return how a fault is answered; the status is the fault's own unless one is given."""
    status = status or next(HTTP_STATUS[kind] for kind in type(error).__mro__ if kind in HTTP_STATUS)
    problem = Problem(
        type=f"urn:lenskeep:problem:{error.code}", title=error.title(), status=status, detail=str(error),
        code=error.code, hint=error.hint,
    )  # fmt: skip
    again_s = next((RETRY_AFTER_S[kind] for kind in type(error).__mro__ if kind in RETRY_AFTER_S), 0)
    again_s += random.randrange(again_s) if again_s else 0  # noqa: S311 - no secret
    return Refusal(status, msgspec.json.encode(problem), again_s)


def unforeseen() -> LenskeepError:
    """Return the fault that stands for one that nobody foresaw."""
    return LenskeepError("The service met a condition that nobody foresaw.")
