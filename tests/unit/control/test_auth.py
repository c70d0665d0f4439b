"""Who may ask, from where."""

import asyncio
import os
import shutil
import socket
import stat
import struct
import sys

import aiohttp
import pytest

from lenskeep.daemon.control import auth
from lenskeep.daemon.control.table import ROUTES
from lenskeep.permissions import ROLES, TABLE, may, permissions_of
from tests.pocketdevice import PocketDevice, configuration, served

INTERPRETER = shutil.which("python3", path="/usr/bin") or sys.executable  # one that any account may start


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def code(answer: aiohttp.ClientResponse) -> str:
    return (await answer.json(content_type="application/problem+json"))["code"]


async def test_unix_peer_is_named_and_admin(unix):
    async with unix.get("/v1/whoami") as answer:
        assert (await answer.json())["role"] == "admin"
    async with unix.get("/v1/whoami") as answer:
        assert (await answer.json())["name"].startswith("unix:")


async def test_unix_socket_is_closed_to_strangers(socket_path):
    assert stat.S_IMODE(socket_path.stat().st_mode) == 0o660


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
async def test_unix_peer_of_the_group_gets_the_group_role(device, tmp_path):
    """A child that is nobody but in the socket's group asks; another that is not in it cannot even connect."""
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.getuid() and parent != parent.parent:
            parent.chmod(parent.stat().st_mode | 0o011)
    async with served(device, configuration(group_role="operator"), tmp_path) as path:
        os.chown(path, 0, 54321)
        assert b'"role":"operator"' in await _ask_as(path, uid=65534, gid=65534, groups=[54321])
        assert b'"role":"operator"' in await _ask_as(path, uid=65534, gid=54321, groups=[])
        assert b"PermissionError" in await _ask_as(path, uid=65534, gid=65534, groups=[])


async def _ask_as(path, *, uid: int, gid: int, groups: list[int]) -> bytes:
    script = (
        "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n"
        "s.sendall(b'GET /v1/whoami HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n')\n"
        "while d:=s.recv(9999): sys.stdout.buffer.write(d)"
    )
    child = await asyncio.create_subprocess_exec(
        INTERPRETER, "-c", script, str(path),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, user=uid, group=gid, extra_groups=groups,
    )  # fmt: skip
    return (await child.communicate())[0]


def test_peer_groups_are_asked_of_the_kernel():
    left, right = socket.socketpair()
    with left, right:
        assert set(auth._groups(left)) == set(os.getgroups())
        assert struct.calcsize("3i") == 12


async def test_tcp_without_token_reads_but_never_writes(tcp, device):
    async with tcp.get("/v1/status") as answer:
        assert answer.status == 200
    async with tcp.post("/v1/rollbacks", json={}) as answer:
        assert (answer.status, await code(answer)) == (401, "LK-1103")
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    async with tcp.get("/v1/tokens") as answer:
        assert answer.status == 401
    assert device.calls == []


async def test_tcp_without_token_reads_nothing_when_configured_so(device, tmp_path):
    config = configuration(anonymous_role="none")
    async with (
        served(device, config, tmp_path),
        aiohttp.ClientSession(f"http://127.0.0.1:{config.control.port}") as session,
    ):
        async with session.get("/v1/status") as answer:
            assert answer.status == 401
        async with session.get("/livez") as answer:
            assert answer.status == 200
        async with session.get("/v1/status", headers=bearer(device.token("viewer"))) as answer:
            assert answer.status == 200


async def test_unknown_token_is_refused_even_where_reading_is_open(tcp):
    async with tcp.get("/v1/status", headers=bearer("nonsense")) as answer:
        assert (answer.status, await code(answer)) == (401, "LK-1103")
    async with tcp.get("/v1/status", headers={"Authorization": "Basic YTpi"}) as answer:
        assert answer.status == 401


