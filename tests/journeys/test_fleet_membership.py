"""A device becomes a member of a fleet, over the network and by stick, through the real daemon and the real commands."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from lenskeep.clock import BUILT_AT, Clock
from lenskeep.daemon.identity import Identity
from lenskeep.database import open_database
from lenskeep.errors import (
    DeviceKeyLostError,
    EnrolmentTokenError,
    FleetNotProvenError,
    FleetUnreachableError,
    ForeignIdentityError,
    LenskeepError,
    NotEnrolledError,
    StorageError,
    UnlistedDeviceError,
)
from lenskeep.messages.fleet import DeviceReport
from lenskeep.messages.identity import EnrolRequest, InstallRequest
from lenskeep.registry import journal
from lenskeep.trust import ca, certificates, identity, invitation
from tests.device import Device
from tests.fleetrig import FleetServer, LyingClock, running_fleet

YEAR_S = 365 * 86400.0


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    with running_fleet() as server:
        yield server


def lenskeep(*words: object, device: Device | None = None, fleet: FleetServer | None = None, code: int = 0) -> Any:
    """Run a command as people do and return what it says as JSON."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"}
    if device is not None:
        environment["LENSKEEP_DEVICE"] = str(device.socket)
    if fleet is not None:
        environment["LENSKEEP_FLEET"] = str(fleet.socket)
    ran = subprocess.run(
        [sys.executable, "-W", "error", "-m", "lenskeep.cli.main", *map(str, words), "--json"],
        env=environment, capture_output=True, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert ran.returncode == code, (ran.stdout, ran.stderr)
    return json.loads(ran.stdout)["data"]


# --- the whole way --------------------------------------------------------------------------------------------------


def test_a_device_enrols_over_the_network_and_reports_by_stick(
    fleet: FleetServer, make_device: Callable[..., Device], tmp_path: Path
) -> None:
    device = make_device(more='[device]\nid = "cam-net"')
    device.start()
    assert lenskeep("identity", "show", device=device)["enrolled"] is False
    token = lenskeep("fleet", "token", "cam-net", fleet=fleet)["token"]
    other = lenskeep("fleet", "token", "cam-other", fleet=fleet)["token"]
    assert lenskeep("enrol", fleet.url, "--token", other, device=device, code=4)["code"] == ForeignIdentityError.code
    said = lenskeep("enrol", fleet.url, "--token", token, device=device)
    assert (said["enrolled"], said["fleet"]) == (True, fleet.url)
    assert said["authority_fingerprint"] == lenskeep("fleet", "ca", "show", fleet=fleet)["fingerprint"]
    assert lenskeep("fleet", "show", "cam-net", fleet=fleet)["device"]["fingerprint"] == said["fingerprint"]

    device.until(lambda: (now := device.client.status().fleet) and now.level, "it has told the fleet how it stands")
    for _ in range(2):
        report = device.client.signed_report()
        path = tmp_path / "reports" / "cam-net" / f"{report.counter}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(report.envelope)
    (tmp_path / "reports" / "cam-net" / "99.json").write_text("not signed")
    taken = lenskeep("fleet", "take", tmp_path, fleet=fleet, code=4)
    assert (taken["taken"], taken["known"], [one["counter"] for one in taken["refused"]]) == (2, 0, [99])
    (tmp_path / "reports" / "cam-net" / "99.json").unlink()
    assert lenskeep("fleet", "take", tmp_path, fleet=fleet)["known"] == 2
    shown = lenskeep("fleet", "show", "cam-net", fleet=fleet)
    assert shown["device"]["counter"] >= 2  # it may have reported by itself again
    assert shown["head_sequence"] > 0

    device.kill()
    device.start()
    assert lenskeep("identity", "show", device=device)["enrolled"] is True
    assert any("enrol certificate" in entry.action for entry in device.client.audit(limit=50))


def test_a_device_without_a_network_becomes_a_member_by_stick(
    fleet: FleetServer, make_device: Callable[..., Device], tmp_path: Path
) -> None:
    device = make_device(more='[device]\nid = "cam-stick"')
    device.start()
    asked = lenskeep("identity", "csr", tmp_path, device=device)
    assert asked["file"] == str(tmp_path / "csr" / "cam-stick.csr")
    assert "PRIVATE" not in Path(asked["file"]).read_text()
    assert lenskeep("fleet", "take", tmp_path, fleet=fleet)["requests"] == ["cam-stick"]
    # nobody at the terminal and nothing compared: refused
    assert lenskeep("fleet", "enrol", "--csr", asked["file"], fleet=fleet, code=2)["code"] == "LK-1100"
    wrong = identity.fingerprint("ab" * 32)
    lenskeep("fleet", "enrol", "--csr", asked["file"], "--fingerprint", wrong, fleet=fleet, code=7)
    words = ("--csr", asked["file"], "--out", tmp_path, "--fingerprint", asked["fingerprint"])
    answer = lenskeep("fleet", "enrol", *words, fleet=fleet)
    lenskeep("identity", "install", answer["file"], device=device, code=2)
    lenskeep("identity", "install", answer["file"], "--ca-fingerprint", wrong, device=device, code=4)
    authority = lenskeep("fleet", "ca", "show", fleet=fleet)["fingerprint"]
    said = lenskeep("identity", "install", answer["file"], "--ca-fingerprint", authority.lower(), device=device)
    assert said["enrolled"] is True
    assert lenskeep("identity", "install", answer["file"], device=device)["enrolled"] is True  # the fleet is known now
    spoiled = tmp_path / "spoiled.crt"
    spoiled.write_text(Path(answer["file"]).read_text().replace("A", "B", 3))
    lenskeep("identity", "install", spoiled, "--ca-fingerprint", authority, device=device, code=4)
    assert lenskeep("identity", "show", device=device)["enrolled"] is True


@pytest.mark.parametrize("file", ["device.key", "membership.json", "id"])
def test_a_damaged_identity_does_not_keep_the_device_from_working(
    make_device: Callable[..., Device], file: str
) -> None:
    device = make_device()
    folder = device.folder / "state" / "identity"
    folder.mkdir(parents=True)
    (folder / file).write_bytes(b"\xffbit rot")
    device.start()
    codes = {check.code for check in device.client.health() if not check.passed}
    expected = {"device.key": DeviceKeyLostError.code, "membership.json": StorageError.code}.get(file)
    assert expected is None or expected in codes
    assert device.client.identity().enrolled is False


# --- the daemon's part alone ----------------------------------------------------------------------------------------


@asynccontextmanager
async def member(folder: Path, device: str, clock: Clock | None = None) -> AsyncIterator[Identity]:
    """A device's identity over a real registry."""
    key = identity.load_or_make_key(folder / "identity")
    async with open_database(folder / "registry.sqlite", "lenskeep.registry.schema") as database:
        made = Identity(device, key, folder / "identity", None, database, clock or Clock(), "")
        await made.begin()
        yield made


def facts(device: str, counter: int) -> DeviceReport:
    return DeviceReport(device=device, counter=counter, at_ms=0, clock_trusted=False)


def ask(fleet: FleetServer, token: str, **words: str) -> EnrolRequest:
    return EnrolRequest(url=words.pop("url", fleet.url), token=token, **words)


@pytest.mark.attack(91)
@pytest.mark.parametrize("wall_s", [0.0, 4_070_908_800.0, BUILT_AT - 86400.0])
async def test_a_device_that_has_lost_its_clock_enrols_reports_and_comes_back(
    fleet: FleetServer, tmp_path: Path, wall_s: float
) -> None:
    device = f"clock-{int(abs(wall_s)) % 9973}"
    async with member(tmp_path, device, LyingClock(wall_s)) as lost:
        said = await lost.enrol(ask(fleet, fleet.token(device)), "test")
        assert said.enrolled
        ends_s = certificates.read(
            json.loads((tmp_path / "identity" / "membership.json").read_text())["certificate"]
        ).ends_s
        assert abs(ends_s - time.time() - YEAR_S) < 7200, "the certificate's time is by the fleet's clock"
        assert (await lost.report(facts)).taken
        await lost.renew()
    async with member(tmp_path, device, LyingClock(wall_s)) as again:
        assert (await again.report(facts)).counter == 2


async def test_a_device_whose_clock_is_possible_and_wrong_says_so_and_does_not_connect(
    fleet: FleetServer, tmp_path: Path
) -> None:
    async with member(tmp_path, "clock-later", LyingClock(time.time() + 3 * YEAR_S)) as wrong:
        with pytest.raises(FleetNotProvenError, match="good from"):
            await wrong.enrol(ask(fleet, fleet.token("clock-later")), "test")


@pytest.mark.parametrize("kind", ["another authority", "authority's words without its key"])
async def test_somebody_in_between_is_refused_and_hears_no_token(fleet: FleetServer, tmp_path: Path, kind: str) -> None:
    now_s, heard = time.time(), bytearray()
    mine = ca.make_authority(now_s)
    key = identity.load_or_make_key(tmp_path / "between")
    (tmp_path / "chain").write_text(ca.certify_server(mine, key.public, now_s))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "between" / "device.key")
    shown = mine.pem if kind == "another authority" else fleet.authority().pem
    body = json.dumps({"certificate": shown, "key_id": "", "fingerprint": "", "ends": ""}).encode()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.read(65536))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    token = fleet.token("mitm")
    async with member(tmp_path, "mitm") as victim:
        with pytest.raises(FleetNotProvenError):
            await victim.enrol(ask(fleet, token, url=url), "test")
        assert token.encode() not in heard
        assert not victim.view().enrolled
        async with victim._database.read() as tx:
            assert "LK-4308" in str([tuple(row) for row in await tx.all("SELECT reason FROM record")])
        with pytest.raises(FleetNotProvenError):
            await victim.enrol(ask(fleet, token, authority_fingerprint=identity.fingerprint("ab" * 32)), "test")
        assert (await victim.enrol(ask(fleet, token), "test")).enrolled, "the token was spent"
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 14\r\n\r\n<html></html>\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"fffff\r\n" + b"A" * 0xFFFFF,
        b"garbage\r\n\r\n",
        b"",
    ],
)
async def test_whoever_answers_in_the_fleets_place_is_told_nothing(
    fleet: FleetServer, tmp_path: Path, answer: bytes
) -> None:
    key = identity.load_or_make_key(tmp_path / "between")
    (tmp_path / "chain").write_text(ca.certify_server(ca.make_authority(time.time()), key.public, time.time()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "chain", tmp_path / "between" / "device.key")

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=context)
    url = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with member(tmp_path, "portal") as device:
        with pytest.raises(LenskeepError) as refused:
            await device.enrol(ask(fleet, invitation.invite("ab" * 32).text(), url=url), "test")
        assert refused.value.code.startswith(("LK-70", "LK-43")), refused.value
    server.close()
    await server.wait_closed()


