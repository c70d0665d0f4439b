"""What devices tell a fleet: believed by signature, taken once, compared with what was witnessed; and what it serves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from lenskeep.bundle import signing
from lenskeep.bundle.keys import generate_key
from lenskeep.cli.fleetclient import FleetClient
from lenskeep.cli.wire import Address
from lenskeep.errors import (
    BundleError,
    LimitExceededError,
    NotPermittedError,
    NotSignedInError,
    RecordContradictedError,
    ReportForkError,
    ReportRefusedError,
    UnlistedDeviceError,
)
from lenskeep.messages.fleet import LastRefusal, OperatorTokenAsk, ReportAnswer, SlotReport, TrustedVersions, cut
from lenskeep.trust import envelope, stick
from lenskeep.trust.stick import REPORT_BYTES_MAX
from tests.fleetrig import FleetServer, Member, code_of, running_fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    with running_fleet() as server:
        yield server


def taken(said: object) -> bool:
    assert isinstance(said, ReportAnswer), said
    return said.taken


# --- reports --------------------------------------------------------------------------------------------------------


async def test_a_report_is_taken_and_shown_as_the_device_signed_it(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "rep-1", tmp_path).join()
    slot = SlotReport(slot="main", running="cap-inspect@1.1.0", digest="ab" * 32, state="settled", since_ms=7)
    words = {"slots": [slot], "trusted": TrustedVersions(root=2), "refusal": LastRefusal(code="LK-4102", text="old")}
    said = await member.send(member.report(**words))
    assert said == ReportAnswer(taken=True, counter=1)
    detail = fleet.client.device("rep-1")
    assert detail.device.running == {"main": "cap-inspect@1.1.0"}
    assert detail.report is not None
    assert (detail.report.trusted.root, detail.report.slots, detail.report.refusal) == (2, [slot], words["refusal"])


@pytest.mark.attack(100)
async def test_a_replayed_report_is_acknowledged_and_changes_nothing(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "rep-2", tmp_path).join()
    slots = [[SlotReport(slot="main", running=f"cap@{n}.0.0")] for n in range(3)]
    reports = [member.report(slots=slots[n]) for n in range(3)]
    assert [taken(await member.send(data)) for data in reports] == [True, True, True]
    before = fleet.client.device("rep-2")
    for old in (*reports, *reversed(reports)):
        assert await member.send(old) == ReportAnswer(taken=False, counter=3)
    assert fleet.client.device("rep-2") == before
    assert not [alarm for alarm in fleet.client.alarms() if alarm.device == "rep-2"]


@pytest.mark.attack(100)
async def test_two_reports_under_one_number_raise_an_alarm_and_the_first_stays(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "rep-3", tmp_path).join()
    assert taken(await member.send(member.report(5, clock_floor_s=1)))
    assert not taken(await member.send(member.report(5, clock_floor_s=2)))
    detail = fleet.client.device("rep-3")
    assert detail.report is not None
    assert detail.report.clock_floor_s == 1
    assert [alarm.code for alarm in fleet.client.alarms() if alarm.device == "rep-3"] == [ReportForkError.code]


@pytest.mark.attack(100)
async def test_the_same_report_on_many_connections_at_once_is_taken_once(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "rep-4", tmp_path).join()
    data = member.report()
    answers = await asyncio.gather(*(member.send(data) for _ in range(8)))
    assert sorted(taken(answer) for answer in answers) == [False] * 7 + [True]


async def test_a_report_from_the_future_is_ordered_by_its_number_like_any_other(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "rep-future", tmp_path).join()
    ahead_ms = 9_999_999_999_999
    assert taken(await member.send(member.report(at_ms=ahead_ms, slots=[SlotReport(slot="main", running="cap@2.0.0")])))
    assert taken(await member.send(member.report(at_ms=0, slots=[SlotReport(slot="main", running="cap@1.0.0")])))
    detail = fleet.client.device("rep-future")
    assert detail.device.running == {"main": "cap@1.0.0"}, "what came later counts, whatever the clock said"
    assert detail.device.heard < "2200"


@pytest.mark.attack(61)
async def test_a_bundles_signature_and_a_records_head_are_no_reports(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "rep-5", tmp_path).join()
    payload = msgspec.json.encode({"device": "rep-5", "counter": 1, "at_ms": 0, "clock_trusted": True})
    for kind in ("application/vnd.in-toto+json", envelope.RECORD_HEAD, "", "application/vnd.lenskeep.report+json "):
        assert code_of(await member.send(envelope.seal(payload, kind, member.key))) == ReportRefusedError.code, kind
    relabelled = json.loads(envelope.seal(payload, envelope.RECORD_HEAD, member.key))
    relabelled["payloadType"] = envelope.REPORT
    assert code_of(await member.send(json.dumps(relabelled).encode())) == ReportRefusedError.code
    bundle_signature = signing.sign([signing.SignedFile("model.json", "ab" * 32)], member.key, "cap")
    assert code_of(await member.send(bundle_signature)) == ReportRefusedError.code


@pytest.mark.attack(61)
async def test_a_report_is_no_bundles_signature(fleet: FleetServer, tmp_path: Path) -> None:
    member = Member(fleet, "rep-5", tmp_path)
    for data in (member.report(), member.head(3, "ab" * 32).encode(), _as_bundle(member)):
        with pytest.raises(BundleError):
            signing.verify(signing.open_signature(data), member.key.public)


def _as_bundle(member: Member) -> bytes:
    """A report's envelope dressed as the document around a bundle's signature."""
    dsse = json.loads(member.report())
    dsse["signatures"][0]["keyid"] = ""
    return json.dumps(
        {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {"publicKey": {"hint": member.key.public.id}, "tlogEntries": []},
            "dsseEnvelope": dsse | {"payloadType": "application/vnd.in-toto+json"},
        }
    ).encode()


async def test_a_report_of_another_key_or_about_another_device_is_refused(fleet: FleetServer, tmp_path: Path) -> None:
    first = await Member(fleet, "rep-6", tmp_path).join()
    second = await Member(fleet, "rep-7", tmp_path).join()
    stranger = Member(fleet, "rep-6", tmp_path)
    assert code_of(await first.send(stranger.report())) == UnlistedDeviceError.code
    assert code_of(await first.send(second.report())) == UnlistedDeviceError.code
    lying = Member(fleet, "rep-7", tmp_path, first.key)
    assert code_of(await first.send(lying.report())) == ReportRefusedError.code
    assert fleet.client.device("rep-7").device.counter == 0


async def test_spoiled_reports_are_refused_one_and_all(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "rep-8", tmp_path).join()
    good, seed = member.report(), random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    for _ in range(60):
        at, spoiled = dice.randrange(len(good)), bytearray(good)
        match dice.randrange(3):
            case 0:
                spoiled[at] ^= 1 << dice.randrange(8)
            case 1:
                del spoiled[at:]
            case _:
                spoiled.insert(at, dice.randrange(256))
        if json_or_none(bytes(spoiled)) == json.loads(good):
            continue  # white space outside of what is signed
        assert code_of(await member.send(bytes(spoiled))) in (ReportRefusedError.code, UnlistedDeviceError.code), (
            spoiled
        )
    for payload in (b"{}", b"[]", b"null", b'{"device":"rep-8","counter":0,"at_ms":0,"clock_trusted":true}', b"\xff",
                    b'{"device":"rep-8","counter":1,"counter":2,"at_ms":0,"clock_trusted":true}', b"[" * 1000):  # fmt: skip
        data = envelope.seal(payload, envelope.REPORT, member.key)
        assert code_of(await member.send(data)) == ReportRefusedError.code, payload
    assert fleet.client.device("rep-8").device.counter == 0


def json_or_none(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


async def test_the_largest_report_a_device_can_make_is_taken_and_a_larger_one_is_not(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "rep-9", tmp_path).join()
    slot = SlotReport(slot="main", running=cut("x" * 900, 200), assigned="y" * 200, digest="ab" * 32, state="z" * 200)
    refusal = LastRefusal(code="LK-4102", text=cut("ü" * 9000, 2000))
    head = member.head(1, "ab" * 32)
    assert taken(await member.send(member.report(slots=[slot] * 64, refusal=refusal, record_head=head)))
    assert slot.running.endswith("[…]")
    status, data = await member.ask("POST", "/v1/devices/rep-9/reports", b"x" * (REPORT_BYTES_MAX + 1))
    assert (status, json.loads(data)["code"]) == (413, LimitExceededError.code)


async def test_a_device_of_a_later_release_is_understood(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "rep-10", tmp_path).join()
    payload = {"device": "rep-10", "counter": 1, "at_ms": 0, "clock_trusted": True, "weather": {"rain": 0.5}}
    assert taken(await member.send(envelope.seal(json.dumps(payload).encode(), envelope.REPORT, member.key)))


# --- the record's witness -------------------------------------------------------------------------------------------


async def test_a_record_that_became_shorter_or_different_raises_an_alarm_until_somebody_accepts_it(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "wit-1", tmp_path).join()

    async def told(sequence: int, hash_: str) -> tuple[int, str]:
        said = await member.send(member.report(record_head=member.head(sequence, hash_ * 64)))
        assert isinstance(said, ReportAnswer)
        assert said.taken
        return said.head_sequence, said.head_hash[:1]

    def alarms() -> list[str]:
        return [alarm.text for alarm in fleet.client.alarms() if alarm.device == "wit-1"]

    assert await told(10, "a") == (10, "a")
    assert await told(10, "a") == (10, "a")
    assert await told(20, "b") == (20, "b")
    assert not alarms()
    assert await told(15, "c") == (20, "b")  # shorter
    assert "ends at 15" in alarms()[0]
    assert await told(20, "d") == (20, "b")  # another entry in its place
    alarm = next(alarm for alarm in fleet.client.alarms() if alarm.device == "wit-1")
    assert (alarm.code, alarm.count) == (RecordContradictedError.code, 2)
    fleet.client.accept_alarm(alarm.id, "restored from a copy of yesterday")
    assert await told(15, "c") == (15, "c")
    assert not alarms()


async def test_a_records_head_of_another_device_or_key_is_no_witness_and_does_not_cost_the_report(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "wit-2", tmp_path).join()
    other = Member(fleet, "wit-3", tmp_path, member.key)
    stranger = Member(fleet, "wit-2", tmp_path)
    for head in (other.head(1, "ab" * 32), stranger.head(1, "ab" * 32), "garbage", member.report().decode()):
        said = await member.send(member.report(record_head=head))
        assert isinstance(said, ReportAnswer)
        assert (said.taken, said.head_sequence) == (True, 0)
    assert [alarm.count for alarm in fleet.client.alarms() if alarm.device == "wit-2"] == [4]


# --- kill -9 --------------------------------------------------------------------------------------------------------


async def test_no_acknowledged_report_is_lost_or_taken_twice_over_kills(tmp_path: Path) -> None:
    folder, seed = Path(tempfile.mkdtemp(prefix="lf-")), random.randrange(1 << 32)
    print("seed", seed)
    server, dice = FleetServer(folder), random.Random(seed)
    try:
        server.start()
        member = await Member(server, "cam-1", tmp_path).join()
        member.context()
        acknowledged = 0
        for _ in range(4):
            killer = asyncio.get_running_loop().call_later(dice.uniform(0.02, 0.3), server.kill)
            data = b""
            try:
                while True:
                    data = member.report()
                    assert taken(await member.send(data))
                    acknowledged = member.counter
            except (aiohttp.ClientError, OSError):
                killer.cancel()
            server.start()
            assert server.client.device("cam-1").device.counter in (acknowledged, member.counter)
            said = await member.send(data)  # the device says again what was not acknowledged
            assert isinstance(said, ReportAnswer)
            assert said.counter == member.counter
            acknowledged = member.counter
        assert not server.client.alarms()
    finally:
        server.close()
        shutil.rmtree(folder)


# --- the repository as files ----------------------------------------------------------------------------------------


async def test_the_repository_is_served_with_ranges_and_tags_and_says_what_may_be_kept(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "get-1", tmp_path).join()
    content = random.randbytes(100_000)
    name = f"targets/models/cap-inspect/{hashlib.sha256(content).hexdigest()}.1.0.0.lkb"
    files = {
        name: content,
        "metadata/timestamp.json": b"{}",
        "metadata/1.root.json": b"{}",
        "metadata/3.director.json": b"{}",
    }
    for path, data in files.items():
        (fleet.repository / path).parent.mkdir(parents=True, exist_ok=True)
        (fleet.repository / path).write_bytes(data)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=member.context())) as session:
        for path, kept in (
            (name, True), ("metadata/timestamp.json", False), ("metadata/1.root.json", False),
            ("metadata/3.director.json", True),
        ):  # fmt: skip
            async with session.get(f"{fleet.url}/v1/repository/{path}") as answer:
                assert await answer.read() == files[path]
                assert ("immutable" in answer.headers["Cache-Control"]) is kept, path
                tag = answer.headers["ETag"]
            async with session.get(f"{fleet.url}/v1/repository/{path}", headers={"If-None-Match": tag}) as answer:
                assert answer.status == 304
        async with session.get(f"{fleet.url}/v1/repository/{name}", headers={"Range": "bytes=99990-"}) as answer:
            assert (answer.status, await answer.read()) == (206, content[99990:])
        async with session.get(f"http://127.0.0.1:{fleet.plain_port}/v1/repository/{name}") as answer:
            assert await answer.read() == content
        async with session.get(f"http://127.0.0.1:{fleet.plain_port}/v1/enrolment") as answer:
            assert answer.status == 404


async def test_nothing_beside_the_repository_is_served(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "get-2", tmp_path).join()
    (fleet.repository / "metadata").mkdir(parents=True, exist_ok=True)
    (fleet.repository / "metadata" / "2.root.json").symlink_to(fleet.folder / "state" / "authority" / "authority.key")
    digest = "ab" * 32
    (fleet.repository / "targets").mkdir(exist_ok=True)
    (fleet.repository / "targets" / "out").symlink_to(fleet.folder / "state")
    (fleet.folder / "state" / f"{digest}.secret").write_text("hidden words")
    for path in (
        "metadata/2.root.json", f"targets/out/{digest}.secret", "metadata/", "metadata/..%2f..%2ffleet.sqlite",
        "targets/../../authority/authority.key", f"targets/%2e%2e/%2e%2e/{digest}.x", "metadata/timestamp.json%00",
        f"targets/a/b/c/d/e/f/{digest}.x", "metadata/authority.key", "metadata/0.root.json", "metadata/.root.json",
    ):  # fmt: skip
        status, data = await member.ask("GET", f"/v1/repository/{path}")
        assert status in (401, 404, 422), path
        assert b"hidden words" not in data
        assert b"PRIVATE" not in data


# --- operators ------------------------------------------------------------------------------------------------------


def test_an_operators_token_opens_what_its_role_may_and_nothing_else(fleet: FleetServer) -> None:
    address = Address(host="127.0.0.1", port=fleet.operator_port)
    with pytest.raises(NotSignedInError):
        FleetClient(address).devices()
    with pytest.raises(NotSignedInError):
        FleetClient(address, "lkf_wrong").devices()
    made = {
        role: fleet.client.add_operator(OperatorTokenAsk(name=f"t-{role}", role=role))
        for role in ("viewer", "operator")
    }
    viewer, operator = (FleetClient(address, made[role].secret) for role in ("viewer", "operator"))
    assert viewer.devices() == operator.devices()
    with pytest.raises(NotPermittedError):
        viewer.revoke("rep-1", "no")
    with pytest.raises(NotPermittedError):
        operator.add_operator(OperatorTokenAsk(name="mine", role="admin"))
    assert fleet.client.device("rep-1").device.state == "enrolled"
    fleet.client.remove_operator("t-viewer")
    with pytest.raises(NotSignedInError):
        viewer.devices()
    assert {"add operator token", "remove operator token"} <= {deed.action for deed in fleet.client.deeds()}


def test_secrets_are_stored_as_hashes_and_files_are_closed(fleet: FleetServer) -> None:
    token = fleet.token("cam-secret")
    secret = base64.urlsafe_b64decode(token.removeprefix("lke_") + "==")[4:20]
    stored = b"".join(path.read_bytes() for path in (fleet.folder / "state").glob("fleet.sqlite*"))
    assert token.encode() not in stored
    assert secret.hex().encode() not in stored
    for path in (fleet.folder / "state" / "authority").iterdir():
        if path.suffix == ".key":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


# --- the first start ------------------------------------------------------------------------------------------------


def test_an_authority_survives_restarts_and_a_power_cut_and_is_never_made_anew_in_silence(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder)
    authority = folder / "state" / "authority"
    try:
        server.start()
        first = server.client.authority()
        server.close()
        (authority / "server.crt").write_bytes(b"half")  # it is a derivative
        server.start()
        assert server.client.authority() == first
        server.close()
        (authority / "authority.crt").unlink()  # a power cut at the first start
        server.start()
        assert server.client.authority().key_id == first.key_id
        server.close()
        (authority / "authority.key").rename(folder / "kept")
        lost = subprocess.run(
            [sys.executable, "-m", "lenskeep.fleet", "--config", server.config], capture_output=True, check=False
        )
        assert lost.returncode == 78
        assert b"LK-1010" in lost.stderr
        assert not (authority / "authority.key").exists()
        (authority / "authority.key").write_bytes(generate_key().pem())
        foreign = subprocess.run(
            [sys.executable, "-m", "lenskeep.fleet", "--config", server.config], capture_output=True, check=False
        )
        assert foreign.returncode == 78
        (folder / "kept").replace(authority / "authority.key")
        server.database.write_bytes(b"damaged" * 1000)
        damaged = subprocess.run(
            [sys.executable, "-m", "lenskeep.fleet", "--config", server.config], capture_output=True, check=False
        )
        assert (damaged.returncode, b"backup" in damaged.stderr) == (1, True)
        assert server.database.read_bytes() == b"damaged" * 1000
    finally:
        server.close()
        shutil.rmtree(folder)


# --- sticks ---------------------------------------------------------------------------------------------------------


def test_a_stick_is_read_as_somebody_elses(tmp_path: Path) -> None:
    for counter in (10, 9, 100):
        stick.write(tmp_path, stick.report_file("cam-1", counter), b"{}")
    stick.write(tmp_path, stick.csr_file("cam-1"), b"csr")
    folder = tmp_path / "reports" / "cam-1"
    for name in ("0.json", "-1.json", "1e3.json", "x.json", "11.json.part", ".12.json", "9" * 30 + ".json"):
        (folder / name).write_bytes(b"{}")
    (tmp_path / "reports" / "..x").mkdir()
    (tmp_path / "reports" / "cam-2").symlink_to(folder)
    (tmp_path / "csr" / "CAM.csr").write_bytes(b"")
    (folder / "7.json").symlink_to("/etc/hostname")
    with pytest.raises(Exception, match="cam-2"):
        list(stick.reports(tmp_path))
    (tmp_path / "reports" / "cam-2").unlink()
    assert [counter for _, counter, _ in stick.reports(tmp_path)] == [7, 9, 10, 100]
    with pytest.raises(Exception, match=r"7\.json"):
        stick.read(tmp_path, stick.report_file("cam-1", 7), 100)
    assert [device for device, _ in stick.csrs(tmp_path)] == ["cam-1"]
    with pytest.raises(Exception, match="more than"):
        stick.read(tmp_path, stick.report_file("cam-1", 9), 1)
