"""What is asked is read strictly, done once, and answered in one form."""

import asyncio
import io
import json
import random
import re

import aiohttp
import pytest
from yarl import URL

from lenskeep.daemon.control.table import ROUTES
from tests.pocketdevice import JPEG, PocketDevice, configuration, served

ACTIVATE = {"bundle": "cap-inspect@1.1.0"}
OCTETS = {"Content-Type": "application/octet-stream"}


async def problem(answer: aiohttp.ClientResponse) -> dict:
    said = await answer.json(content_type="application/problem+json")
    assert said["status"] == answer.status
    assert said["type"] == f"urn:lenskeep:problem:{said['code']}"
    assert said["title"] and said["detail"] and said["hint"]
    assert said["request_id"] == answer.headers["X-Request-Id"]
    return said


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({**ACTIVATE, "forse": True}, "/forse"),
        ({}, "/bundle"),
        ({"bundle": 7}, "/bundle"),
        ({"bundle": "../../etc/passwd"}, "/bundle"),
        ({**ACTIVATE, "trial_s": "30"}, "/trial_s"),
        ({**ACTIVATE, "trial_s": -1}, "/trial_s"),
        ({**ACTIVATE, "trial_s": 1e9}, "/trial_s"),
        ({**ACTIVATE, "slot": "A B"}, "/slot"),
        ({**ACTIVATE, "accept_risks": ["all"]}, "/accept_risks/0"),
        ({**ACTIVATE, "reason": "x" * 501}, "/reason"),
        ([], ""),
    ],
)
async def test_wrong_field_is_named_by_its_pointer(unix, device, body, pointer):
    async with unix.post("/v1/activations", json=body) as answer:
        said = await problem(answer)
    assert (said["status"], said["code"]) == (400, "LK-1100")
    assert [field["pointer"] for field in said["errors"]] == [pointer]
    assert "Nothing was changed" in said["detail"]
    assert device.calls == []


@pytest.mark.parametrize(
    "body", [b"", b"{", b"\xff\xfe", b'{"bundle": "a@1"} trailing', b"[" * 5000, b'{"bundle":"\xff"}']
)
async def test_body_that_is_no_json_is_refused(unix, device, body):
    async with unix.post("/v1/activations", data=body, headers={"Content-Type": "application/json"}) as answer:
        assert (await problem(answer))["status"] == 400
    assert device.calls == []


async def test_form_and_plain_text_are_not_taken_for_json(unix, device):
    for content_type in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        async with unix.post(
            "/v1/activations", data=json.dumps(ACTIVATE), headers={"Content-Type": content_type}
        ) as answer:
            assert (await problem(answer))["status"] == 415
    async with unix.post("/v1/imports", json=ACTIVATE) as answer:
        assert (await problem(answer))["status"] == 415
    assert device.calls == []


async def test_compressed_body_is_refused(unix, device):
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    async with unix.post("/v1/activations", data=b"\x1f\x8b", headers=headers) as answer:
        assert (await problem(answer))["status"] == 415


async def test_long_body_is_refused_announced_or_not(unix, device):
    long = b'{"bundle": "' + b"a" * 300_000 + b'"}'

    async def pieces():
        for start in range(0, len(long), 50_000):
            yield long[start : start + 50_000]

    for data in (long, pieces()):
        async with unix.post("/v1/activations", data=data, headers={"Content-Type": "application/json"}) as answer:
            assert (await problem(answer))["status"] == 413
    assert device.calls == []


@pytest.mark.parametrize("query", ["limit=0", "limit=abc", "limit=5&limit=6", "lmit=5", "limit=1001"])
async def test_wrong_query_is_named(unix, query):
    async with unix.get(f"/v1/audit?{query}") as answer:
        said = await problem(answer)
    assert said["status"] == 400
    assert said["errors"][0]["pointer"] == f"?{query.partition('=')[0]}"


async def test_unknown_path_and_method_are_problems_too(unix):
    async with unix.get("/v1/nothing") as answer:
        assert (await problem(answer))["code"] == "LK-1101"
    async with unix.patch("/v1/status") as answer:
        assert (await problem(answer))["status"] == 405
        assert answer.headers["Allow"] == "GET"
    async with unix.get("/v1/slots/nowhere") as answer:
        assert (await problem(answer))["status"] == 404


async def test_work_is_accepted_with_its_place(unix, device):
    async with unix.post("/v1/activations", json={**ACTIVATE, "trial_s": 30, "reason": "new lot"}) as answer:
        operation = await answer.json()
        assert answer.status == 202
        assert answer.headers["Location"] == f"/v1/operations/{operation['id']}"
    async with unix.get(answer.headers["Location"] + "?wait=5") as answer:
        assert (await answer.json())["state"] == "succeeded"
    request = device.calls[0][1]
    assert (request.trial_s, request.reason) == (30, "new lot")


