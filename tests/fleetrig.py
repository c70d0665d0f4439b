"""A whole fleet for tests: the real server as a process in its own folder, and devices that fit in a test."""

from __future__ import annotations

import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from lenskeep.bundle.keys import PrivateKey, generate_key, load_private_key
from lenskeep.cli.fleetclient import FleetClient
from lenskeep.cli.wire import Address
from lenskeep.clock import Clock
from lenskeep.messages.control import Problem
from lenskeep.messages.fleet import DeviceReport, Enrolled, EnrolmentRequest, InvitationAsk, ReportAnswer
from lenskeep.trust import certificates, envelope, tls
from lenskeep.trust.ca import Authority
from tests.ports import free_port

WAIT_S = 20.0  # a bound against hanging, not a time that is measured

CONFIG = """
[storage]
state_dir = "{folder}/state"
runtime_dir = "{folder}/run"
[devices]
address = "127.0.0.1"
port = {port}
plain_port = {plain_port}
[operators]
port = {operator_port}
[limits]
request_s_max = {request_s_max}
idle_s_max = {idle_s_max}
enrolments_per_minute = {tries}
"""


class LyingClock(Clock):
    """A clock whose wall shows whatever a test wants."""

    def __init__(self, wall_s: float) -> None:
        self.shown_s = wall_s
        super().__init__()

    def wall_s(self) -> float:
        return self.shown_s


class FleetServer:
    """One fleet server in a folder. What it starts, it ends."""

    def __init__(
        self,
        folder: Path,
        *,
        request_s_max: float = 20.0,
        idle_s_max: float = 75.0,
        tries: int = 1000,
        more: str = "",
    ) -> None:
        self.folder = folder
        self.port, self.plain_port, self.operator_port = free_port(), free_port(), free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.config = folder / "fleet.toml"
        self.config.write_text(
            CONFIG.format(
                folder=folder, port=self.port, plain_port=self.plain_port, operator_port=self.operator_port,
                request_s_max=request_s_max, idle_s_max=idle_s_max, tries=tries,
            )
            + more
        )  # fmt: skip
        self.socket = folder / "run" / "fleet.sock"
        self.client = FleetClient(Address(path=self.socket))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def database(self) -> Path:
        return self.folder / "state" / "fleet.sqlite"

    @property
    def repository(self) -> Path:
        return self.folder / "state" / "repository"

    def start(self) -> None:
        with (self.folder / "fleet.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "lenskeep.fleet", "--config", self.config], stdout=log, stderr=log
            )
        deadline = time.monotonic() + WAIT_S
        while not self._answers():
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            self.client.authority()
            with socket.create_connection(("127.0.0.1", self.port), 1):
                return True
        except Exception:  # whatever it says, it does not answer yet
            return False

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        assert self.process is not None
        self.process.send_signal(how)
        self.process.wait(timeout=WAIT_S)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill(signal.SIGTERM)

    def log(self) -> str:
        return (self.folder / "fleet.log").read_text(errors="replace")[-3000:]

    def authority(self) -> Authority:
        """The authority as a thief of its folder has it."""
        folder = self.folder / "state" / "authority"
        return Authority(
            load_private_key((folder / "authority.key").read_bytes()), (folder / "authority.crt").read_text()
        )

    def token(self, device: str) -> str:
        return self.client.invite(InvitationAsk(device=device)).token


@contextmanager
def running_fleet(**words: Any) -> Iterator[FleetServer]:
    """Start a server in a folder of its own, and leave nothing of it behind."""
    folder = Path(tempfile.mkdtemp(prefix="lf-"))
    server = FleetServer(folder, **words)
    try:
        server.start()
        yield server
    finally:
        server.close()
        shutil.rmtree(folder)


class Member:
    """A device as plain as it can be: a key, a certificate, and the wire."""

    def __init__(self, fleet: FleetServer, device: str, folder: Path, key: PrivateKey | None = None) -> None:
        self.fleet = fleet
        self.device = device
        self.key = key or generate_key()
        self.counter = 0
        self._folder = folder
        self._context: ssl.SSLContext | None = None

    def csr(self, device: str = "") -> str:
        return certificates.write_request(self.key, device or self.device)

    def show(self, certificate: str, authority: str = "") -> None:
        """Show this certificate from now on."""
        stem = self._folder / f"{self.device}-{self.key.public.id[:8]}"
        chain, key = stem.with_suffix(".crt"), stem.with_suffix(".key")
        chain.write_text(certificate)
        key.write_bytes(self.key.pem())
        authority = authority or self.fleet.client.authority().certificate
        self._context = tls.fleet_context(authority, Clock(), chain, key)

    def context(self) -> ssl.SSLContext:
        return self._context or tls.fleet_context(self.fleet.client.authority().certificate, Clock())

    async def ask(self, method: str, path: str, data: bytes | None = None, **words: object) -> tuple[int, bytes]:
        """Ask once and return status and body."""
        connector = aiohttp.TCPConnector(ssl=self.context())
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"{self.fleet.url}{path}", data=data, **words) as answer,  # type: ignore[arg-type]
        ):
            return answer.status, await answer.read()

    async def enrol(self, token: str, *, device: str = "", csr: str = "") -> Enrolled | Problem:
        request = EnrolmentRequest(device=device or self.device, token=token, csr=csr or self.csr())
        status, data = await self.ask("POST", "/v1/enrolment", msgspec.json.encode(request))
        if status != 201:
            return msgspec.json.decode(data, type=Problem)
        enrolled = msgspec.json.decode(data, type=Enrolled)
        self.show(enrolled.certificate)
        return enrolled

    async def join(self) -> Member:
        """Be invited and enrol."""
        assert isinstance(await self.enrol(self.fleet.token(self.device)), Enrolled)
        return self

    def report(self, counter: int = 0, **words: object) -> bytes:
        """Sign a report."""
        self.counter = counter or self.counter + 1
        said = DeviceReport(device=self.device, counter=self.counter, at_ms=0, clock_trusted=True)
        said = msgspec.structs.replace(said, **words)
        return envelope.seal(msgspec.json.encode(said), envelope.REPORT, self.key)

    def head(self, sequence: int, hash_: str) -> str:
        """Sign how far the record goes."""
        payload = {"device": self.device, "sequence": sequence, "hash": hash_, "at": "", "counter": 1}
        return envelope.seal(msgspec.json.encode(payload), envelope.RECORD_HEAD, self.key).decode()

    async def send(self, data: bytes, device: str = "") -> ReportAnswer | Problem:
        status, body = await self.ask("POST", f"/v1/devices/{device or self.device}/reports", data)
        return msgspec.json.decode(body, type=ReportAnswer if status == 200 else Problem)


def code_of(said: object) -> str:
    """The code of a refusal; empty for an answer that is none."""
    return said.code if isinstance(said, Problem) else ""