async def test_nobody_at_the_address_and_a_bad_token_are_told_apart(fleet: FleetServer, tmp_path: Path) -> None:
    async with member(tmp_path, "alone") as device:
        with pytest.raises(FleetUnreachableError):
            await device.enrol(ask(fleet, fleet.token("alone"), url="https://127.0.0.1:9"), "test")
        with pytest.raises(EnrolmentTokenError):
            await device.enrol(ask(fleet, "lke_garbage"), "test")
        with pytest.raises(NotEnrolledError):
            await device.report(facts)
        with pytest.raises(NotEnrolledError):
            await device.renew()


@pytest.mark.attack(92)
async def test_a_registry_that_was_put_back_learns_where_its_reports_go_on(fleet: FleetServer, tmp_path: Path) -> None:
    async with member(tmp_path, "restored") as device:
        await device.enrol(ask(fleet, fleet.token("restored")), "test")
        for counter in (1, 2, 3):
            assert (await device.report(facts)).counter == counter
        async with device._database.write() as tx:
            await journal.note(tx, "report", 1)  # as an old copy has it
        said = await device.report(facts)
        assert (said.taken, said.counter) == (True, 4)
        assert (await device.report(facts)).counter == 5


async def test_a_revoked_device_hears_why_and_its_renewal_fails_with_a_name(fleet: FleetServer, tmp_path: Path) -> None:
    async with member(tmp_path, "revoked") as device:
        await device.enrol(ask(fleet, fleet.token("revoked")), "test")
        fleet.client.revoke("revoked", "stolen")
        with pytest.raises(UnlistedDeviceError):
            await device.report(facts)
        with pytest.raises(UnlistedDeviceError):
            await device.renew()


