"""Devices for the benches: many held connections in one process, as lean as Python allows, and nothing but calls.

`python -m tests.bench.fleetload`, told by a line of JSON on its standard input; it answers "ready", waits for a line,
runs, and prints what it saw. The simulator with habits and bad networks is `tests/fleetsim`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import random
import sqlite3
import ssl
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import uvloop

from lenskeep.bundle.keys import generate_key
from lenskeep.messages.runner import STAGES
from lenskeep.messages.sync import MEDIA_MSGPACK, Answer, Call, Record, Vitals, Window
from lenskeep.sketch import Sketch
from lenskeep.trust import ca, certificates
from lenskeep.trust.tls import SERVER_NAME
from tests.fleetrig import FleetServer

VITALS_EVERY = 5  # numbers; a device tells its vitals every five minutes, a window every minute
VITALS = functools.partial(
    Vitals, disk_free_mb=40_000, memory_free_mb=3000, load=0.7, temperature_c=51.5, metadata_ends_s=2_000_000_000,
    certificate_ends_s=2_000_000_000, version="0.1.0", hardware="x86_64 AMD EPYC 9R14 onnxruntime 1.31.1 CPUExecutionProvider",
)  # fmt: skip
ANSWER = msgspec.msgpack.Decoder(Answer)


def let_in(fleet: FleetServer, folder: Path, count: int) -> list[str]:
    """Let devices in past the doors: certificates of the fleet's own authority, rows in its list."""
    authority = fleet.authority()
    (folder / "authority.crt").write_text(authority.pem)
    names, rows = [f"bench-{n:05d}" for n in range(count)], []
    for name in names:
        key = generate_key()
        pem = ca.certify_device(authority, name, key.public, time.time())
        (folder / f"{name}.pem").write_bytes(key.pem() + pem.encode())
        rows.append((key.public.id, name, key.public.pem, pem, int(certificates.read(pem).ends_s)))
    database = sqlite3.connect(fleet.database, timeout=30)
    database.executemany(
        "INSERT INTO device (name, state, enrolled_ms) VALUES (?, 'enrolled', 0)", [(n,) for n in names]
    )
    database.executemany("INSERT INTO device_key VALUES (?, ?, ?, 'current', ?, ?, 0)", rows)
    database.commit()
    database.close()
    return names


def context(folder: Path, name: str) -> ssl.SSLContext:
    """Return a device's side of TLS."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.load_verify_locations(folder / "authority.crt")
    made.load_cert_chain(folder / f"{name}.pem")
    return made


def sketches(seed: int) -> dict[str, bytes]:
    """Return a minute's sketches at 30 frames a second of every stage: about 170 buckets each."""
    rng, packed = random.Random(seed), {}
    for number, stage in enumerate(STAGES):
        sketch = Sketch()
        for _ in range(1800):
            sketch.add(rng.lognormvariate(math.log(3000 * (number + 1)), 0.6))
        packed[stage] = sketch.to_bytes()
    return packed


class Caller(asyncio.Protocol):
    """One device on one connection."""

    def __init__(self, name: str, answered: Callable[[Caller, bytes], None]) -> None:
        self.name = name
        self.transport: asyncio.Transport | None = None
        self.n, self.upto = 0, -1
        self.outbox = f"{random.getrandbits(64):x}"
        self.asked_s = 0.0
        self.faults = 0
        self._answered = answered
        self._data = b""
        self._head = (
            f"POST /v1/devices/{name}/sync HTTP/1.1\r\nHost: {SERVER_NAME}\r\nContent-Type: {MEDIA_MSGPACK}\r\n"
        )

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self.faults += 1

    def ask(self, packed: dict[str, bytes], *, wait_s: float = 0.0, empty: bool = False) -> None:
        """Send a call: with one window, or unchanged."""
        message = self.message(packed, wait_s=wait_s, empty=empty)
        self.asked_s = time.perf_counter()
        if self.transport is not None:
            self.transport.write(message)

    def message(self, packed: dict[str, bytes], *, wait_s: float = 0.0, empty: bool = False) -> bytes:
        """Return the next call as it travels."""
        records: list[Record] = []
        if not empty:
            if self.n % VITALS_EVERY == 0:
                records.append(VITALS(n=self.n, at_ms=int(time.time() * 1000)))
            records.append(
                Window(
                    n=self.n + len(records), slot="main", bundle="cap-inspect@1.4.0", digest="ab" * 32,
                    provider="CPUExecutionProvider", start_s=int(time.time()) - 60, seconds=60, frames=1800, misses=2,
                    outcomes={"good": 1750, "bad": 48}, sketches=packed,
                )
            )  # fmt: skip
        self.upto = self.n + len(records) - 1
        call = Call(seen=1, records=records, outbox=self.outbox, after=self.n - 1, wait_s=wait_s)
        body = msgspec.msgpack.encode(call)
        return f"{self._head}Content-Length: {len(body)}\r\n\r\n".encode() + body

    def data_received(self, data: bytes) -> None:
        self._data += data
        at = self._data.find(b"\r\n\r\n")
        if at < 0:
            return
        head = self._data[:at].lower()
        mark = head.find(b"content-length: ")
        length = int(head[mark + 16 :].split(b"\r", 1)[0]) if mark >= 0 else 0
        if len(self._data) < at + 4 + length:
            return
        body, self._data = self._data[at + 4 : at + 4 + length], self._data[at + 4 + length :]
        if not head.startswith(b"http/1.1 200"):
            self.faults += 1
            if self.faults == 1:
                print(head[:12], body[:300], file=sys.stderr)
            body, self.upto = b"", self.n - 1
        self._answered(self, body)


