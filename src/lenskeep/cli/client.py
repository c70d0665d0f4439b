"""The one typed client of the control API: plain sockets of the standard library, so that a command starts quickly.

Rules. A method is a route and returns its struct. A problem document becomes the fault that it names, with its message
and fix; a service that is not there becomes DaemonUnreachableError with the way to start it. Nothing is tried twice.
Not here: words for people (`output`, `words`).
"""

from __future__ import annotations

import http.client
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import msgspec
from msgspec import Struct

from lenskeep.errors import (
    DaemonUnreachableError,
    LenskeepError,
    NotPermittedError,
    PeerError,
    RequestError,
    TimedOutError,
    fault_book,
)
from lenskeep.messages import control
from lenskeep.messages.control import (
    ActivationRequest,
    AuditEntry,
    Bundle,
    BundleDetail,
    Check,
    CheckRequest,
    Deployment,
    Event,
    Key,
    KeyRequest,
    Operation,
    Problem,
    ResultPage,
    SlotView,
    Status,
    Token,
    TokenRequest,
    Verification,
    WhoAmI,
    Window,
)
from lenskeep.messages.runner import CameraState

T = TypeVar("T")

SYSTEM_SOCKET = Path("/run/lenskeep/lenskeep.sock")
TIMEOUT_S = 20.0
UPLOAD_STALL_S = 120.0
CHUNK_BYTES = 1 << 20
LOOK_S = 0.25  # how often progress is looked at while an operation runs


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
        return _parse(named)
    base = environment.get("XDG_RUNTIME_DIR") or f"/tmp/lenskeep-{os.getuid()}"  # noqa: S108 - only looked at
    places = [SYSTEM_SOCKET, Path(base) / "lenskeep" / "lenskeep.sock"]
    for place in places:
        if place.exists():
            return Address(path=place)
    looked = " and ".join(str(place) for place in places)
    raise DaemonUnreachableError(f"No Lenskeep service is running here: there is no socket at {looked}.")


def _parse(named: str) -> Address:
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


