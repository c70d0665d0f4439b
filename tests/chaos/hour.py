"""An hour in the life of a fleet, in as many seconds as there are: bad weather, lying devices, kill -9 on both sides.

Everything is thrown by one seed. In the end the weather clears, the devices hand in what they still hold, and both
books must agree: every record that was produced and not given up stands in the fleet's store exactly once.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from lenskeep.trust.keeping import director
from tests.chaos.accounts import devices_say, settled
from tests.chaos.relay import FAIR, GONE, ROUGH, Relay
from tests.fleetrig import FleetServer
from tests.fleetsim.crowd import Process
from tests.fleetsim.enrolment import enrol_many
from tests.fleetsim.habits import CALM, Chances
from tests.fleetsim.habits import ROUGH as MISBEHAVED
from tests.fleetsim.plan import Plan, Told
from tests.repositories import Repository

SIMULATED_S = 3600.0
DRAIN_S = 40.0
PROCESSES = 2


@dataclass
class Outcome:
    """What an hour came to."""

    seed: int
    differences: list[str]
    told: Told
    deeds: Counter[str] = field(default_factory=Counter)
    records: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        what = {"seed": self.seed, **self.deeds, **self.records, **self.told.counts}
        return "\n".join([f"{name:28} {value}" for name, value in what.items()] + self.differences)


class Hour:
    """One run."""

    def __init__(
        self, fleet: FleetServer, repository: Repository, folder: Path, *, seed: int, devices: int, seconds: float,
        chances: Chances = MISBEHAVED, outbox_records: int = 5000, host: str = "127.0.0.1",
    ) -> None:  # fmt: skip
        self._fleet, self._repository, self._folder = fleet, repository, folder
        self._seconds = seconds
        self._dice = random.Random(f"hour {seed}")
        self._relay = Relay(host, fleet.port, seed)
        self._deeds: Counter[str] = Counter()
        self._told: list[Told] = []
        self._crowd: list[Process] = []
        self.names = [f"sim-{n:04d}" for n in range(devices)]
        (folder / "root.json").write_bytes(repository.root())
        self.journals = folder / "journals"
        self.journals.mkdir()
        self._plan = Plan(
            host="127.0.0.1", port=0, identities=str(folder / "identities"), names=self.names, seed=seed, seconds=0,
            speed=SIMULATED_S / seconds, journals=str(self.journals), root=str(folder / "root.json"), wait_s=3.0,
            step_s=60.0, chances=chances, outbox_records=outbox_records,
        )  # fmt: skip

    async def live(self) -> Outcome:
        """Let it happen. Raises: whatever a device that is not believed would be."""
        await asyncio.to_thread(enrol_many, str(self._fleet.socket), self._folder / "identities", self.names)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._relay.running())
            self._plan = msgspec.structs.replace(self._plan, port=self._relay.port)
            stack.callback(self._end)
            self._crowd = [Process(self._plan.part(index, PROCESSES)) for index in range(PROCESSES)]
            await asyncio.to_thread(self._assign)
            began = time.monotonic()
            while (left_s := self._seconds - (time.monotonic() - began)) > 0:
                await asyncio.sleep(min(left_s, self._dice.uniform(0.2, 2.0)))
                assert all(one.child.poll() is None for one in self._crowd), "a process of devices has ended"
                await self._something_happens()
            await self._calm_down()
        return self._reckon()

    async def _something_happens(self) -> None:
        deed = self._dice.choices(
            ("fair", "rough", "gone", "cable", "kill the fleet", "kill devices", "assign"),
            (2, 4, 1, 2, 2, 2, 3),
        )[0]
        self._deeds[deed] += 1
        match deed:
            case "fair":
                self._relay.weather = FAIR
            case "rough":
                self._relay.weather = ROUGH
            case "gone":
                self._relay.weather = GONE
            case "cable":
                self._relay.cut_all()
            case "kill the fleet":
                self._fleet.kill()
                await asyncio.sleep(self._dice.uniform(0.0, 0.5))
                await asyncio.to_thread(self._fleet.start)
            case "kill devices":
                index = self._dice.randrange(PROCESSES)
                self._crowd[index].kill()
                self._crowd[index] = Process(self._plan.part(index, PROCESSES))
            case "assign":
                await asyncio.to_thread(self._assign)

    def _assign(self) -> None:
        version = self._dice.choice(("1.0.0", "1.1.0"))
        chosen = self._dice.sample(self.names, len(self.names) // 3)
        wanted = {name: {"main": ("cap-inspect", version)} for name in chosen}
        repository = self._repository
        repository.change(lambda work: director.assign(work, wanted, repository.signers(), repository.now_s))

    async def _calm_down(self) -> None:
        """End the day: the devices stop, come back in good weather, and hand in what they hold."""
        self._relay.weather = FAIR
        for one in self._crowd:
            one.stop()
        self._told += [await asyncio.to_thread(one.told) for one in self._crowd]
        drain = msgspec.structs.replace(self._plan, drain=True, seconds=DRAIN_S, wait_s=0.0, chances=CALM)
        self._crowd = [Process(drain)]
        self._told.append(await asyncio.to_thread(self._crowd[0].told, DRAIN_S + 20))

    def _end(self) -> None:
        for one in self._crowd:
            if one.child.poll() is None:
                one.kill()

    def _reckon(self) -> Outcome:
        told = Told.merged(self._told)
        found = [] if told.open_devices else settled(self.journals, self._fleet.database)
        books = devices_say(self.journals)[0] if not told.open_devices else None
        records: Counter[str] = Counter()
        if books is not None:
            records["windows accounted for"] = sum(n for (what, _), n in books.windows.items() if what == "windows")
            records["happenings accounted for"] = sum(books.happenings.values())
            records["records lost by full outboxes"] = sum(
                count for (_, _, kind, count) in books.happenings if kind == "lost"
            )
        found += [f"{name} could not hand everything in" for name in told.open_devices]
        return Outcome(self._plan.seed, found, told, self._deeds + self._relay.counts, records)