async def test_wait_answers_at_its_end_while_the_work_goes_on(unix, device):
    device.operation_delay_s = 60
    async with unix.post("/v1/checks", json=ACTIVATE) as answer:
        place = answer.headers["Location"]
    async with unix.get(f"{place}?wait=0.05") as answer:
        assert (await answer.json())["state"] == "running"


async def test_double_tap_is_done_once(unix, device):
    headers = {"Idempotency-Key": "tap-1"}

    async def tap():
        async with unix.post("/v1/activations", json=ACTIVATE, headers=headers) as answer:
            return answer.status, answer.headers["Location"], await answer.read()

    answers = await asyncio.gather(tap(), tap(), tap())
    assert len(set(answers)) == 1
    assert len(device.calls) == 1


async def test_key_of_another_request_is_refused(unix, device):
    headers = {"Idempotency-Key": "tap-1"}
    async with unix.post("/v1/activations", json=ACTIVATE, headers=headers) as answer:
        assert answer.status == 202
    for path, body in (("/v1/activations", {"bundle": "cap-inspect@1.2.0"}), ("/v1/checks", ACTIVATE)):
        async with unix.post(path, json=body, headers=headers) as answer:
            assert (await problem(answer))["code"] == "LK-1106"
    assert len(device.calls) == 1


async def test_refusal_is_not_kept_under_the_key(unix, device):
    from lenskeep.errors import ConflictError

    device.refusal = ConflictError("The slot main is busy. Nothing was changed.")
    headers = {"Idempotency-Key": "tap-1"}
    async with unix.post("/v1/activations", json=ACTIVATE, headers=headers) as answer:
        assert (await problem(answer))["status"] == 409
    device.refusal = None
    async with unix.post("/v1/activations", json=ACTIVATE, headers=headers) as answer:
        assert answer.status == 202


async def test_secret_is_never_kept_under_a_key(unix, device):
    body = {"name": "panel", "role": "operator"}
    async with unix.post("/v1/tokens", json=body, headers={"Idempotency-Key": "t"}) as answer:
        assert (await problem(answer))["status"] == 400
    async with unix.post("/v1/tokens", json=body) as answer:
        assert (answer.status, (await answer.json())["secret"]) == (201, "secret-panel")
    assert device.answers == {}


async def test_hold_with_an_old_etag_changes_nothing(unix, device):
    async with unix.get("/v1/slots/main") as answer:
        etag = answer.headers["ETag"]
    for held in (True, False):
        async with unix.put("/v1/slots/main/hold", json={"held": held}, headers={"If-Match": etag}) as answer:
            if held:
                assert answer.status == 200 and answer.headers["ETag"] != etag
            else:
                assert (await problem(answer))["code"] == "LK-1105"
    assert device.slot_now.held
    async with unix.put("/v1/slots/main/hold", json={"held": False}) as answer:
        assert answer.status == 200
    async with unix.put("/v1/slots/main/hold", json={"held": True, "slot": "other"}) as answer:
        assert answer.status == 400


async def test_upload_arrives_whole_announced_or_chunked(unix, device):
    data = bytes(range(256)) * 3000

    async def pieces():
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    for body in (data, pieces()):
        async with unix.post("/v1/imports", data=body, headers=OCTETS) as answer:
            assert answer.status == 202
    assert device.files == [data, data]
    assert [call[2] for call in device.calls] == [len(data), None]


async def test_upload_over_the_limit_is_refused_announced_or_chunked(unix, device):
    async def pieces():
        for _ in range(40):
            yield bytes(1 << 16)

    for body in (io.BytesIO(bytes(40 << 16)), pieces()):
        async with unix.post("/v1/imports", data=body, headers=OCTETS) as answer:
            assert (await problem(answer))["code"] == "LK-4011"
    assert device.files == []


async def test_refused_bundle_is_a_problem_with_its_code(unix, device):
    for path in ("/v1/imports", "/v1/verifications"):
        async with unix.post(path, data=b"stranger", headers=OCTETS) as answer:
            said = await problem(answer)
            assert (said["status"], said["code"]) == (422, "LK-4001")
            assert "Nothing was stored" in said["detail"]


async def test_upload_that_breaks_off_stores_nothing(socket_path, device):
    reader, writer = await asyncio.open_unix_connection(socket_path)
    writer.write(b"POST /v1/imports HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n")
    writer.write(b"Content-Length: 1000\r\n\r\n" + bytes(400))
    await writer.drain()
    writer.write_eof()
    await asyncio.wait_for(reader.read(), 5)  # the server has ended with this connection
    writer.close()
    assert device.files == []


async def test_file_goes_out_as_it_is_stored(unix):
    async with unix.get("/v1/bundles/cap-inspect@1.0.0/file") as answer:
        assert await answer.read() == b"hello world"
        assert answer.headers["Content-Length"] == "11"
        assert "cap-inspect-1.0.0.lkb" in answer.headers["Content-Disposition"]
    async with unix.get("/v1/bundles/cap-inspect@9.9.9/file") as answer:
        assert (await problem(answer))["status"] == 404


