"""Who may do what at a real device: every role at every door, tokens of all kinds, accounts and groups of the machine."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from lenskeep.cli.client import Client
from lenskeep.daemon.control.table import ROUTES
from lenskeep.errors import NotPermittedError, NotSignedInError, TokenReachError
from lenskeep.messages.control import ActivationRequest, CheckRequest, KeyRequest, TokenRequest
from lenskeep.permissions import ROLES, TABLE, Role, may
from tests import tinybundle
from tests.device import Device
from tests.people import knock, open_port, person, port_of, rewrite, secret_of

DOORS = [route for route in ROUTES if route.permission is not None]
PLACES = {"ref": "nothing@0.0.0", "slot": "nowhere", "camera": "nobody", "id": "none", "number": "0"}
INTERPRETER = shutil.which("python3", path="/usr/bin") or sys.executable  # one that any account may start


@pytest.fixture(scope="module")
def shared() -> Iterator[Device]:
    """A running device with two slots and its port open."""
    device = Device(Path(tempfile.mkdtemp(prefix="lk-")), more='[[slot]]\nname = "left"\n')
    open_port(device)
    try:
        device.start()
        device.trust()
        yield device
    finally:
        device.close()
        shutil.rmtree(device.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def secrets(shared: Device) -> dict[Role, str]:
    return {role: secret_of(shared, f"the-{role}", role) for role in ROLES}


@pytest.mark.parametrize("route", DOORS, ids=lambda route: f"{route.method} {route.path}")
def test_every_role_passes_exactly_the_doors_of_the_table(shared: Device, secrets: dict[Role, str], route) -> None:
    """What is asked is nonsense, so that a door that opens does nothing; it answers 400, 404, 415 or shows something."""
    path = re.sub(r"\{(\w+)\}", lambda match: PLACES[match[1]], route.path)
    body = {"nonsense": 1} if route.body is not None else None
    for role in ROLES:
        status, code = knock(port_of(shared), route.method, path, body, Authorization=f"Bearer {secrets[role]}")
        if may(role, route.permission):
            assert status not in (401, 403), f"{role}: {status} {code}"
        else:
            assert (status, code) == (403, "LK-1104"), role
    status, code = knock(port_of(shared), route.method, path, body)
    assert (status != 401) == may("viewer", route.permission), (status, code)


def test_whoami_says_what_one_may(shared: Device, secrets: dict[Role, str]) -> None:
    for role in ROLES:
        who = person(shared, f"who-{role}", role).whoami()
        assert who.may == [name for name, rule in TABLE.items() if role in rule.roles]
    assert who.needs["approve"] == ["supervisor", "engineer", "admin"]


def test_forged_tokens_are_refused_even_where_reading_is_open(shared: Device, secrets: dict[Role, str]) -> None:
    good = secrets["admin"]
    flipped = good[:-1] + ("A" if good[-1] != "A" else "B")
    stored = hashlib.sha256(good.encode()).hexdigest()
    for forged in (flipped, good[:-1], good + "A", good.swapcase(), stored, "lk_", "the-admin", "x" * 5000):
        assert knock(port_of(shared), "GET", "/v1/status", Authorization=f"Bearer {forged}") == (401, "LK-1103"), forged
    assert knock(port_of(shared), "GET", "/v1/tokens", Authorization=f"Bearer {good}")[0] == 200


def test_expired_token_is_refused_at_once_and_gives_its_name_free(shared: Device) -> None:
    panel = person(shared, "panel", "operator", hours=2)
    made = next(token for token in shared.client.tokens() if token.name == "panel")
    assert (datetime.fromisoformat(made.expires) - datetime.fromisoformat(made.created)).total_seconds() == 7200
    panel.status()
    assert next(token for token in shared.client.tokens() if token.name == "panel").last_used
    rewrite(shared, "UPDATE token SET expires_ms = created_ms + 1 WHERE name = 'panel'")
    with pytest.raises(NotSignedInError):
        panel.status()
    person(shared, "panel", "operator").status()


def test_token_of_a_slot_changes_that_slot_and_nothing_else(shared: Device) -> None:
    bound = person(shared, "left-lead", "engineer", slots=["left"])
    assert bound.whoami().slots == ["left"]
    bound.hold("left", True)
    bound.hold("left", False)
    assert {slot.slot for slot in bound.slots()} == {"main", "left"}
    for change in (
        lambda: bound.hold("main", True),
        lambda: bound.activate(ActivationRequest(bundle="cap-inspect@1.0.0", slot="main")),
        lambda: bound.activate(ActivationRequest(bundle="cap-inspect@1.0.0")),
        lambda: bound.rollback("main"),
        lambda: bound.confirm(None),
        lambda: bound.pin("cap-inspect@1.0.0", True),
        lambda: bound.remove("cap-inspect@1.0.0"),
    ):
        with pytest.raises(TokenReachError):
            change()
    assert not shared.client.slot("main").held


def test_token_gets_neither_more_reach_nor_more_time_than_its_maker_has(shared: Device) -> None:
    bound = person(shared, "left-admin", "admin", slots=["left"])
    with pytest.raises(TokenReachError):
        bound.add_token(TokenRequest(name="wider", role="viewer"))
    with pytest.raises(TokenReachError):
        bound.trust_key(KeyRequest(name="mine", pem=tinybundle.other_key().public.pem, patterns=["*"]))
    brief = person(shared, "brief-admin", "admin", hours=1)
    child = brief.add_token(TokenRequest(name="child", role="admin", days=3650))
    ends = next(token.expires for token in shared.client.tokens() if token.name == "brief-admin")
    assert (child.expires, child.added_by) == (ends, "token:brief-admin")
    with pytest.raises(NotPermittedError):
        person(shared, "lead", "supervisor").add_token(TokenRequest(name="higher", role="admin"))


def test_auditor_reads_the_record_and_changes_nothing(shared: Device) -> None:
    auditor = person(shared, "auditor", "auditor")
    assert auditor.audit(limit=5) and auditor.tokens() and auditor.keys()
    for change in (
        lambda: auditor.hold("main", True),
        lambda: auditor.rollback("main"),
        lambda: auditor.check(CheckRequest(bundle="cap-inspect@1.0.0")),
        lambda: auditor.remove_token("auditor"),
    ):
        with pytest.raises(NotPermittedError):
            change()
    with pytest.raises(NotPermittedError):
        person(shared, "watcher", "viewer").audit(limit=5)


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to become somebody else")
def test_accounts_and_groups_of_the_machine_get_their_roles(make_device: Callable[..., Device]) -> None:
    """Children that really are somebody else ask over the socket; the kernel says who they are."""
    door, leads = grp.getgrnam("users").gr_gid, grp.getgrnam("games").gr_gid
    nobody, other = pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    device = make_device()
    members = '[{ account = "nobody", role = "auditor" }, { group = "games", role = "supervisor" },'
    members += ' { group = "no-such-group", role = "admin" }]'
    device.config.write_text(device.config.read_text().replace("[control]", f"[control]\nmember = {members}"))
    device.start()
    for place in (device.folder, device.socket.parent):
        place.chmod(0o755)
    os.chown(device.socket, 0, door)

    def ask(method: str, path: str, account: pwd.struct_passwd, *groups: int) -> str:
        script = (
            "import http.client, socket, sys\n"
            "line = socket.socket(socket.AF_UNIX); line.connect(sys.argv[1])\n"
            "asked = http.client.HTTPConnection('x'); asked.sock = line\n"
            "asked.request(sys.argv[2], sys.argv[3], b'{}' if sys.argv[2] == 'POST' else None,"
            " {'Content-Type': 'application/json'})\n"
            "print(asked.getresponse().read().decode())"
        )
        done = subprocess.run(
            [INTERPRETER, "-c", script, device.socket, method, path], capture_output=True, text=True, cwd="/",
            user=account.pw_uid, group=account.pw_gid, extra_groups=groups, check=False,
        )  # fmt: skip
        return done.stdout + done.stderr

    assert '"name":"unix:nobody","role":"auditor"' in ask("GET", "/v1/whoami", nobody, door)
    assert '"role":"auditor"' in ask("GET", "/v1/whoami", nobody, door, leads)  # the first line that fits
    assert '"name":"unix:daemon","role":"supervisor"' in ask("GET", "/v1/whoami", other, door, leads)
    assert '"role":"engineer"' in ask("GET", "/v1/whoami", other, door)
    assert "PermissionError" in ask("GET", "/v1/whoami", other)
    assert "LK-1104" in ask("POST", "/v1/rollbacks", nobody, door)
    assert "LK-8102" in ask("POST", "/v1/rollbacks", other, door)
    assert device.client.whoami().role == "admin"


def test_bound_and_unbound_tokens_are_told_apart_in_the_list(shared: Device) -> None:
    client: Client = shared.client
    secret_of(shared, "mara-left", "operator", slots=["left"], person="mara")
    listed = {token.name: token for token in client.tokens()}
    assert (listed["mara-left"].slots, listed["mara-left"].person) == (["left"], "mara")
    assert all(not token.secret for token in listed.values())


@pytest.mark.parametrize("end", ["removed", "expired"])
def test_stream_ends_with_the_token_that_opened_it(shared: Device, end: str) -> None:
    """Who may not see the line any more does not go on seeing it, however long ago the stream was opened."""
    secret = secret_of(shared, f"stream-{end}", "viewer")
    if end == "expired":
        soon = "UPDATE token SET expires_ms = created_ms + 1500 WHERE name = ?"
        rewrite(shared, soon, f"stream-{end}")
    with socket.create_connection(("127.0.0.1", port_of(shared)), timeout=20) as line:
        line.sendall(
            f"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1:{port_of(shared)}\r\nAuthorization: Bearer {secret}\r\n\r\n".encode()
        )
        assert line.recv(4096).startswith(b"HTTP/1.1 200")
        if end == "removed":
            shared.client.remove_token(f"stream-{end}")
        while line.recv(65536):
            pass  # what was on its way; then the device closes
