"""The document says what the server does, because both are made from one table."""

import re

import msgspec

from lenskeep.daemon.control.table import ROUTES, document
from lenskeep.messages import control
from tests.pocketdevice import PocketDevice

METHODS = {"get", "put", "post", "delete"}


def references(value):
    if isinstance(value, dict):
        if "$ref" in value:
            yield value["$ref"]
        for each in value.values():
            yield from references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


async def test_document_is_served_to_everybody_and_whole(tcp):
    async with tcp.get("/openapi.json") as answer:
        served = await answer.json()
    assert served == msgspec.json.decode(msgspec.json.encode(document()))
    assert served["openapi"] == "3.1.0"
    assert {"title", "version"} <= served["info"].keys()


def test_every_reference_leads_somewhere():
    whole = document()
    found = set(references(whole))
    assert found
    for reference in found:
        place = whole
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]


def test_every_operation_is_complete_and_named_once():
    names = []
    for path, item in document()["paths"].items():
        assert path.startswith("/") and set(item) <= METHODS
        for method, operation in item.items():
            names.append(operation["operationId"])
            assert operation["summary"] and operation["x-permission"]
            inside = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert inside == set(re.findall(r"\{(\w+)\}", path)), path
            assert "default" in operation["responses"] and len(operation["responses"]) == 2
            assert ("requestBody" in operation) <= (method in ("post", "put"))
    assert len(names) == len(set(names))


def test_every_request_and_answer_of_the_messages_is_described():
    components = document()["components"]["schemas"]
    for name, struct in vars(control).items():
        public = isinstance(struct, type) and issubclass(struct, msgspec.Struct) and not name.startswith("_")
        if public and struct.__module__ == control.__name__:
            assert name in components, name
    assert components["ActivationRequest"]["additionalProperties"] is False


async def test_every_route_of_the_document_answers(unix, device: PocketDevice):
    """Ask each door; nothing may be missing, unforeseen, or of another kind than promised."""
    bodies = {
        "CheckRequest": {"bundle": "cap-inspect@1.0.0"}, "ActivationRequest": {"bundle": "cap-inspect@1.0.0"},
        "SlotRequest": {}, "HoldRequest": {"held": True}, "PinRequest": {"pinned": True},
        "KeyRequest": {"name": "k", "pem": "x", "patterns": ["*"]}, "RevokeRequest": {"reason": "lost"},
        "TokenRequest": {"name": "t", "role": "viewer"},
        "SignRequest": {"id": "1f3a9c20", "digest": "ab" * 32, "meaning": "approval", "reason": "seen"},
        "RefuseRequest": {"id": "1f3a9c20", "reason": "not this lot"},
        "RootRequest": {"root": "{}"}, "SyncRequest": {}, "CarryFault": {"message": "pulled out"},
        "InstallRequest": {"chain": "x"}, "EnrolRequest": {"url": "https://fleet:8443", "token": "lke_x"},
        "OutboxRequest": {}, "ReceiptRequest": {"envelope": "{}"},
    }  # fmt: skip
    device.begin("check", "cap-inspect@1.0.0", "test")
    places = {"ref": "cap-inspect@1.0.0", "slot": "main", "camera": "cam-1", "id": "", "number": "1"}
    late = [route for route in ROUTES if route.method == "DELETE"]
    for route in [route for route in ROUTES if route not in late] + late:
        places["id"] = {"/v1/operations/{id}": "op1", "/v1/tokens/{id}": "t"}.get(route.path, "k")
        options = {}
        if route.body is not None:
            options = {"json": bodies[route.body.__name__]}
        elif route.upload:
            options = {"data": b"bundle", "headers": {"Content-Type": "application/octet-stream"}}
        async with unix.request(route.method, route.path.format(**places), **options) as answer:
            assert answer.status == route.status, (route.path, await answer.text())
            if route.answer is not None:
                assert answer.content_type == route.media, route.path
            if route.media == "application/json" and route.answer is not None:
                msgspec.json.decode(await answer.read(), type=route.answer)