async def test_removal_answers_with_nothing(unix, device):
    async with unix.delete("/v1/bundles/cap-inspect@0.9.0?reason=old") as answer:
        assert (answer.status, await answer.read()) == (204, b"")
    assert device.calls[0][:2] == ("remove", "cap-inspect@0.9.0")
    async with unix.delete("/v1/bundles/cap-inspect@0.9.0") as answer:
        assert answer.status == 404


async def test_list_says_where_it_goes_on(unix):
    seen, path = [], "/v1/audit?limit=2"
    while path:
        async with unix.get(path) as answer:
            seen += [entry["sequence"] for entry in await answer.json()]
            path = str(answer.links["next"]["url"].relative()) if "next" in answer.links else ""
    assert seen == [5, 4, 3, 2, 1]


async def test_snapshot_says_how_old_it_is(unix):
    async with unix.get("/v1/cameras/cam-1/snapshot.jpg") as answer:
        assert await answer.read() == JPEG
        assert answer.headers["X-Frame-Age-Ms"] == "33"
        assert answer.headers["X-Model-Version"] == "cap-inspect@1.0.0"
        assert answer.headers["Cache-Control"] == "no-store"


async def test_readyz_names_what_fails(unix, device):
    async with unix.get("/readyz") as answer:
        assert (answer.status, await answer.json()) == (200, {"ok": True, "failing": []})
    device.failing = ["LK-2002"]
    async with unix.get("/healthz") as answer:
        assert (answer.status, await answer.json()) == (503, {"ok": False, "failing": ["LK-2002"]})


async def test_every_answer_is_guarded_and_named(unix):
    for path in ("/v1/status", "/v1/nothing", "/livez", "/metrics"):
        async with unix.get(path, headers={"X-Request-Id": "my-request-17"}) as answer:
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["X-Request-Id"] == "my-request-17"
            assert "Server" not in answer.headers
    async with unix.get("/livez", headers={"X-Request-Id": "bad id!"}) as answer:
        assert answer.headers["X-Request-Id"] != "bad id!"


async def test_unforeseen_fault_is_logged_and_not_shown(unix, device, caplog):
    device.status_now = None

    async def fails():
        raise RuntimeError("secret detail")

    from tests.pocketdevice import _Views

    original = _Views.status
    _Views.status = lambda self: fails()
    try:
        async with unix.get("/v1/status") as answer:
            said = await problem(answer)
    finally:
        _Views.status = original
    assert (said["status"], said["code"]) == (500, "LK-1000")
    assert "secret detail" not in json.dumps(said)
    assert "secret detail" in caplog.text


async def test_configuration_is_shown_without_passwords(device, tmp_path):
    from msgspec.structs import replace

    from lenskeep.config import Camera, Slot

    config = replace(
        configuration(port=0),
        slot=[Slot(name="main")],
        camera=[Camera(name="cam-1", source="rtsp://admin:hunter2@10.0.0.7/live")],
    )
    async with (
        served(PocketDevice(), config, tmp_path) as path,
        aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("/v1/config") as answer,
    ):
        text = await answer.text()
    assert "hunter2" not in text and "admin" not in text.replace('"admin"', "")
    assert "rtsp://***@10.0.0.7/live" in text


def _junk(dice: random.Random, deep: int = 3) -> object:
    kinds = [
        None, True, 0, -1, 2**63, 1e308, "", "main", "cap-inspect@1.0.0", "x" * 70, "\u202e\x00", "../..",
        float(dice.random()),
    ]  # fmt: skip
    if deep and dice.random() < 0.5:
        names = [
            "bundle",
            "slot",
            "reason",
            "held",
            "pinned",
            "name",
            "role",
            "days",
            "pem",
            "patterns",
            "trial_s",
            "?",
        ]
        if dice.random() < 0.7:
            return {dice.choice(names): _junk(dice, deep - 1) for _ in range(dice.randrange(4))}
        return [_junk(dice, deep - 1) for _ in range(dice.randrange(3))]
    return dice.choice(kinds)


async def test_no_junk_is_ever_an_unforeseen_fault(unix, device):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    writing = [route for route in ROUTES if route.body is not None]
    for _ in range(300):
        route = dice.choice(writing)
        place = dice.choice(
            ["main", "cap-inspect@1.0.0", "%00", "..%2f..", "a%0d%0aX-Evil:%201", "%F0%9F%92%A9", "{x}"]
        )
        path = re.sub(r"\{\w+\}", lambda _match, place=place: place, route.path)
        body = json.dumps(_junk(dice)).encode()
        request = unix.request(
            route.method, URL(path, encoded=True), data=body, headers={"Content-Type": "application/json"}
        )
        async with request as answer:
            assert answer.status < 500, (route.path, place, body)
            assert "X-Evil" not in answer.headers
            if answer.status >= 400:
                await problem(answer)