def call_bytes() -> int:
    """Return how long a call with a window is."""
    caller = Caller("bench-00001", lambda _caller, _body: None)
    caller.n = 1
    return len(caller.message(sketches(7)))


class Crowd:
    """What one process was told to be."""

    def __init__(self, told: dict[str, object]) -> None:
        self.told = told
        self.folder = Path(str(told["folder"]))
        self.names: list[str] = told["names"]  # type: ignore[assignment]
        self.callers: list[Caller] = []
        self.late = Sketch()
        self.count = 0
        self.running = False
        self.packed = sketches(7)

    async def connect(self) -> None:
        loop, room = asyncio.get_running_loop(), asyncio.Semaphore(64)

        async def one(name: str) -> None:
            caller = Caller(name, self.answered)
            async with room:
                await loop.create_connection(
                    lambda: caller, "127.0.0.1", self.told["port"], ssl=context(self.folder, name),  # type: ignore[arg-type]
                    server_hostname=SERVER_NAME, ssl_handshake_timeout=60,
                )  # fmt: skip
            self.callers.append(caller)

        await asyncio.gather(*(one(name) for name in self.names))

    def answered(self, caller: Caller, body: bytes) -> None:
        now_s = time.perf_counter()
        if self.running:
            self.count += 1
            self.late.add((now_s - caller.asked_s) * 1e6)
        taken = ANSWER.decode(body).taken if body else caller.upto  # the empty handler says nothing
        if taken >= caller.n:
            caller.n = taken + 1
        if self.told["closed"] and self.running:
            caller.ask(self.packed, empty=bool(self.told["empty"]))

    async def run(self) -> None:
        """Ask for the told time; in the open mode at the told rate, whether answers come or not."""
        loop = asyncio.get_running_loop()
        seconds, empty = float(str(self.told["seconds"])), bool(self.told["empty"])
        self.running, end_s = True, loop.time() + seconds
        if self.told["closed"]:
            for caller in self.callers:
                caller.ask(self.packed, empty=empty)
            await asyncio.sleep(seconds)
        else:
            rate, number = float(str(self.told["rate"])), 0
            begin_s = loop.time()
            order = self.callers[:]
            random.shuffle(order)
            while (now_s := loop.time()) < end_s:
                while number < (now_s - begin_s) * rate:
                    order[number % len(order)].ask(self.packed, empty=empty)
                    number += 1
                await asyncio.sleep(0.002)
        self.running = False
        await asyncio.sleep(1.0)


async def _main() -> None:
    loop = asyncio.get_running_loop()
    crowd = Crowd(json.loads(sys.stdin.readline()))
    await crowd.connect()
    print("ready", flush=True)
    while line := (await loop.run_in_executor(None, sys.stdin.readline)).strip():
        crowd.told |= json.loads(line)
        crowd.count, crowd.late = 0, Sketch()
        await crowd.run()
        told = {
            "count": crowd.count, "late": crowd.late.to_bytes().hex(),
            "faults": sum(caller.faults for caller in crowd.callers), "held": len(crowd.callers),
        }  # fmt: skip
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main())
