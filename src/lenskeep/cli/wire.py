"""The way to a device and back: its address, one HTTP request per connection, faults as what they are.

Rules. Plain sockets of the standard library. A problem document becomes the fault that it names, with its message and
fix; a service that is not there becomes DaemonUnreachableError. Nothing is tried twice. Not here: what can be asked
(client).
"""

from __future__ import annotations

import errno
import http.client
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Struct

from lenskeep.errors import (
    DaemonUnreachableError,
    LenskeepError,
    NotPermittedError,
    PeerError,
    RequestError,
    SourceError,
    fault_book,
)
from lenskeep.messages.control import Problem

T = TypeVar("T")

SYSTEM_SOCKET = Path("/run/lenskeep/lenskeep.sock")
TIMEOUT_S = 20.0
UPLOAD_STALL_S = 120.0
CHUNK_BYTES = 1 << 20


class Address(Struct, frozen=True):
    """Where a device listens: a socket's path, or host and port."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return str(self.path) if self.path else f"http://{self.host}:{self.port}"


def find_address(wanted: str | None, environment: Mapping[str, str]) -> Address:
    """Choose where to ask: what was named, else the system's service, else the user's own.

    Raises: RequestError for an address that is none, DaemonUnreachableError when there is no socket anywhere.
    """
    named = wanted or environment.get("LENSKEEP_DEVICE")
    if named:
        return parse_address(named)
    base = environment.get("XDG_RUNTIME_DIR") or f"/tmp/lenskeep-{os.getuid()}"  # noqa: S108 - only looked at
    places = [SYSTEM_SOCKET, Path(base) / "lenskeep" / "lenskeep.sock"]
    for place in places:
        if place.exists():
            return Address(path=place)
    looked = " and ".join(str(place) for place in places)
    raise DaemonUnreachableError(f"No Lenskeep service is running here: there is no socket at {looked}.")


def parse_address(named: str) -> Address:
    """Read an address as somebody typed it. Raises: RequestError."""
    if named.startswith(("/", "./", "../")):
        return Address(path=Path(named))
    parts = urlsplit(named if "://" in named else f"http://{named}")
    try:
        port = parts.port or 80
    except ValueError:
        port = 0
    if parts.scheme != "http" or not parts.hostname or not port or parts.path.strip("/"):
        raise RequestError(
            f"{named!r} is no address of a device.", hint="Give a socket's path or http://HOST:PORT with --device."
        )
    return Address(host=parts.hostname, port=port)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("lenskeep", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Wire:
    """Requests to one device."""

    def __init__(self, address: Address, token: str | None = None) -> None:
        self.address = address
        self._token = token

    def get(self, path: str, type_: type[T], **query: Any) -> T:
        """Read something as its type; a parameter that is None is left out."""
        return self.decode(self.ask("GET", path, query=query), type_)

    def send(self, method: str, path: str, body: Struct, type_: type[T]) -> T:
        """Send a body as JSON and read the answer as its type."""
        return self.decode(self.ask(method, path, body=msgspec.json.encode(body)), type_)

    def decode(self, data: bytes, type_: type[T]) -> T:
        """Read JSON as its type. Raises: PeerError."""
        try:
            return msgspec.json.decode(data, type=type_)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PeerError(f"The answer of {self.address} cannot be read: {error}.") from error

    def ask(self, method: str, path: str, **options: Any) -> bytes:
        """Return the body of the answer. Raises: the fault that it names, DaemonUnreachableError, PeerError."""
        with self.open(method, path, **options) as answer:
            try:
                return answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise PeerError(f"The answer of {self.address} broke off: {error or type(error).__name__}.") from error

    def open(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: bytes | None = None,
        headers: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S,
    ) -> http.client.HTTPResponse:  # fmt: skip
        """Return the answer as a stream. Raises: the fault that it names, DaemonUnreachableError."""
        connection = self._connect(timeout_s)
        words = {name: value for name, value in (query or {}).items() if value is not None}
        sent = (
            self._headers() | dict(headers or {}) | ({"Content-Type": "application/json"} if body is not None else {})
        )
        try:
            connection.request(method, f"{path}?{urlencode(words)}" if words else path, body, sent)
            answer = _answer(connection)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._broken(error) from error
        return _good(answer)

    def _headers(self) -> dict[str, str]:
        headers = {"Connection": "close"}  # a connection per request; it costs a tenth of a millisecond
        return headers | ({"Authorization": f"Bearer {self._token}"} if self._token else {})

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.address.path is not None:
            connection: http.client.HTTPConnection = _UnixConnection(self.address.path, timeout_s)
        else:
            connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=timeout_s)
        try:
            connection.connect()
        except PermissionError as error:
            connection.close()
            raise NotPermittedError(
                f"Your account may not open {self.address}.",
                hint="Use sudo, or join the group and sign in again: sudo usermod -aG lenskeep $USER",
            ) from error
        except OSError as error:
            connection.close()
            raise DaemonUnreachableError(f"Nothing answers at {self.address} ({error.strerror or error}).") from error
        return connection

    def _broken(self, error: Exception) -> LenskeepError:
        """Return what a connection that failed in the middle means."""
        if isinstance(error, TimeoutError):
            return DaemonUnreachableError(f"The service at {self.address} did not answer in time.")
        why = str(error) or type(error).__name__
        return DaemonUnreachableError(f"The service at {self.address} ended the connection: {why}.")

    def pieces(self, answer: http.client.HTTPResponse, read: Callable[[], bytes]) -> Iterator[bytes]:
        """Yield what `read` gives until it gives nothing. Raises: DaemonUnreachableError when the connection breaks."""
        with answer:
            while True:
                try:
                    piece = read()
                except (OSError, http.client.HTTPException) as error:
                    raise self._broken(error) from error
                if not piece:
                    return
                yield piece

    def upload(self, path: str, file: Path, progress: Callable[[int, int], None]) -> bytes:
        """Send a file. The device may refuse it before all of it is sent; then the rest is not sent."""
        with file.open("rb") as source:
            return self.send_file("POST", path, source, 0, progress)

    def send_file(
        self,
        method: str,
        path: str,
        source: BinaryIO,
        offset: int,
        progress: Callable[[int, int], None],
        length: int = 0,
    ) -> bytes:
        """Send an open file, or a piece of it. Raises: SourceError when it cannot be read to its end."""
        connection = self._connect(UPLOAD_STALL_S)
        total = max(0, os.fstat(source.fileno()).st_size - offset)
        total = min(total, length) if length else total
        try:
            connection.putrequest(method, path)
            for name, value in {**self._headers(), "Content-Type": "application/octet-stream"}.items():
                connection.putheader(name, value)
            connection.putheader("Content-Length", str(total))
            connection.endheaders()
            _send_file(connection.sock, source, offset, total, progress)
            answer = _answer(connection)
        except LenskeepError:
            connection.close()
            raise
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._broken(error) from error
        with _good(answer) as good:
            return good.read()


def _send_file(
    sink: socket.socket, source: BinaryIO, offset: int, total: int, progress: Callable[[int, int], None]
) -> None:
    sent = 0
    while sent < total:
        answered, ready, _ = select.select([sink], [sink], [], UPLOAD_STALL_S)
        if answered:
            return  # the device has made up its mind already
        if not ready:
            raise TimeoutError
        try:
            step = os.sendfile(sink.fileno(), source.fileno(), offset + sent, min(CHUNK_BYTES, total - sent))
        except (BrokenPipeError, ConnectionResetError):
            return  # what it said before it closed is still there to be read
        except OSError as error:
            if error.errno in (errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE):  # a stick that was pulled out
                raise SourceError(f"The file cannot be read any further: {error.strerror}.") from error
            raise
        if step == 0:
            return  # the file became shorter while it was read; the device notices
        sent += step
        progress(sent, total)


def _answer(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    """Return the answer; the socket closes with it, whatever the other side thinks of keeping it."""
    answer = connection.getresponse()
    if connection.sock is not None:
        connection.sock.close()
    return answer


def _good(answer: http.client.HTTPResponse) -> http.client.HTTPResponse:
    """Return a good answer. Raises: the fault that a bad one names."""
    if answer.status < 300:
        return answer
    with answer:
        data = answer.read()
    try:
        raise fault_of(msgspec.json.decode(data, type=Problem))
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise PeerError(
            f"The answer is not Lenskeep's: HTTP {answer.status}.", hint="Check the address given with --device."
        ) from None


def fault_of(problem: Problem) -> LenskeepError:
    """Return the fault that a problem document names; of a code that is newer than this client, its words."""
    kind = fault_book().get(problem.code, LenskeepError)
    fault = kind(problem.detail, hint=problem.hint)
    if kind.code != problem.code:
        fault.code = problem.code  # type: ignore[misc]  # an instance speaks for a fault that has no class here
    return fault
