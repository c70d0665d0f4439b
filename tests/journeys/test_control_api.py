"""The control API of a real daemon: rights that are stored, answers that outlive a crash, a document that is true."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from lenskeep.cli.client import Client
from lenskeep.cli.wire import Address
from lenskeep.daemon.control.table import ROUTES
from lenskeep.errors import IdempotencyError, NotPermittedError, NotSignedInError, PreconditionError
from lenskeep.messages.control import ActivationRequest, Operation, TokenRequest
from tests.device import Device
from tests.ports import free_port


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def shared(port: int) -> Iterator[Device]:
    """One running device with its port open and a version settled, for the tests that leave it as it is."""
    device = Device(Path(tempfile.mkdtemp(prefix="lk-")))
    device.config.write_text(device.config.read_text().replace("port = 0", f"port = {port}"))
    try:
        device.start()
        device.trust()
        device.settle("1.0.0")
        yield device
    finally:
        device.close()
        shutil.rmtree(device.folder, ignore_errors=True)


def ask(port: int, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    """One plain request over the port."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body)
    try:
        connection.request(method, path, data, sent | ({"Content-Type": "application/json"} if data else {}))
        answer = connection.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        connection.close()


def test_token_opens_what_its_role_may_and_nothing_after_its_removal(shared: Device, port: int) -> None:
    address = Address(host="127.0.0.1", port=port)
    made = shared.client.add_token(TokenRequest(name="panel", role="operator"))
    panel = Client(address, made.secret)
    assert (panel.whoami().name, panel.whoami().role) == ("token:panel", "operator")
    panel.hold("main", True)
    panel.hold("main", False)
    with pytest.raises(NotPermittedError):
        panel.remove("cap-inspect@1.0.0")
    with pytest.raises(NotSignedInError):
        Client(address).hold("main", True)
    assert made.secret.encode() not in b"".join(path.read_bytes() for path in shared.folder.rglob("*sqlite*"))
    shared.client.remove_token("panel")
    with pytest.raises(NotSignedInError):
        panel.status()
    assert "token:panel" in {entry.by for entry in shared.client.audit(limit=50)}


def test_request_sent_again_after_a_crash_gets_its_first_answer(device: Device) -> None:
    device.settle("1.0.0")
    device.bring("1.1.0")
    body = msgspec.json.encode(ActivationRequest(bundle="cap-inspect@1.1.0"))
    first = device.client._wire.ask("POST", "/v1/activations", body=body, headers={"Idempotency-Key": "change-4711"})
    device.runs("cap-inspect@1.1.0")
    device.kill()
    device.start()
    second = device.client._wire.ask("POST", "/v1/activations", body=body, headers={"Idempotency-Key": "change-4711"})
    assert second == first
    other = msgspec.json.encode(ActivationRequest(bundle="cap-inspect@1.0.0"))
    with pytest.raises(IdempotencyError):
        device.client._wire.ask("POST", "/v1/activations", body=other, headers={"Idempotency-Key": "change-4711"})
    activations = [entry for entry in device.client.audit(limit=100) if entry.action == "activate"]
    assert len(activations) == 2  # 1.0.0 at first, 1.1.0 once


def test_old_look_at_a_slot_changes_nothing(shared: Device, port: int) -> None:
    secret = shared.client.add_token(TokenRequest(name="looker", role="operator")).secret
    headers = {"Authorization": f"Bearer {secret}"}
    _, said, _ = ask(port, "GET", "/v1/slots/main", **headers)
    status, _, _ = ask(port, "PUT", "/v1/slots/main/hold", {"held": True}, If_Match=said["ETag"], **headers)
    assert status == 200
    status, _, body = ask(port, "PUT", "/v1/slots/main/hold", {"held": False}, If_Match=said["ETag"], **headers)
    assert (status, json.loads(body)["code"]) == (412, PreconditionError.code)
    assert shared.slot().held
    shared.client.hold("main", False)


def test_other_sites_and_other_names_are_refused_by_the_real_daemon(shared: Device, port: int) -> None:
    own = f"127.0.0.1:{port}"
    secret = shared.client.add_token(TokenRequest(name="line", role="admin")).secret
    for headers in (
        {"Host": "rebound.example"},
        {"Host": own, "Origin": "http://evil.example"},
        {"Host": own, "Sec_Fetch_Site": "cross-site"},
    ):
        status, said, _ = ask(port, "GET", "/v1/status", Authorization=f"Bearer {secret}", **headers)
        assert status == 403 and "Access-Control-Allow-Origin" not in said, headers


def test_every_reading_route_of_the_document_answers_as_it_says(shared: Device, port: int) -> None:
    operation = shared.client.operations()[0]
    places = {"ref": "cap-inspect@1.0.0", "slot": "main", "camera": "cam-1", "id": operation.id}
    _, _, body = ask(port, "GET", "/openapi.json")
    paths = json.loads(body)["paths"]
    secret = shared.client.add_token(TokenRequest(name="all", role="admin")).secret
    for route in ROUTES:
        assert route.method.lower() in paths[route.path]
        if route.method != "GET" or route.media in ("text/event-stream", "multipart/x-mixed-replace"):
            continue
        if route.path == "/v1/syncs/{id}/wanted":
            continue  # answers only while a sync is carried
        path = re.sub(r"\{(\w+)\}", lambda match: places[match[1]], route.path)
        status, headers, body = ask(port, "GET", path, Authorization=f"Bearer {secret}")
        assert status == 200, (path, body)
        assert headers["Content-Type"].startswith(route.media)
        if route.media == "application/json":
            msgspec.json.decode(body, type=route.answer)


def test_stream_goes_on_after_the_daemon_died(device: Device) -> None:
    device.bring("1.0.0")
    last = max(event.sequence for event in device.client.events(since=0, follow=False))
    device.kill()
    device.start()
    device.bring("1.1.0")
    later = list(device.client.events(since=last, types=["operation"], follow=False))
    assert later and all(event.sequence > last for event in later)
    ended = [msgspec.convert(event.data, Operation) for event in later]
    assert ("import", "succeeded") in {(operation.kind, operation.state) for operation in ended}