async def test_a_certificate_is_renewed_at_two_thirds_of_its_life(fleet: FleetServer, tmp_path: Path) -> None:
    async with member(tmp_path, "renewed") as device:
        await device.enrol(ask(fleet, fleet.token("renewed")), "test")
    path = tmp_path / "identity" / "membership.json"
    before = json.loads(path.read_text())
    assert abs(before["renew_s"] - time.time() - YEAR_S * 2 / 3) < 7200
    path.write_text(json.dumps(before | {"renew_s": time.time() - 1}))
    async with member(tmp_path, "renewed") as device:
        loop = asyncio.create_task(device.run())
        async with asyncio.timeout(10):
            while json.loads(path.read_text())["certificate"] == before["certificate"]:
                await asyncio.sleep(0.02)
        assert (await device.report(facts)).taken
        loop.cancel()


@pytest.mark.parametrize("spoiled", [b"", b"{", b"[]", b"\xff\xfe", b'{"fleet":1}'])
async def test_a_damaged_membership_leaves_a_device_that_can_enrol_again(
    fleet: FleetServer, tmp_path: Path, spoiled: bytes
) -> None:
    device = f"damaged-{len(spoiled)}"
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity" / "membership.json").write_bytes(spoiled)
    async with member(tmp_path, device) as damaged:
        assert not damaged.view().enrolled
        assert bool(damaged.view().fault) is bool(spoiled)
        assert (await damaged.enrol(ask(fleet, fleet.token(device)), "test")).enrolled


