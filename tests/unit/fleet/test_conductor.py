"""The conductor with a real repository and real engines: replicas that race, clocks that step, signings that break."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec.structs import replace

from lenskeep.errors import NotEntitledError
from lenskeep.fleet.conductor import Conductor
from lenskeep.fleet.director import Director, Order
from lenskeep.fleet.rollouts import judge
from lenskeep.fleet.rollouts.facts import Moment
from lenskeep.fleet.rollouts.lifecycle import MemberState, RolloutState
from lenskeep.fleet.rollouts.selecting import Candidate
from lenskeep.fleet.rollouts.starting import Ground, compose
from lenskeep.fleet.store.engine import Engine
from lenskeep.fleet.store.opening import open_engine
from lenskeep.fleet.store.rollouts import RolloutStore, note_progress
from lenskeep.fleet.store.store import Store
from lenskeep.fleet.store.telemetry import TelemetryStore
from lenskeep.fleet.store.trials import TrialStore
from lenskeep.messages.rollouts import Deadlines, Gates, Plan, Wave
from lenskeep.messages.sync import SlotNow
from tests.fleetrig import LyingClock
from tests.postgresql import Postgres
from tests.repositories import Repository
from tests.rolloutworld import NEW, OLD

DAY_S = 86400.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    server.start()
    yield server
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest) -> str:
    return "sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres").make()


class Stage:
    """A repository, a database, and as many conductors over them as a test wants."""

    def __init__(self, folder: Path, address: str, stack: AsyncExitStack) -> None:
        self.folder = folder
        self.address = address
        self.repository = Repository(folder / "repository")
        self.repository.publisher("acme", "cap-*")
        for version in ("1.0.0", "1.1.0"):
            self.repository.release("cap-inspect", version)
        self.key = folder / "online.key"
        self.key.write_bytes(self.repository.keys["online"].pem())
        self.clock = LyingClock(self.repository.now_s)
        self.boot_s = self.clock.boot_s()
        self.clock.boot_s = lambda: self.boot_s  # type: ignore[method-assign]
        self._stack = stack

    async def engine(self) -> Engine:
        return await self._stack.enter_async_context(open_engine(self.address, "", self.folder / "fleet.sqlite", {}))

    def director(self) -> Director:
        return Director(self.repository.folder, [str(self.key)], os.environ)

    async def replica(self) -> tuple[Conductor, RolloutStore, Engine]:
        engine = await self.engine()
        store = RolloutStore(engine)
        conductor = Conductor(
            store, Store(engine), TelemetryStore(engine), TrialStore(engine), self.director(), self.clock
        )
        return conductor, store, engine

    async def start(self, store: RolloutStore, devices: int, plan: Plan) -> int:
        names = [f"cam-{n}" for n in range(devices)]
        ground = Ground(
            devices=[Candidate(name) for name in names], running={name: {"main": OLD} for name in names}, groups={},
            failed_there={}, listed=frozenset({plan.bundle}),
        )  # fmt: skip
        return await store.add(
            lambda number: compose(plan, ground, number, "unix:mara", self.clock.now_ms()), by="unix:mara",
            now_ms=self.clock.now_ms(),
        )  # fmt: skip

    def generations(self) -> dict[str, int]:
        return {name: one.generation for name, one in self.director().assigned_in_thread().items()}


@pytest.fixture
async def stage(tmp_path: Path, address: str) -> AsyncIterator[Stage]:
    async with AsyncExitStack() as stack:
        yield Stage(tmp_path, address, stack)


def plan(*waves: str, **words: object) -> Plan:
    asked = {"soak_s": 0, "waves": [Wave(take=take) for take in waves], **words}
    return Plan(bundle=NEW, slot="main", **asked)  # type: ignore[arg-type]


async def tell(engine: Engine, device: str, told: SlotNow) -> bool:
    async with engine.write() as tx:
        return await note_progress(tx, device, told, now_ms=1)


async def test_two_replicas_racing_decide_and_sign_everything_once(stage: Stage) -> None:
    (one, store, engine), (two, _, _) = await stage.replica(), await stage.replica()
    number = await stage.start(store, 20, plan("5", "100%", gates=Gates(failed_share_max=None)))
    for _ in range(3):
        await asyncio.gather(one.round(), two.round(), one.round(), two.round())
    _, members = await store.get(number)
    assert [member.attempts for member in members] == [1] * 5 + [0] * 15
    assert stage.generations() == {member.device: 1 for member in members[:5]}
    assert all(member.signed and member.generation == 1 and member.steps == 1 for member in members[:5])
    for member in members[:5]:
        assert await tell(engine, member.device, SlotNow(slot="main", generation=1, state="followed", bundle=NEW))
    await asyncio.gather(one.round(), two.round())
    await asyncio.gather(one.round(), two.round())
    _, members = await store.get(number)
    assert {member.attempts for member in members} == {1} and set(stage.generations().values()) == {1}
    history = await store.history(bundle=NEW)
    assert sum(step.state == "assigned" for step in history) == 20


async def test_a_signing_that_broke_off_is_done_at_the_next_start_and_not_twice(stage: Stage) -> None:
    conductor, store, _ = await stage.replica()
    number = await stage.start(store, 3, plan("100%"))
    before = stage.director().sign_in_thread

    def breaks(*arguments: object) -> object:
        before(*arguments)  # type: ignore[arg-type]
        raise NotEntitledError("killed after the files were there, before it was written down")

    conductor._director.sign_in_thread = breaks  # type: ignore[method-assign,assignment]
    with pytest.raises(NotEntitledError):
        await conductor.round()
    _, members = await store.get(number)
    assert not any(member.signed for member in members) and {one.generation for one in members} == {1}
    again, _, _ = await stage.replica()
    await again.round()
    _, members = await store.get(number)
    assert all(member.signed for member in members) and set(stage.generations().values()) == {1}


async def test_a_device_that_answers_before_the_signing_is_written_down_is_heard(stage: Stage) -> None:
    conductor, store, engine = await stage.replica()
    number = await stage.start(store, 1, plan("100%"))
    before = conductor._director.sign_in_thread

    def answered_at_once(*arguments: object) -> object:
        signed = before(*arguments)  # type: ignore[arg-type]
        told = tell(engine, "cam-0", SlotNow(slot="main", generation=1, state="downloading", bundle=OLD))
        assert asyncio.run_coroutine_threadsafe(told, loop).result()
        return signed

    loop = asyncio.get_running_loop()
    conductor._director.sign_in_thread = answered_at_once  # type: ignore[method-assign,assignment]
    await conductor.round()
    _, (member,) = await store.get(number)
    assert member.state == MemberState.DOWNLOADING and member.signed


@pytest.mark.parametrize("by_s", [-400 * DAY_S, -3 * DAY_S, 3 * DAY_S, 400 * DAY_S])
async def test_the_servers_clock_stepping_makes_nobody_silent_and_ends_no_soak(stage: Stage, by_s: float) -> None:
    conductor, store, engine = await stage.replica()
    number = await stage.start(store, 2, plan("1", "100%", soak_s=60, deadlines=Deadlines(assigned_s=100)))
    await conductor.round()
    stage.clock.shown_s += by_s
    for _ in range(3):
        stage.boot_s += 1
        await conductor.round()
    _, members = await store.get(number)
    assert sorted(str(one.state) for one in members) == ["assigned", "scheduled"]
    (asked,) = [one.device for one in members if one.attempts]
    await tell(engine, asked, SlotNow(slot="main", generation=1, state="followed", bundle=NEW))
    stage.clock.shown_s -= 2 * by_s
    for _ in range(3):
        stage.boot_s += 1
        await conductor.round()
    assert (await store.get(number))[0].opened == 1, "the soak ended by the wall clock"
    for _ in range(3):
        stage.boot_s += 30
        await conductor.round()
    assert (await store.get(number))[0].opened == 2, "the soak does not end by the time that passes"


async def test_a_night_in_which_the_fleet_was_down_makes_nobody_silent(stage: Stage) -> None:
    conductor, store, _ = await stage.replica()
    number = await stage.start(store, 1, plan("100%", deadlines=Deadlines(assigned_s=100)))
    await conductor.round()
    await conductor.round()
    stage.boot_s += 8 * 3600
    stage.clock.shown_s += 8 * 3600
    after, _, _ = await stage.replica()
    await after.round()
    assert (await store.get(number))[1][0].state == MemberState.ASSIGNED
    for _ in range(3):
        stage.boot_s += 60
        await after.round()
    assert (await store.get(number))[1][0].state == MemberState.SILENT


async def test_a_version_before_that_is_withdrawn_cannot_be_brought_back_and_says_so(stage: Stage) -> None:
    conductor, store, engine = await stage.replica()
    number = await stage.start(store, 1, plan("100%"))
    await conductor.round()
    await tell(engine, "cam-0", SlotNow(slot="main", generation=1, state="followed", bundle=NEW))
    stage.repository.withdraw("cap-inspect", "1.0.0")
    at = Moment(1, await store.read_steady())
    await store.revise(number, lambda now, ones: judge.abort(now, ones, "by hand", at, revert=True))
    await conductor.round()
    await conductor.round()
    rollout, (member,) = await store.get(number)
    assert member.state == MemberState.FAILED and "not released any more" in member.reason
    assert rollout.state == RolloutState.ABORTED and member.want == "" and member.signed


async def test_an_abort_of_an_old_rollout_leaves_devices_alone_that_a_later_one_has(stage: Stage) -> None:
    conductor, store, engine = await stage.replica()
    first = await stage.start(store, 1, plan("100%"))
    await conductor.round()
    await tell(engine, "cam-0", SlotNow(slot="main", generation=1, state="followed", bundle=NEW))
    await conductor.round()
    assert (await store.get(first))[0].state == RolloutState.FINISHED
    await stage.start(store, 1, replace(plan("100%"), bundle=NEW))
    await conductor.round()
    assert await store.superseded(first) == {"cam-0"}


async def test_a_thousand_devices_are_assigned_in_one_signing(stage: Stage) -> None:
    director, before = stage.director(), stage.repository.document("director").version
    asked = [Order(f"cam-{n}", "main", NEW) for n in range(1000)]
    numbered: dict[str, int] = {}
    signed = await asyncio.to_thread(director.sign_in_thread, lambda: asked, stage.repository.now_s, numbered.update)
    assert signed.anew == 1000 and set(numbered.values()) == {1}
    assert stage.repository.document("director").version == before + 1
    again = await asyncio.to_thread(director.sign_in_thread, lambda: asked, stage.repository.now_s, numbered.update)
    assert again.anew == 0


async def test_what_an_earlier_rollout_left_assigned_is_no_lost_memory_when_a_later_one_died_before_it_signed(
    stage: Stage,
) -> None:
    conductor, store, engine = await stage.replica()
    gates = Gates(failed_share_max=None, success_share_min=0)
    await stage.start(store, 1, plan("100%", gates=gates))
    await conductor.round()
    await tell(engine, "cam-0", SlotNow(slot="main", generation=1, state="refused", bundle=OLD))
    await conductor.round()
    stage.repository.release("cap-inspect", "1.2.0")
    later = await stage.start(store, 1, replace(plan("100%"), bundle="cap-inspect@1.2.0"))
    await conductor._look(later)  # decided and written; then the server dies
    after, _, _ = await stage.replica()
    await after.agree()
    await after.round()
    rollout, (member,) = await store.get(later)
    assert rollout.state == RolloutState.RUNNING and member.signed and member.want == "cap-inspect@1.2.0"
    assert stage.generations() == {"cam-0": 2}
