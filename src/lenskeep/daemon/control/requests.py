"""Requests read strictly: bodies of bounded size, unknown words refused by name, uploads as a bounded stream."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import msgspec
from aiohttp import web
from msgspec import Struct

from lenskeep.daemon.control.answers import FieldError
from lenskeep.errors import LimitExceededError, RequestError

BODY_BYTES_MAX = 256 << 10
UPLOAD_CHUNK_BYTES = 1 << 20
UPLOAD_STALL_S = 60.0

_STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+)\]|\[[^\]]*\]")


async def read_json(request: web.Request) -> bytes:
    """Return a JSON body. Raises: HTTP 415 and 413 of the framework."""
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason="Content-Type must be application/json")
    if (request.content_length or 0) > BODY_BYTES_MAX:
        raise web.HTTPRequestEntityTooLarge(BODY_BYTES_MAX, request.content_length or 0)
    body = bytearray()
    async for chunk in upload_chunks(request, BODY_BYTES_MAX):
        body += chunk
    return bytes(body)


def decode_body(data: bytes, type_: type[Struct]) -> Struct:
    """Read a JSON body into its struct. Raises: FieldError."""
    try:
        return msgspec.json.decode(data, type=type_)
    except msgspec.ValidationError as error:
        raise _field_error(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FieldError("", f"not JSON: {error}") from error


def decode_query(request: web.Request, type_: type[Struct]) -> Struct:
    """Read the query parameters into their struct. Raises: FieldError."""
    words: dict[str, str] = {}
    for name, value in request.query.items():
        if name in words:
            raise FieldError(f"?{name}", "given twice")
        words[name] = value
    try:
        return msgspec.convert(words, type_, strict=False)
    except msgspec.ValidationError as error:
        wrong = _field_error(str(error))
        raise FieldError(wrong.pointer.replace("/", "?", 1), wrong.detail) from error


def _field_error(sentence: str) -> FieldError:
    """Turn msgspec's sentence into a JSON pointer and what is wrong there."""
    detail, _, path = sentence.partition(" - at `$")
    steps = [name or index or "*" for name, index in _STEP.findall(path)]
    for said in ("unknown field `", "missing required field `"):
        if said in detail:
            steps.append(detail.partition(said)[2].partition("`")[0])
    return FieldError("".join(f"/{step}" for step in steps), detail)


def upload_size(request: web.Request, bytes_max: int) -> int | None:
    """Return the announced size of an upload, None when it is chunked. Raises: LimitExceededError."""
    if request.content_type != "application/octet-stream":
        raise web.HTTPUnsupportedMediaType(reason="Content-Type must be application/octet-stream")
    size = request.content_length
    if size is None and not request.can_read_body:
        raise RequestError("The request carries no file. Nothing was changed.")
    if size is not None and size > bytes_max:
        raise LimitExceededError(
            f"The file has {size} bytes; this device accepts at most {bytes_max}. Nothing was changed."
        )
    return size


async def upload_chunks(request: web.Request, bytes_max: int) -> AsyncIterator[bytes]:
    """Yield the body as it arrives.

    Raises: LimitExceededError over the limit, RequestError when it breaks off.
    """
    seen = 0
    announced = request.content_length
    while True:
        try:
            async with asyncio.timeout(UPLOAD_STALL_S):
                chunk = await request.content.read(UPLOAD_CHUNK_BYTES)
        except TimeoutError:
            raise RequestError(f"The upload stood still for {UPLOAD_STALL_S:.0f} s. Nothing was changed.") from None
        except (OSError, web.PayloadAccessError, web.RequestPayloadError) as error:
            raise RequestError("The upload broke off. Nothing was changed.") from error
        if not chunk:
            break
        seen += len(chunk)
        if seen > bytes_max:
            raise LimitExceededError(f"The file has more than {bytes_max} bytes. Nothing was changed.")
        yield chunk
    if announced is not None and seen != announced:
        raise RequestError(f"The upload ended after {seen} of {announced} bytes. Nothing was changed.")