async def test_a_certificate_that_cannot_be_written_changes_nothing(fleet: FleetServer, tmp_path: Path) -> None:
    async with member(tmp_path, "full") as device:
        (tmp_path / "identity" / "membership.json").mkdir()
        token = fleet.token("full")
        with pytest.raises(StorageError):
            await device.enrol(ask(fleet, token), "test")
        assert not device.view().enrolled
        (tmp_path / "identity" / "membership.json").rmdir()
        assert (await device.enrol(ask(fleet, token), "test")).enrolled, "the same token with the same key goes on"


async def test_a_certificate_of_another_device_is_not_installed(fleet: FleetServer, tmp_path: Path) -> None:
    authority = fleet.authority()
    named = identity.fingerprint(authority.key.public.id)
    async with member(tmp_path, "mine") as device:
        theirs = ca.certify_device(authority, "theirs", device.key.public, time.time())
        with pytest.raises(ForeignIdentityError):
            await device.install(InstallRequest(chain=theirs + authority.pem, authority_fingerprint=named), "test")
        mine = ca.certify_device(authority, "mine", device.key.public, time.time())
        with pytest.raises(FleetNotProvenError):
            await device.install(InstallRequest(chain=mine + authority.pem), "test")
        assert (
            await device.install(InstallRequest(chain=mine + authority.pem, authority_fingerprint=named), "test")
        ).enrolled
        with pytest.raises(UnlistedDeviceError):  # certified and not listed: the list decides
            device._configured_fleet = fleet.url
            await device.report(facts)