@pytest.mark.parametrize(
    ("path", "permission"),
    [("/v1/rollbacks", "rollback"), ("/v1/confirmations", "confirm"), ("/v1/activations", "activate"),
     ("/v1/checks", "check"), ("/v1/keys", "keys"), ("/v1/tokens", "tokens")],
)  # fmt: skip
async def test_token_of_a_role_without_the_permission_is_refused_and_with_it_is_not(tcp, device, path, permission):
    for role in ROLES:
        async with tcp.post(path, json={"bundle": "nothing@!"}, headers=bearer(device.token(role))) as answer:
            enough = may(role, permission)
            assert answer.status == (400 if enough else 403), f"{role} at {path}"
            assert (await code(answer)) == ("LK-1100" if enough else "LK-1104")
    assert device.calls == []


def test_every_permission_opens_a_door_and_no_auditor_changes_anything():
    used = {route.permission for route in ROUTES} - {None}
    assert set(TABLE) - used <= {"activate-locked"}  # asked for beside `activate`, by the slot's policy
    for route in ROUTES:
        if route.permission in permissions_of("auditor"):
            assert route.method == "GET" or route.path == "/v1/audit/verification", route.path
        if route.method == "GET" and route.permission not in (None, "sync"):  # a sync asks what it should bring
            assert may("auditor", route.permission), route.path


async def test_answer_names_the_token_in_the_record(tcp, device):
    async with tcp.post("/v1/rollbacks", json={}, headers=bearer(device.token("operator", "panel"))) as answer:
        assert answer.status == 202
    assert device.calls == [("rollback", None, "token:panel", "")]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8417", "127.0.0.1", "localhost:1", "127.0.0.1.evil:80"])
async def test_dns_rebinding_is_refused(tcp, device, host):
    headers = {"Host": host, **bearer(device.token("admin"))}
    for path in ("/v1/status", "/", "/livez", "/metrics"):
        async with tcp.get(path, headers=headers) as answer:
            assert (answer.status, await code(answer)) == (403, "LK-1104")


async def test_own_names_and_configured_names_are_let_in(device, tmp_path):
    config = configuration(hosts=["Press-7.local:8417"])
    async with (
        served(device, config, tmp_path),
        aiohttp.ClientSession(f"http://127.0.0.1:{config.control.port}") as session,
    ):
        for host in (f"localhost:{config.control.port}", f"[::1]:{config.control.port}", "press-7.local:8417"):
            async with session.get("/v1/status", headers={"Host": host}) as answer:
                assert answer.status == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost"])
async def test_foreign_origin_is_refused_with_a_good_token(tcp, device, origin):
    headers = {"Origin": origin, **bearer(device.token("admin"))}
    async with tcp.post("/v1/rollbacks", json={}, headers=headers) as answer:
        assert answer.status == 403
        assert "Access-Control-Allow-Origin" not in answer.headers
    async with tcp.options("/v1/rollbacks", headers=headers) as answer:
        assert answer.status == 403
    assert device.calls == []


async def test_own_origin_is_let_in(tcp, device, config):
    headers = {"Origin": f"http://127.0.0.1:{config.control.port}", "Sec-Fetch-Site": "same-origin"}
    async with tcp.post("/v1/rollbacks", json={}, headers={**headers, **bearer(device.token("admin"))}) as answer:
        assert answer.status == 202


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_request_made_by_another_site_is_refused(tcp, site):
    async with tcp.get("/v1/status", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "no-cors"}) as answer:
        assert answer.status == 403
    navigation = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    async with tcp.get("/v1/status", headers=navigation) as answer:
        assert answer.status == 403
    async with tcp.get("/livez", headers=navigation) as answer:
        assert answer.status == 200


async def test_second_service_does_not_take_the_socket(device, socket_path, tmp_path):
    from lenskeep.errors import ConflictError

    with pytest.raises(ConflictError, match="Another Lenskeep service"):
        async with served(PocketDevice(), configuration(port=0), tmp_path):
            pass
    assert socket_path.exists()


async def test_socket_left_by_a_dead_service_is_taken_over(device, tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "lenskeep.sock"))
    async with (
        served(device, configuration(port=0), tmp_path) as path,
        aiohttp.ClientSession("http://x", connector=aiohttp.UnixConnector(str(path))) as session,
        session.get("/livez") as answer,
    ):
        assert answer.status == 200
    assert not path.exists()
