"""The line to the fleet: one request, one answer, and every way that can fail as a fault of ours.

Rules. A redirect is not followed, an answer has a size and a time, and nothing is tried twice here. A refusal of the
fleet comes out as the fault that it names.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import aiohttp
import msgspec
from msgspec import Struct

from lenskeep.daemon.way import Way
from lenskeep.errors import (
    FleetAnswerError,
    FleetNotProvenError,
    FleetUnreachableError,
    IdentityError,
    LenskeepError,
    UnlistedDeviceError,
    fault_book,
)
from lenskeep.messages.control import Problem

ANSWER_BYTES_MAX = 64 << 10
CONNECT_S, TOTAL_S = 10.0, 30.0
_OPENED = (
    "A proxy that opens TLS shows a certificate of its own: have the fleet's address exempted from that. Otherwise"
    " compare the fingerprint with the operator (lenskeep fleet ca show); do not go on if they differ."
)
T = TypeVar("T", bound=Struct)


async def ask(url: str, tls: ssl.SSLContext, type_: type[T], body: bytes | None = None, way: Way | None = None) -> T:
    """Ask the fleet once: GET, or POST with a body. Raises: what the fleet refuses with, PeerError, IdentityError."""
    limits = aiohttp.ClientTimeout(total=TOTAL_S, sock_connect=CONNECT_S)
    way = way or Way()
    connector = aiohttp.TCPConnector(ssl=tls, force_close=True)
    with translated(url, way):
        async with (
            way.session(connector, timeout=limits) as session,
            session.request(
                "GET" if body is None else "POST", url, data=body, allow_redirects=False,
                **way.words(url, {"Accept-Encoding": "identity", "Content-Type": "application/json"}),
            ) as answer,
        ):  # fmt: skip
            data = await read_answer(answer)
            if answer.status not in (200, 201):
                raise fault_of(answer.status, data, url)
    try:
        return msgspec.json.decode(data, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FleetAnswerError(f"The answer of {url} cannot be read: {error}.") from error


@contextmanager
def translated(url: str, way: Way) -> Iterator[None]:
    """Turn what the connection met into ours. Raises: FleetNotProvenError, PeerError, UnlistedDeviceError."""
    try:
        yield
    except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
        told = f"{url}: {why(error)}. Nothing was sent."
        if way.proxy:
            raise FleetNotProvenError(f"{told} The way goes through {way.proxy}.", hint=_OPENED) from error
        raise FleetNotProvenError(told) from error
    except TimeoutError as error:
        raise FleetUnreachableError(f"{url} did not answer in time.") from error
    except (aiohttp.ClientError, OSError) as error:
        if (fault := way.fault(error, url)) is not None:
            raise fault from error
        if "alert" in str(error).lower():
            raise UnlistedDeviceError(f"{url} did not accept this device's certificate: {why(error)}.") from error
        raise FleetUnreachableError(f"{url} cannot be reached: {why(error)}.") from error


async def read_answer(answer: aiohttp.ClientResponse) -> bytes:
    """Return a small answer. Raises: FleetAnswerError when it is none."""
    data = bytearray()
    async for chunk in answer.content.iter_any():
        data += chunk
        if len(data) > ANSWER_BYTES_MAX:
            raise FleetAnswerError(f"{answer.url} answers with more than {ANSWER_BYTES_MAX} bytes.")
    return bytes(data)


def fault_of(status: int, data: bytes, url: str) -> LenskeepError:
    """Return the fault that a refusal names; of somebody who is not a fleet, that."""
    try:
        problem = msgspec.json.decode(data, type=Problem)
        kind = fault_book()[problem.code]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError):
        return FleetAnswerError(f"{url} answers {status}, which is not a fleet's answer.")
    if not issubclass(kind, IdentityError):  # its disk, its clock, its idea of a request: not ours to mend here
        return FleetAnswerError(f"{url} refuses with {problem.code}: {problem.detail[:1000]}")
    return kind(problem.detail[:1000])  # the next step is our own: a stranger's may not tell people what to type


def why(error: BaseException) -> str:
    """Say in a few words why a connection failed."""
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return str(getattr(cause, "verify_message", "") or cause or type(error).__name__).rstrip(".")
