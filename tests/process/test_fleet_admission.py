"""Who gets into a fleet and who does not, at the real server's door."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import sqlite3
import ssl
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID

from lenskeep.bundle.keys import generate_key
from lenskeep.clock import BUILT_AT
from lenskeep.daemon import fleetline
from lenskeep.errors import (
    CertificateError,
    EnrolmentTokenError,
    FleetNotProvenError,
    ForeignIdentityError,
    NotEnrolledError,
    TokenUsedError,
    TooManyTriesError,
    UnlistedDeviceError,
)
from lenskeep.messages.control import Problem
from lenskeep.messages.fleet import CertificateAsk, Enrolled, EnrolmentRequest
from lenskeep.trust import ca, certificates, invitation, tls
from tests.fleetrig import FleetServer, LyingClock, Member, code_of, running_fleet


@pytest.fixture(scope="module")
def fleet() -> Iterator[FleetServer]:
    with running_fleet(request_s_max=1.0) as server:
        yield server


async def test_a_device_enrols_with_its_token_and_reads_the_repository(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "cam-1", tmp_path).join()
    status, _ = await member.ask("GET", "/v1/repository/metadata/timestamp.json")
    assert status == 404  # let in; there is nothing yet
    row = fleet.client.device("cam-1").device
    assert (row.state, row.key_id) == ("enrolled", member.key.public.id)


@pytest.mark.attack(102)
async def test_a_token_that_was_used_is_refused_to_another_key(fleet: FleetServer, tmp_path: Path) -> None:
    token = fleet.token("cam-2")
    first, thief = Member(fleet, "cam-2", tmp_path), Member(fleet, "cam-2", tmp_path)
    assert isinstance(await first.enrol(token), Enrolled)
    assert code_of(await thief.enrol(token)) == TokenUsedError.code
    assert fleet.client.device("cam-2").device.key_id == first.key.public.id
    assert [alarm.code for alarm in fleet.client.alarms() if alarm.device == "cam-2"] == [TokenUsedError.code]


async def test_the_same_request_with_the_same_token_gets_the_same_certificate(
    fleet: FleetServer, tmp_path: Path
) -> None:
    token, member = fleet.token("cam-3"), Member(fleet, "cam-3", tmp_path)
    first = await member.enrol(token)
    again = await Member(fleet, "cam-3", tmp_path, member.key).enrol(token)
    assert isinstance(first, Enrolled)
    assert first == again


@pytest.mark.attack(103)
async def test_a_request_in_the_name_of_another_device_is_refused(fleet: FleetServer, tmp_path: Path) -> None:
    token, member = fleet.token("cam-4"), Member(fleet, "cam-4", tmp_path)
    assert code_of(await member.enrol(token, csr=member.csr("cam-1"))) == ForeignIdentityError.code
    assert code_of(await member.enrol(token, device="cam-1", csr=member.csr("cam-1"))) == ForeignIdentityError.code
    assert isinstance(await member.enrol(token), Enrolled), "the token was spent by a refusal"


@pytest.mark.attack(102)
async def test_one_token_in_two_hands_at_once_lets_one_in(fleet: FleetServer, tmp_path: Path) -> None:
    for round_ in range(5):
        token = fleet.token(f"race-{round_}")
        members = [Member(fleet, f"race-{round_}", tmp_path) for _ in range(4)]
        answers = await asyncio.gather(*(member.enrol(token) for member in members))
        assert sorted(code_of(answer) for answer in answers) == ["", *[TokenUsedError.code] * 3]


async def test_guessed_spoiled_and_revoked_tokens_are_refused(fleet: FleetServer, tmp_path: Path) -> None:
    token, member = fleet.token("cam-5"), Member(fleet, "cam-5", tmp_path)
    said = invitation.read(token)
    guessed = msgspec_replace(said, secret=bytes(16)).text()
    for wrong in ("", "lke_", token[:-1], token + "A", guessed, invitation.invite("00" * 32).text()):
        assert code_of(await member.enrol(wrong)) == EnrolmentTokenError.code, wrong
    fleet.client.revoke("cam-5", "no longer wanted")
    assert code_of(await member.enrol(token)) == EnrolmentTokenError.code


def msgspec_replace(said: invitation.Invitation, **changes: bytes) -> invitation.Invitation:
    return invitation.Invitation(
        handle=said.handle, secret=changes.get("secret", said.secret), authority=said.authority
    )  # fmt: skip


@pytest.mark.attack(101)
async def test_a_certificate_of_our_authority_that_is_not_listed_opens_nothing(
    fleet: FleetServer, tmp_path: Path
) -> None:
    stranger = Member(fleet, "cam-1", tmp_path)
    stranger.show(ca.certify_device(fleet.authority(), "cam-1", stranger.key.public, time.time()))
    status, data = await stranger.ask("GET", "/v1/repository/metadata/timestamp.json")
    assert (status, msgspec.json.decode(data, type=Problem).code) == (403, UnlistedDeviceError.code)


@pytest.mark.attack(101)
async def test_a_listed_key_under_another_name_opens_nothing(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "cam-6", tmp_path).join()
    member.show(ca.certify_device(fleet.authority(), "cam-1", member.key.public, time.time()))
    status, data = await member.ask("GET", "/v1/repository/metadata/timestamp.json")
    assert (status, msgspec.json.decode(data, type=Problem).code) == (403, UnlistedDeviceError.code)


@pytest.mark.attack(101)
async def test_no_certificate_opens_nothing_but_enrolment(fleet: FleetServer, tmp_path: Path) -> None:
    nobody = Member(fleet, "cam-9", tmp_path)
    for method, path in (
        ("GET", "/v1/repository/metadata/timestamp.json"), ("POST", "/v1/devices/cam-1/reports"),
        ("POST", "/v1/devices/cam-1/certificate"), ("GET", "/v1/devices"), ("GET", "/v1/nothing"),
        ("GET", "/v1/authority/"), ("POST", "/v1//enrolment"),
    ):  # fmt: skip
        status, data = await nobody.ask(method, path)
        assert (status, msgspec.json.decode(data, type=Problem).code) == (401, NotEnrolledError.code), path


@pytest.mark.attack(101)
@pytest.mark.parametrize("kind", ["foreign", "expired", "not yet", "server's", "self-signed"])
async def test_a_certificate_that_tls_does_not_believe_ends_the_connection(
    fleet: FleetServer, tmp_path: Path, kind: str
) -> None:
    member, authority, now_s = await Member(fleet, f"cam-{kind[:3]}", tmp_path).join(), fleet.authority(), time.time()
    key = member.key.public
    shown = {
        "foreign": lambda: ca.certify_device(ca.make_authority(now_s), member.device, key, now_s),
        "expired": lambda: ca.certify_device(authority, member.device, key, now_s - 2 * 365 * 86400),
        "not yet": lambda: ca.certify_device(authority, member.device, key, now_s + 30 * 86400),
        "server's": lambda: ca.certify_server(authority, key, now_s),
        "self-signed": lambda: ca.make_authority(now_s, member.key).pem,
    }[kind]()
    member.show(shown, authority.pem)
    with pytest.raises((aiohttp.ClientError, OSError)):
        await member.ask("GET", "/v1/repository/metadata/timestamp.json")


@pytest.mark.attack(101)
async def test_a_revoked_device_is_out_at_once_even_on_the_connection_it_holds(
    fleet: FleetServer, tmp_path: Path
) -> None:
    member = await Member(fleet, "cam-7", tmp_path).join()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=member.context(), limit=1)) as session:
        url = f"{fleet.url}/v1/repository/metadata/timestamp.json"
        async with session.get(url) as before:
            assert before.status == 404
        await asyncio.to_thread(fleet.client.revoke, "cam-7", "stolen")
        async with session.get(url) as after:
            assert after.status == 403
            assert (await after.json(content_type=None))["code"] == UnlistedDeviceError.code
    again = Member(fleet, "cam-7", tmp_path, member.key)
    assert code_of(await again.enrol(fleet.token("cam-7"))) == UnlistedDeviceError.code, "a stolen key came back"
    assert isinstance(await Member(fleet, "cam-7", tmp_path).enrol(fleet.token("cam-7")), Enrolled)


async def test_a_device_speaks_for_itself_alone(fleet: FleetServer, tmp_path: Path) -> None:
    member = await Member(fleet, "cam-8", tmp_path).join()
    body = msgspec.json.encode(CertificateAsk(csr=member.csr("cam-1")))
    for path in ("/v1/devices/cam-1/certificate", "/v1/devices/cam-1/reports", "/v1/devices/cam-8/certificate"):
        _, data = await member.ask("POST", path, body if "cert" in path else member.report())
        assert msgspec.json.decode(data, type=Problem).code == ForeignIdentityError.code, path


async def test_a_renewal_with_a_new_key_keeps_the_old_one_until_the_new_one_is_used(
    fleet: FleetServer, tmp_path: Path
) -> None:
    old = await Member(fleet, "cam-10", tmp_path).join()
    new = Member(fleet, "cam-10", tmp_path)
    ask = msgspec.json.encode(CertificateAsk(csr=new.csr()))
    status, data = await old.ask("POST", "/v1/devices/cam-10/certificate", ask)
    assert status == 201
    assert (await old.ask("GET", "/v1/repository/metadata/timestamp.json"))[0] == 404, "the answer may have been lost"
    new.show(msgspec.json.decode(data, type=Enrolled).certificate)
    assert (await new.ask("GET", "/v1/repository/metadata/timestamp.json"))[0] == 404
    assert (await old.ask("GET", "/v1/repository/metadata/timestamp.json"))[0] == 403
    assert fleet.client.device("cam-10").device.key_id == new.key.public.id


async def test_a_renewal_cannot_take_the_key_of_another_device(fleet: FleetServer, tmp_path: Path) -> None:
    first = await Member(fleet, "cam-11", tmp_path).join()
    second = await Member(fleet, "cam-12", tmp_path).join()
    csr = Member(fleet, "cam-12", tmp_path, first.key).csr()
    _, data = await second.ask("POST", "/v1/devices/cam-12/certificate", msgspec.json.encode(CertificateAsk(csr=csr)))
    assert msgspec.json.decode(data, type=Problem).code == ForeignIdentityError.code
    assert fleet.client.device("cam-11").device.key_id == first.key.public.id


@pytest.mark.attack(102)
async def test_a_server_killed_between_the_tokens_use_and_the_answer_gives_the_same_answer_afterwards(
    tmp_path: Path,
) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder)
    try:
        server.start()
        member = Member(server, "cam-1", tmp_path)
        token = server.token("cam-1")
        body = msgspec.json.encode(EnrolmentRequest(device="cam-1", token=token, csr=member.csr()))
        head = f"POST /v1/enrolment HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with await asyncio.to_thread(_dial, server.port) as line:
            await asyncio.to_thread(line.sendall, head + body)
            certificate = await asyncio.to_thread(_wait_for_use, server.database)
            server.kill()  # nobody has read the answer
        server.start()
        thief = Member(server, "cam-1", tmp_path)
        assert code_of(await thief.enrol(token)) == TokenUsedError.code
        again = await member.enrol(token)
        assert isinstance(again, Enrolled)
        assert again.certificate == certificate
        assert (await member.ask("GET", "/v1/repository/metadata/timestamp.json"))[0] == 404
    finally:
        server.close()
        shutil.rmtree(folder)


def _dial(port: int) -> ssl.SSLSocket:
    return tls.unproven_context().wrap_socket(socket.create_connection(("127.0.0.1", port)))


def _wait_for_use(path: Path) -> str:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            row = database.execute("SELECT certificate FROM invitation WHERE used_key_id <> ''").fetchone()
        if row:
            return str(row[0])
    raise AssertionError("the token was not used")


async def test_whoever_tries_tokens_is_slowed_down(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder, tries=3)
    try:
        server.start()
        member, token = Member(server, "cam-1", tmp_path), server.token("cam-1")
        codes = [code_of(await member.enrol(invitation.invite("00" * 32).text())) for _ in range(5)]
        assert codes == [EnrolmentTokenError.code] * 3 + [TooManyTriesError.code] * 2
        assert code_of(await member.enrol(token)) == TooManyTriesError.code
    finally:
        server.close()
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/enrolment", b""), ("/v1/enrolment", b"{"), ("/v1/enrolment", b"[]"), ("/v1/enrolment", b"\xff\xfe\x00"),
        ("/v1/enrolment", b'{"device":"cam-1","token":"","csr":"","more":1}'),
        ("/v1/enrolment", b'{"device":"../../etc","token":"","csr":""}'), ("/v1/enrolment", b"[" * 50_000),
        ("/v1/enrolment", b"A" * 70_000), ("/v1/enrolment", b'{"device":"cam-1","token":"x","csr":"' + b"A" * 5000),
    ],
)  # fmt: skip
async def test_garbage_at_the_open_door_is_refused_and_nothing_else_happens(
    fleet: FleetServer, tmp_path: Path, path: str, body: bytes
) -> None:
    status, data = await Member(fleet, "cam-1", tmp_path).ask("POST", path, body)
    assert status in (400, 413)
    assert msgspec.json.decode(data, type=Problem).code.startswith("LK-")


async def test_a_request_that_drips_or_lies_about_its_length_is_ended(fleet: FleetServer, tmp_path: Path) -> None:
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", fleet.port, ssl=Member(fleet, "x", tmp_path).context(), server_hostname=""
    )
    writer.write(b"POST /v1/enrolment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
    async with asyncio.timeout(10):
        status = await reader.readline()
    assert b" 400 " in status
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def test_a_caller_who_never_finishes_his_request_is_hung_up_on(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder, idle_s_max=1.0)
    try:
        server.start()
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", server.port, ssl=Member(server, "x", tmp_path).context(), server_hostname=""
        )
        async with asyncio.timeout(15):
            with contextlib.suppress(OSError):
                while not reader.at_eof():
                    writer.write(b"GET /livez HTTP/1.1\r\n"[:1])  # a byte at a time, for ever
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.2):
                            await reader.read(1)
        writer.close()
    finally:
        server.close()
        shutil.rmtree(folder)


async def test_bytes_that_are_no_tls_do_not_disturb_others(fleet: FleetServer, tmp_path: Path) -> None:
    for garbage in (b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\x03\x01\xff\xff" + bytes(100)):
        _, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
        writer.write(garbage)
        await writer.drain()
        writer.close()
    assert (await Member(fleet, "x", tmp_path).ask("GET", "/livez"))[0] == 200


async def test_an_older_tls_is_not_spoken(fleet: FleetServer) -> None:
    context = tls.unproven_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        await asyncio.open_connection("127.0.0.1", fleet.port, ssl=context)


@pytest.mark.parametrize("kind", ["a device's", "another authority's", "a name outside", "expired long ago"])
async def test_whoever_poses_as_the_fleet_is_refused_before_a_byte_is_said(
    fleet: FleetServer, tmp_path: Path, kind: str
) -> None:
    key, authority, now_s = generate_key(), fleet.authority(), time.time()
    shown = {
        "a device's": lambda: ca.certify_device(authority, "cam-1", key.public, now_s),
        "another authority's": lambda: ca.certify_server(ca.make_authority(now_s), key.public, now_s),
        "a name outside": lambda: ca._leaf(
            authority, "x", "fleet.example", key.public, now_s, 365, ExtendedKeyUsageOID.SERVER_AUTH
        ),
        "expired long ago": lambda: ca.certify_server(authority, key.public, BUILT_AT - 400 * 86400),
    }[kind]()
    (tmp_path / "chain").write_text(shown)
    (tmp_path / "key").write_bytes(key.pem())
    impostor = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    impostor.load_cert_chain(tmp_path / "chain", tmp_path / "key")
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1))
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0, ssl=impostor)
    port = server.sockets[0].getsockname()[1]
    victim = tls.fleet_context(authority.pem, LyingClock(0.0))  # a device that has lost its clock is no easier prey
    with pytest.raises(FleetNotProvenError):
        await fleetline.ask(f"https://127.0.0.1:{port}/v1/enrolment", victim, Enrolled, b"secret")
    assert not any(heard)
    server.close()
    await server.wait_closed()


def test_a_certificate_for_another_key_or_device_or_of_another_authority_is_not_installed() -> None:
    now_s = time.time()
    authority, other = ca.make_authority(now_s), ca.make_authority(now_s)
    key, stranger = generate_key(), generate_key()
    good = ca.certify_device(authority, "cam-1", key.public, now_s)

    def check(
        pem: str = good, authority_pem: str = authority.pem, device: str = "cam-1", at_s: float | None = now_s
    ) -> None:
        certificates.check_device(pem, authority_pem, device=device, key=key.public, now_s=at_s)

    check()
    check(at_s=None)
    for spoiled in (
        {"pem": ca.certify_device(authority, "cam-1", stranger.public, now_s)}, {"authority_pem": other.pem},
        {"pem": ca.certify_server(authority, key.public, now_s)}, {"at_s": now_s + 366 * 86400}, {"at_s": 0.0},
        {"authority_pem": good}, {"pem": authority.pem}, {"pem": "garbage"},
    ):  # fmt: skip
        with pytest.raises(CertificateError):
            check(**spoiled)  # type: ignore[arg-type]
    with pytest.raises(ForeignIdentityError):
        check(device="cam-2")
