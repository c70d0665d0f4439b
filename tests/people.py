"""People at a device: each with a role, through a token of their own over the port."""

from __future__ import annotations

import http.client
import json
import sqlite3
from typing import Any

from lenskeep.cli.client import Client
from lenskeep.cli.wire import Address
from lenskeep.messages.control import Approval, RefuseRequest, SignRequest, TokenRequest
from lenskeep.permissions import Role
from tests.device import Device
from tests.ports import free_port


def open_port(device: Device) -> int:
    """Give a device that has not started yet a port."""
    port = free_port()
    device.config.write_text(device.config.read_text().replace("port = 0", f"port = {port}"))
    return port


def port_of(device: Device) -> int:
    """The device's port, from its configuration."""
    line = next(line for line in device.config.read_text().splitlines() if line.startswith("port = "))
    return int(line.partition("=")[2])


def secret_of(device: Device, name: str, role: Role, **words: Any) -> str:
    """Make a token and return its secret."""
    return device.client.add_token(TokenRequest(name=name, role=role, **words)).secret


def person(device: Device, name: str, role: Role, **words: Any) -> Client:
    """Somebody with a token."""
    return Client(Address(host="127.0.0.1", port=port_of(device)), secret_of(device, name, role, **words))


def knock(port: int, method: str, path: str, body: object = None, **headers: str) -> tuple[int, str]:
    """Ask one door and return the status and the fault's code; a stream is not waited for."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    data = None if body is None else json.dumps(body).encode()
    try:
        connection.request(method, path, data, sent | ({"Content-Type": "application/json"} if data else {}))
        answer = connection.getresponse()
        if answer.status < 400:
            return answer.status, ""
        return answer.status, json.loads(answer.read()).get("code", "")
    finally:
        connection.close()


def approve(client: Client, waiting: Approval, **changes: Any) -> Approval:
    """Sign what waits."""
    words: dict[str, Any] = {"id": waiting.id, "digest": waiting.digest, "meaning": "approval", "reason": "validated"}
    return client.approve(waiting.slot, SignRequest(**(words | changes)))


def refuse(client: Client, waiting: Approval, reason: str) -> Approval:
    """Say no to what waits."""
    return client.refuse(waiting.slot, RefuseRequest(id=waiting.id, reason=reason))


def rewrite(device: Device, sql: str, *values: Any) -> None:
    """Change a row behind the daemon's back: what only time or an accident would do otherwise."""
    rows = sqlite3.connect(device.folder / "state" / "registry.sqlite", timeout=10)
    with rows:
        assert rows.execute(sql, values).rowcount == 1
    rows.close()
