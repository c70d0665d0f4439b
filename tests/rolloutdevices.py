"""Scripted devices for rollouts: real certificates, the real sync call over real sockets, and a script for the rest.

What they read of the repository they do not verify: that is the daemon's work and has its own tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from pathlib import Path

import aiohttp
import msgspec

from lenskeep.messages.sync import MEDIA_MSGPACK, Answer, Call, Record, SlotNow, Trial, Vitals, Window
from lenskeep.sketch import Sketch
from lenskeep.trust.names import model_of
from tests.fleetrig import FleetServer, Member
from tests.rolloutworld import Device


class ScriptedDevice:
    """A device that calls, looks, and goes on by its script."""

    def __init__(self, fleet: FleetServer, name: str, folder: Path, hardware: str = "") -> None:
        self.member = Member(fleet, name, folder)
        self.fleet = fleet
        self.name = name
        self.hardware = hardware
        self.device = Device(name)
        self.seen = 0
        self.n = 0
        self.silent = False
        self.goes = True  # goes on by itself after each call
        self.fails_at = ""  # refuses, or takes itself back, once it is in this state
        self.fail_code = "LK-8001"
        self.p99_us = 20_000.0
        self.golden: dict[str, float] = {}  # what its trial of a version gives; without one it tells of no trial
        self.calls = 0
        self._records: list[Record] = []
        self._report = ""
        self._session: aiohttp.ClientSession | None = None

    async def join(self) -> ScriptedDevice:
        """Enrol, and tell once what runs."""
        await self.member.join()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.member.context()))
        if self.hardware:
            self.n += 1
            self._records.append(Vitals(n=self.n, at_ms=0, hardware=self.hardware))
        await self.call()
        return self

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def call(self, wait_s: float = 0.0) -> Answer:
        """Call once, look at what is new, and go one step."""
        assert self._session is not None
        self.calls += 1
        call = Call(seen=self.seen, slots=[self.device.tell()], records=self._records, wait_s=wait_s)
        url = f"{self.fleet.url}/v1/devices/{self.name}/sync"
        headers = {"Content-Type": MEDIA_MSGPACK}
        async with self._session.post(url, data=msgspec.msgpack.encode(call), headers=headers) as said:
            body = await said.read()
            assert said.status == 200, body
        answer = msgspec.msgpack.decode(body, type=Answer)
        self._records = [one for one in self._records if one.n > answer.taken]
        if answer.newest > self.seen:
            await self._look()
        if self.goes:
            self._step()
        return answer

    def _step(self) -> None:
        before = self.device.state
        self.device.step()
        if self.device.state == "staged" and before != "staged" and self.device.target in self.golden:
            self.tell_of_trial(self.device.target)
        if self.fails_at and self.device.state == self.fails_at:
            self.device.fail(self.fail_code)
        if self.device.running != self.device.target and self.device.state == "followed":
            self.device.state = before

    def tell_of_trial(self, bundle: str) -> None:
        """Have tried a version; its own tolerance lets it pass."""
        self.n += 1
        self._records.append(
            Trial(
                n=self.n, at_ms=1, bundle=bundle, digest="d", provider="CPU", hardware=self.hardware, golden_passed=8,
                golden_total=8, golden_score=self.golden[bundle], p50_ms=4.0, p99_ms=6.0, memory_mb=48,
            )
        )  # fmt: skip

    def measure(self, bundle: str, frames: int, *, ng: int = 0) -> None:
        """Have something to tell of what a version did."""
        sketch = Sketch()
        for _ in range(frames):
            sketch.add(self.p99_us)
        self.n += 1
        self._records.append(
            Window(
                n=self.n, slot="main", bundle=bundle, digest="d", provider="CPU", start_s=0, seconds=60, frames=frames,
                outcomes={"OK": frames - ng, "NG": ng}, sketches={"total": sketch.to_bytes()},
            )
        )  # fmt: skip

    async def _look(self) -> None:
        """Read the assignment as a plain reader finds it."""
        timestamp = await self._read("timestamp.json")
        version = timestamp["signed"]["meta"]["snapshot.json"]["version"]
        snapshot = await self._read(f"{version}.snapshot.json")
        listed = snapshot["signed"]["meta"]
        if "director.json" in listed:
            director = await self._read(f"{listed['director.json']['version']}.director.json")
            target = director["signed"]["targets"].get(f"devices/{self.name}.json")
            if target is not None:
                sha256 = target["hashes"]["sha256"]
                self._take(await self._read(f"devices/{sha256}.{self.name}.json", "targets"))
        self.seen = timestamp["signed"]["version"]

    def _take(self, assignment: dict[str, object]) -> None:
        slots = assignment["slots"]
        assert isinstance(slots, dict)
        assert isinstance(assignment["generation"], int)
        slot = slots.get("main")
        if slot is None:
            self.device.assigned = ("", "skip", assignment["generation"])
            return
        model = model_of(slot["target"])
        assert model is not None
        self.device.assigned = ("@".join(model), slot.get("activate", "attempt"), assignment["generation"])

    async def _read(self, name: str, room: str = "metadata") -> dict[str, dict[str, dict[str, dict[str, int]]]]:
        assert self._session is not None
        async with self._session.get(f"{self.fleet.url}/v1/repository/{room}/{name}") as said:
            assert said.status == 200, name
            return json.loads(await said.read())  # type: ignore[no-any-return]

    async def run(self) -> None:
        """Call again and again until cancelled; a server that is gone is tried again."""
        while True:
            if self.silent:
                await asyncio.sleep(0.05)
                continue
            with contextlib.suppress(aiohttp.ClientError, OSError, AssertionError, TimeoutError):
                moving = self.device.state not in ("", "followed", "refused", "rolled_back") and self.goes
                await self.call(0.0 if moving else 0.5)
            await asyncio.sleep(0.02)


def slot_now(generation: int, state: str, bundle: str) -> SlotNow:
    """A plain word about the slot."""
    return SlotNow(slot="main", generation=generation, state=state, bundle=bundle)