class Client:
    """A device, asked over its socket or its port."""

    def __init__(self, address: Address, token: str | None = None) -> None:
        self.address = address
        self._token = token

    # --- the device -----------------------------------------------------------------------------------------------

    def status(self) -> Status:
        return self._get("/v1/status", Status)

    def health(self) -> list[Check]:
        return self._get("/v1/health", list[Check])

    def configuration(self) -> dict[str, Any]:
        return self._get("/v1/config", dict[str, Any])

    def whoami(self) -> WhoAmI:
        return self._get("/v1/whoami", WhoAmI)

    def capabilities(self) -> dict[str, Any]:
        return self._get("/v1", dict[str, Any])

    def metrics(self) -> str:
        return self._ask("GET", "/metrics").decode()

    # --- bundles --------------------------------------------------------------------------------------------------

    def bundles(self, *, everything: bool = False) -> list[Bundle]:
        return self._get("/v1/bundles", list[Bundle], all="true" if everything else None)

    def bundle(self, ref: str) -> BundleDetail:
        return self._get(f"/v1/bundles/{_part(ref)}", BundleDetail)

    def remove(self, ref: str, reason: str = "") -> None:
        self._ask("DELETE", f"/v1/bundles/{_part(ref)}", query={"reason": reason or None})

    def pin(self, ref: str, pinned: bool) -> Bundle:
        return self._send("PUT", f"/v1/bundles/{_part(ref)}/pin", control.PinRequest(pinned=pinned), Bundle)

    def upload(self, path: Path, progress: Callable[[int, int], None]) -> Operation:
        """Send a bundle file; return when it is verified and stored. `progress(sent, total)` in bytes."""
        return self._decode(self._upload("/v1/imports", path, progress), Operation)

    def verify(self, path: Path, progress: Callable[[int, int], None]) -> Verification:
        """Have a bundle file judged by the device's keys; nothing is kept."""
        return self._decode(self._upload("/v1/verifications", path, progress), Verification)

    def export(self, ref: str, target: BinaryIO, progress: Callable[[int, int], None]) -> None:
        """Write the bundle file to `target`. Raises: PeerError when it ends too early."""
        answer = self._open("GET", f"/v1/bundles/{_part(ref)}/file")
        total, done = int(answer.headers.get("Content-Length", "0")), 0
        with answer:
            while chunk := answer.read(CHUNK_BYTES):
                target.write(chunk)
                done += len(chunk)
                progress(done, total)
        if done != total:
            raise PeerError(f"The file ended after {done} of {total} bytes.")

    # --- slots ----------------------------------------------------------------------------------------------------

    def slots(self) -> list[SlotView]:
        return self._get("/v1/slots", list[SlotView])

    def slot(self, name: str) -> SlotView:
        return self._get(f"/v1/slots/{_part(name)}", SlotView)

    def check(self, request: CheckRequest) -> Operation:
        return self._send("POST", "/v1/checks", request, Operation)

    def activate(self, request: ActivationRequest) -> Operation:
        return self._send("POST", "/v1/activations", request, Operation)

    def confirm(self, slot: str | None, reason: str = "") -> SlotView:
        return self._send("POST", "/v1/confirmations", control.SlotRequest(slot=slot, reason=reason), SlotView)

    def rollback(self, slot: str | None, reason: str = "") -> Operation:
        return self._send("POST", "/v1/rollbacks", control.SlotRequest(slot=slot, reason=reason), Operation)

    def hold(self, slot: str, held: bool) -> SlotView:
        return self._send("PUT", f"/v1/slots/{_part(slot)}/hold", control.HoldRequest(held=held), SlotView)

    # --- operations and events ------------------------------------------------------------------------------------

    def operation(self, operation_id: str) -> Operation:
        return self._get(f"/v1/operations/{_part(operation_id)}", Operation)

    def operations(self) -> list[Operation]:
        return self._get("/v1/operations", list[Operation])

    def wait(self, operation: Operation, seconds: float, seen: Callable[[Operation], None]) -> Operation:
        """Return the operation when it has ended; `seen` is called with every look at it.

        Raises: TimedOutError when it takes longer; the operation goes on.
        """
        ends = time.monotonic() + seconds
        while operation.state == "running":
            if time.monotonic() >= ends:
                raise TimedOutError(
                    f"{operation.kind} {operation.subject} takes longer than {seconds:.0f} s and goes on by itself.",
                    hint=f"Follow it with: lenskeep op show {operation.id}",
                )
            seen(operation)
            operation = self._get(f"/v1/operations/{_part(operation.id)}", Operation, wait=str(LOOK_S))
        return operation

    def events(
        self, since: int | None = None, *, types: list[str] | None = None, follow: bool = True
    ) -> Iterator[Event]:
        """Yield events as they come; without `follow` only those that are kept."""
        query = {
            "since": since,
            "types": ",".join(types) if types else None,
            "follow": None if follow else "false",
        }
        answer = self._open("GET", "/v1/events", query=query, timeout_s=60.0)
        try:
            with answer:
                for line in answer:
                    if line.startswith(b"data: "):
                        yield self._decode(line[6:], Event)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    # --- cameras --------------------------------------------------------------------------------------------------

    def cameras(self) -> list[CameraState]:
        return self._get("/v1/cameras", list[CameraState])

    def camera_devices(self) -> list[dict[str, Any]]:
        return self._get("/v1/camera-devices", list[dict[str, Any]])

    def test_camera(self, camera: str, seconds: float) -> dict[str, Any]:
        path = f"/v1/cameras/{_part(camera)}/test"
        data = self._ask("POST", path, query={"seconds": seconds}, timeout_s=seconds + TIMEOUT_S)
        return self._decode(data, dict[str, Any])

    def snapshot(self, camera: str) -> tuple[bytes, Mapping[str, str]]:
        """Return a JPEG picture and the headers that say its age and what judged it."""
        with self._open("GET", f"/v1/cameras/{_part(camera)}/snapshot.jpg") as answer:
            return answer.read(), dict(answer.headers)

    # --- history --------------------------------------------------------------------------------------------------

    def results(self, *, limit: int, camera: str | None = None, since: int | None = None) -> ResultPage:
        return self._get("/v1/results", ResultPage, limit=limit, camera=camera, since=since)

    def windows(self, *, since_s: int, seconds: int) -> list[Window]:
        return self._get("/v1/windows", list[Window], since_s=since_s, seconds=seconds)

    def deployments(self, *, limit: int, slot: str | None = None) -> list[Deployment]:
        return self._get("/v1/deployments", list[Deployment], limit=limit, slot=slot)

    def audit(self, *, limit: int) -> list[AuditEntry]:
        return self._get("/v1/audit", list[AuditEntry], limit=limit)

    # --- keys and tokens ------------------------------------------------------------------------------------------

    def keys(self) -> list[Key]:
        return self._get("/v1/keys", list[Key])

    def trust_key(self, request: KeyRequest) -> Key:
        return self._send("POST", "/v1/keys", request, Key)

    def revoke_key(self, id_or_name: str, reason: str) -> Key:
        path = f"/v1/keys/{_part(id_or_name)}/revocation"
        return self._send("POST", path, control.RevokeRequest(reason=reason), Key)

    def tokens(self) -> list[Token]:
        return self._get("/v1/tokens", list[Token])

    def add_token(self, request: TokenRequest) -> Token:
        return self._send("POST", "/v1/tokens", request, Token)

    def remove_token(self, id_or_name: str) -> None:
        self._ask("DELETE", f"/v1/tokens/{_part(id_or_name)}")

    # --- the wire -------------------------------------------------------------------------------------------------

    def _get(self, path: str, type_: type[T], **query: Any) -> T:
        return self._decode(self._ask("GET", path, query=query), type_)

    def _send(self, method: str, path: str, body: Struct, type_: type[T]) -> T:
        return self._decode(self._ask(method, path, body=msgspec.json.encode(body)), type_)

    def _decode(self, data: bytes, type_: type[T]) -> T:
        try:
            return msgspec.json.decode(data, type=type_)
        except msgspec.DecodeError as error:
            raise PeerError(f"The answer of {self.address} cannot be read: {error}.") from error

    def _ask(self, method: str, path: str, **options: Any) -> bytes:
        with self._open(method, path, **options) as answer:
            try:
                return answer.read()
            except (OSError, http.client.HTTPException) as error:
                raise PeerError(f"The answer of {self.address} broke off: {error or type(error).__name__}.") from error

    def _open(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: bytes | None = None,
        headers: Mapping[str, str] | None = None, timeout_s: float = TIMEOUT_S,
    ) -> http.client.HTTPResponse:  # fmt: skip
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
        if isinstance(error, TimeoutError):
            return DaemonUnreachableError(f"The service at {self.address} did not answer in time.")
        why = str(error) or type(error).__name__
        return DaemonUnreachableError(f"The service at {self.address} ended the connection: {why}.")

    def _upload(self, path: str, file: Path, progress: Callable[[int, int], None]) -> bytes:
        """Send a file. The device may refuse it before all of it is sent; then the rest is not sent."""
        connection = self._connect(UPLOAD_STALL_S)
        with file.open("rb") as source:
            total = os.fstat(source.fileno()).st_size
            try:
                connection.putrequest("POST", path)
                for name, value in {**self._headers(), "Content-Type": "application/octet-stream"}.items():
                    connection.putheader(name, value)
                connection.putheader("Content-Length", str(total))
                connection.endheaders()
                _send_file(connection.sock, source, total, progress)
                answer = _answer(connection)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                raise self._broken(error) from error
        with _good(answer) as good:
            return good.read()


def _send_file(sink: socket.socket, source: BinaryIO, total: int, progress: Callable[[int, int], None]) -> None:
    sent = 0
    while sent < total:
        answered, ready, _ = select.select([sink], [sink], [], UPLOAD_STALL_S)
        if answered:
            return  # the device has made up its mind already
        if not ready:
            raise TimeoutError
        try:
            step = os.sendfile(sink.fileno(), source.fileno(), sent, min(CHUNK_BYTES, total - sent))
        except (BrokenPipeError, ConnectionResetError):
            return  # what it said before it closed is still there to be read
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
    except msgspec.DecodeError:
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


def _part(name: str) -> str:
    return quote(name, safe="@")
