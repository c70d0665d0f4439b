"""Answers as HTTP: values as JSON, faults as RFC 9457 problem documents, and the headers that every answer carries."""

from __future__ import annotations

import http
import logging
from typing import Any

import msgspec
from aiohttp import web

from lenskeep.daemon.problems import problem
from lenskeep.errors import LenskeepError, NotSignedInError, RequestError, UnknownNameError

log = logging.getLogger(__name__)

PROBLEM_JSON = "application/problem+json"
REQUEST_ID = "X-Request-Id"

# The page loads nothing from elsewhere and nobody may frame it.
CONTENT_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'"
)
GUARD_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class FieldError(Exception):
    """A request whose body or query does not fit; carries the pointer of the field."""

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.detail = detail


def json_answer(value: Any, status: int, headers: dict[str, str] | None = None) -> web.Response:
    """Answer with a value, or with nothing."""
    if value is None:
        return web.Response(status=http.HTTPStatus.NO_CONTENT, headers=headers)
    body = msgspec.json.encode(value)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def problem_answer(
    error: LenskeepError, request_id: str, *, status: int | None = None, fields: list[dict[str, str]] | None = None
) -> web.Response:
    """Answer with a fault."""
    said = problem(error, request_id=request_id, errors=fields)
    if status is not None:
        said = msgspec.structs.replace(said, status=status)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(error, NotSignedInError) else None
    return web.Response(body=msgspec.json.encode(said), status=said.status, headers=headers, content_type=PROBLEM_JSON)


def translate(error: Exception, request: web.Request, request_id: str) -> web.Response:
    """Turn whatever a handler raised into a problem document."""
    if isinstance(error, LenskeepError):
        return problem_answer(error, request_id)
    if isinstance(error, FieldError):
        fault = RequestError(f"{error.pointer or 'The body'}: {error.detail}. Nothing was changed.")
        return problem_answer(fault, request_id, fields=[{"pointer": error.pointer, "detail": error.detail}])
    if isinstance(error, web.HTTPException):
        return _of_framework(error, request, request_id)
    log.exception("%s %s failed (request %s)", request.method, request.path, request_id, exc_info=error)
    return problem_answer(LenskeepError("The service met a condition that nobody foresaw."), request_id)


def _of_framework(error: web.HTTPException, request: web.Request, request_id: str) -> web.Response:
    if error.status == http.HTTPStatus.NOT_FOUND:
        fault: LenskeepError = UnknownNameError(
            f"There is nothing at {request.path}.", hint="GET /v1 lists what there is."
        )
    else:
        fault = RequestError(f"{request.method} {request.path}: {error.reason}. Nothing was changed.")
    answer = problem_answer(fault, request_id, status=error.status)
    if "Allow" in error.headers:
        answer.headers["Allow"] = error.headers["Allow"]
    return answer
