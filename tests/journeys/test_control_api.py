"""The control API of a real daemon: rights that are stored, answers that outlive a crash, a document that is true."""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable

import msgspec
import pytest
from pocketdevice import free_port

from lenskeep.cli.client import Address, Client
from lenskeep.daemon.control.table import ROUTES
from lenskeep.errors import NotPermittedError, NotSignedInError, PreconditionError
from lenskeep.messages.control import Operation, TokenRequest
from tests.device import Device


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def open_device(make_device: Callable[..., Device], port: int) -> Device:
    """A running device with its port open and a version settled."""
    device = make_device()
    device.config.write_text(device.config.read_text().replace("port = 0", f"port = {port}"))
    device.start()
    device.trust()
    device.settle("1.0.0")
    return device


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


def test_token_opens_what_its_role_may_and_nothing_after_its_removal(open_device: Device, port: int) -> None:
    address = Address(host="127.0.0.1", port=port)
    made = open_device.client.add_token(TokenRequest(name="panel", role="operator"))
    panel = Client(address, made.secret)
    assert (panel.whoami().name, panel.whoami().role) == ("token:panel", "operator")
    panel.hold("main", True)
    panel.hold("main", False)
    with pytest.raises(NotPermittedError):
        panel.remove("cap-inspect@1.0.0")
    with pytest.raises(NotSignedInError):
        Client(address).hold("main", True)
    assert made.secret.encode() not in b"".join(path.read_bytes() for path in open_device.folder.rglob("*sqlite*"))
    open_device.client.remove_token("panel")
    with pytest.raises(NotSignedInError):
        panel.status()
    assert [entry.by for entry in open_device.client.audit(limit=50) if entry.action in ("hold", "resume")][:1] in (
        ["token:panel"],
        [],
    )


def test_request_sent_again_after_a_crash_gets_its_first_answer(open_device: Device, port: int) -> None:
    open_device.bring("1.1.0")
    secret = open_device.client.add_token(TokenRequest(name="line", role="supervisor")).secret
    headers = {"Authorization": f"Bearer {secret}", "Idempotency_Key": "change-4711"}
    wanted = {"bundle": "cap-inspect@1.1.0"}
    status, _, first = ask(port, "POST", "/v1/activations", wanted, **headers)
    assert status == 202
    open_device.runs("cap-inspect@1.1.0")
    open_device.kill()
    open_device.start()
    status, _, second = ask(port, "POST", "/v1/activations", wanted, **headers)
    assert (status, second) == (202, first)
    status, _, _ = ask(port, "POST", "/v1/activations", {"bundle": "cap-inspect@1.0.0"}, **headers)
    assert status == 422
    activations = [entry for entry in open_device.client.audit(limit=100) if entry.action == "activate"]
    assert len(activations) == 2  # 1.0.0 at first, 1.1.0 once


def test_old_look_at_a_slot_changes_nothing(open_device: Device, port: int) -> None:
    secret = open_device.client.add_token(TokenRequest(name="line", role="operator")).secret
    headers = {"Authorization": f"Bearer {secret}"}
    _, said, _ = ask(port, "GET", "/v1/slots/main", **headers)
    status, _, _ = ask(port, "PUT", "/v1/slots/main/hold", {"held": True}, If_Match=said["ETag"], **headers)
    assert status == 200
    status, _, body = ask(port, "PUT", "/v1/slots/main/hold", {"held": False}, If_Match=said["ETag"], **headers)
    assert (status, json.loads(body)["code"]) == (412, PreconditionError.code)
    assert open_device.slot().held


def test_other_sites_and_other_names_are_refused_by_the_real_daemon(open_device: Device, port: int) -> None:
    own = f"127.0.0.1:{port}"
    secret = open_device.client.add_token(TokenRequest(name="line", role="admin")).secret
    for headers in (
        {"Host": "rebound.example"},
        {"Host": own, "Origin": "http://evil.example"},
        {"Host": own, "Sec_Fetch_Site": "cross-site"},
    ):
        status, said, _ = ask(port, "GET", "/v1/status", Authorization=f"Bearer {secret}", **headers)
        assert status == 403 and "Access-Control-Allow-Origin" not in said, headers


def test_every_reading_route_of_the_document_answers_as_it_says(open_device: Device, port: int) -> None:
    operation = open_device.client.operations()[0]
    places = {"ref": "cap-inspect@1.0.0", "slot": "main", "camera": "cam-1", "id": operation.id}
    _, _, body = ask(port, "GET", "/openapi.json")
    paths = json.loads(body)["paths"]
    secret = open_device.client.add_token(TokenRequest(name="all", role="admin")).secret
    for route in ROUTES:
        assert route.method.lower() in paths[route.path]
        if route.method != "GET" or route.media in ("text/event-stream", "multipart/x-mixed-replace"):
            continue
        path = re.sub(r"\{(\w+)\}", lambda match: places[match[1]], route.path)
        status, headers, body = ask(port, "GET", path, Authorization=f"Bearer {secret}")
        assert status == 200, (path, body)
        assert headers["Content-Type"].startswith(route.media)
        if route.media == "application/json":
            msgspec.json.decode(body, type=route.answer)


def test_stream_goes_on_after_the_daemon_died(open_device: Device) -> None:
    last = max(event.sequence for event in open_device.client.events(since=0, follow=False))
    open_device.kill()
    open_device.start()
    open_device.bring("1.1.0")
    later = list(open_device.client.events(since=last, types=["operation"], follow=False))
    assert later and all(event.sequence > last for event in later)
    ended = [msgspec.convert(event.data, Operation) for event in later]
    assert ("import", "succeeded") in {(operation.kind, operation.state) for operation in ended}
