"""Two replicas of a fleet over one PostgreSQL: they race, they are killed, the database is killed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import msgspec
import pytest

from lenskeep.bundle.keys import generate_key
from lenskeep.fleet.store.opening import open_engine
from lenskeep.fleet.store.telemetry import TelemetryStore
from lenskeep.messages.fleet import Enrolled
from lenskeep.messages.sync import Answer, Call, Happening
from tests.fleetrig import FleetServer, Member
from tests.objectstore import KEY_ID, SECRET, ObjectStore
from tests.postgresql import Postgres
from tests.replicas import Replica


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    server = Postgres(durable=True)
    server.start()
    yield server
    server.close()


@pytest.fixture
def pair(postgres: Postgres, tmp_path: Path) -> Iterator[list[Replica]]:
    url = postgres.make()
    first = Replica(tmp_path / "a", url)
    first.start()
    second = Replica(tmp_path / "b", url, first)
    second.start()
    yield [first, second]
    for replica in (first, second):
        replica.close()


def at(member: Member, fleet: FleetServer) -> Member:
    """The same device, dialling another replica."""
    other = Member(fleet, member.device, member._folder, member.key)
    other._context = member._context
    return other


def happening(n: int) -> Happening:
    return Happening(n=n, kind="swap", at_ms=1, text=f"number {n}")


async def sync(member: Member, records: list[Happening], after: int | None = None) -> Answer | None:
    """One call; None when nothing was answered."""
    call = Call(records=list(records), outbox="o", after=after)
    try:
        status, body = await member.ask("POST", f"/v1/devices/{member.device}/sync", msgspec.json.encode(call))
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None
    return msgspec.json.decode(body, type=Answer) if status == 200 else None


async def kept(url: str, folder: Path, device: str, count: int) -> list[int]:
    """The numbers that the fleet has in the end, as it counts them."""
    async with open_engine(url, "", folder / "x", {}) as engine:
        deadline = time.monotonic() + 30
        store = TelemetryStore(engine)
        while True:
            numbers = sorted(each.n for each in await store.happenings(device=device, limit=100_000))
            if (not await store.waiting(1) and len(numbers) >= count) or time.monotonic() > deadline:
                return numbers
            await asyncio.sleep(0.1)


def address(replica: Replica) -> str:
    return replica.config.read_text().split('database = "')[1].split('"')[0]


async def test_one_token_shown_to_two_replicas_at_once_lets_one_key_in(pair: list[Replica], tmp_path: Path) -> None:
    for round_ in range(6):
        device = f"cam-{round_}"
        token = pair[round_ % 2].token(device)
        members = [Member(pair[number % 2], device, tmp_path, generate_key()) for number in range(6)]
        answers = await asyncio.gather(*(member.enrol(token) for member in members))
        assert sum(isinstance(answer, Enrolled) for answer in answers) == 1, answers
        assert len({entry["key_id"] for entry in pair[0].client.device(device).keys}) == 1


async def test_a_revocation_at_one_replica_is_heard_at_the_other_within_a_second(
    pair: list[Replica], tmp_path: Path
) -> None:
    here = await Member(pair[0], "cam-1", tmp_path).join()
    there = at(here, pair[1])
    assert await sync(there, []) is not None
    pair[0].client.revoke("cam-1", "stolen")
    began = time.monotonic()
    while await sync(there, []) is not None:
        assert time.monotonic() - began < 1.0
    print(f"heard after {time.monotonic() - began:.3f} s")


async def test_records_sent_to_both_replicas_at_once_count_once(pair: list[Replica], tmp_path: Path) -> None:
    here = await Member(pair[0], "cam-1", tmp_path).join()
    there = at(here, pair[1])
    for start in range(0, 60, 6):
        records = [happening(n) for n in range(start, start + 6)]
        answers = await asyncio.gather(*(sync(one, records, start - 1) for one in (here, there, here, there)))
        assert {answer.taken for answer in answers if answer} == {start + 5}
    assert await kept(address(pair[0]), tmp_path, "cam-1", 60) == list(range(60))


async def test_two_replicas_that_begin_at_once_make_one_database(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.make()

    async def begin() -> None:
        async with open_engine(url, "", tmp_path / "x", {}) as engine, engine.read() as tx:
            assert await tx.one("SELECT 1 FROM device LIMIT 1") is None

    await asyncio.gather(*(begin() for _ in range(5)))


async def test_a_device_that_waits_at_one_replica_hears_of_a_release_at_the_other_and_gets_it_there(
    postgres: Postgres, tmp_path: Path
) -> None:
    objects = ObjectStore()
    objects.start()
    (tmp_path / "secret").write_text(SECRET)
    storage = (
        f'blobs = "{objects.make()}"\nblobs_endpoint = "{objects.endpoint}"\n'
        f'blobs_key_id = "{KEY_ID}"\nblobs_secret = "{tmp_path}/secret"'
    )
    url = postgres.make()
    first = Replica(tmp_path / "a", url, storage=storage)
    try:
        first.start()
        second = Replica(tmp_path / "b", url, first, storage=storage)
        second.start()
        member = at(await Member(first, "cam-1", tmp_path).join(), second)
        call = msgspec.json.encode(Call(outbox="o", wait_s=20.0))
        waiting = asyncio.create_task(member.ask("POST", "/v1/devices/cam-1/sync", call))
        await asyncio.sleep(0.5)
        bundle = b"a bundle" * 100_000
        name = f"targets/models/ocr/{hashlib.sha256(bundle).hexdigest()}.ocr-1.lkb"
        for path, data in ((name, bundle), ("metadata/timestamp.json", b'{"signed": {"version": 7}}')):
            (first.repository / path).parent.mkdir(parents=True, exist_ok=True)
            (first.repository / path).write_bytes(data)
        began = time.monotonic()
        status, body = await waiting
        print(f"heard after {time.monotonic() - began:.3f} s")
        assert (status, msgspec.json.decode(body, type=Answer).newest) == (200, 7)
        assert time.monotonic() - began < 2.0
        assert await member.ask("GET", f"/v1/repository/{name}") == (200, bundle)
        assert not (second.repository / name).exists()
        second.close()
    finally:
        first.close()
        objects.close()


@contextlib.asynccontextmanager
async def devices(members: list[tuple[Member, Member]]) -> AsyncIterator[dict[str, tuple[int, int]]]:
    """Devices that send numbers to whichever replica answers; what was acknowledged and what was made, by device."""
    stop, state = asyncio.Event(), {one.device: (-1, -1) for one, _ in members}

    async def run(pair: tuple[Member, Member]) -> None:
        name, turn = pair[0].device, 0
        while not stop.is_set() or state[name][0] < state[name][1]:
            acknowledged, made = state[name]
            made = min(made + 3, acknowledged + 60) if not stop.is_set() else made
            state[name] = (acknowledged, made)
            answer = await sync(pair[turn % 2], [happening(n) for n in range(acknowledged + 1, made + 1)], acknowledged)
            turn += 1
            if answer is None:
                await asyncio.sleep(0.05)
            else:
                assert answer.taken >= acknowledged, "the fleet forgot what it had acknowledged"
                state[name] = (min(answer.taken, made), made)

    tasks = [asyncio.create_task(run(pair)) for pair in members]
    yield state
    stop.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*tasks)


@pytest.mark.timeout(200)
async def test_kill_9_of_replicas_and_of_the_database_loses_and_doubles_nothing(
    postgres: Postgres, pair: list[Replica], tmp_path: Path
) -> None:
    joined = [await Member(pair[0], f"cam-{number}", tmp_path).join() for number in range(4)]
    async with devices([(at(one, pair[0]), at(one, pair[1])) for one in joined]) as state:
        for victim in (0, "postgres", 1, "postgres", 0):
            await asyncio.sleep(0.7)
            if isinstance(victim, int):
                pair[victim].kill()
                pair[victim].process = None
                await asyncio.sleep(0.3)
                await asyncio.to_thread(pair[victim].start)
            else:
                await asyncio.to_thread(postgres.kill)
                await asyncio.sleep(0.3)
                await asyncio.to_thread(postgres.start)
        await asyncio.sleep(0.7)
    assert sum(made for _, made in state.values()) > 100, state
    for device, (acknowledged, made) in state.items():
        assert acknowledged == made
        numbers = await kept(address(pair[0]), tmp_path, device, made + 1)
        assert numbers == list(range(made + 1)), device
    print({device: made for device, (_, made) in state.items()})
