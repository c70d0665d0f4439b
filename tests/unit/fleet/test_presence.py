"""Who waits for news is woken: a few of those whom it concerns first, then everybody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from lenskeep.clock import Clock
from lenskeep.errors import UnlistedDeviceError
from lenskeep.fleet.presence import EARLY, HEAD_START_S, Presence
from lenskeep.fleet.store.intake import IntakeStore
from lenskeep.fleet.store.opening import SCHEMA
from lenskeep.fleet.store.sqlite import open_sqlite
from lenskeep.trust.names import METADATA

CROWD = [f"cam-{n}" for n in range(100)]


class Room:
    """A crowd that waits; who is woken is noted with the moment."""

    def __init__(self, presence: Presence, folder: Path) -> None:
        self.presence = presence
        self.woken: dict[str, float] = {}
        self._timestamp = folder / METADATA / "timestamp.json"
        self._timestamp.parent.mkdir()

    async def hold(self, device: str) -> None:
        with suppress(UnlistedDeviceError):
            await self.presence.wait(await self.presence.of(device), 30.0)
            self.woken[device] = asyncio.get_running_loop().time()

    async def sign(self, version: int, concerned: list[str]) -> None:
        self.presence.expect(concerned)
        self._timestamp.write_text(json.dumps({"signed": {"version": version}}))
        await self.presence.look()

    async def all_awake(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.woken) < count:
                await asyncio.sleep(0.005)


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    async with open_sqlite(tmp_path / "fleet.sqlite", SCHEMA) as engine:
        made = Room(Presence(IntakeStore(engine), tmp_path, Clock()), tmp_path)
        tasks = [asyncio.create_task(made.hold(device)) for device in CROWD]
        async with asyncio.timeout(10):
            while made.presence.waiting < len(CROWD):
                await asyncio.sleep(0.005)
        tasks.append(asyncio.create_task(made.presence.run()))
        yield made
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def test_canaries_hear_of_their_version_before_the_crowd(room: Room) -> None:
    await room.sign(1, ["cam-61", "cam-7"])
    await room.all_awake(len(CROWD))
    assert set(list(room.woken)[:2]) == {"cam-61", "cam-7"}
    others = min(at for device, at in room.woken.items() if device not in ("cam-61", "cam-7"))
    assert others - room.woken["cam-61"] >= HEAD_START_S * 0.8


async def test_news_that_concern_all_wake_a_few_first_and_then_the_rest(room: Room) -> None:
    await room.sign(1, CROWD)
    await room.all_awake(len(CROWD))
    moments = sorted(room.woken.values())
    assert moments[EARLY] - moments[EARLY - 1] >= HEAD_START_S * 0.8


async def test_what_is_signed_by_somebody_else_wakes_everybody(room: Room) -> None:
    room._timestamp.write_text(json.dumps({"signed": {"version": 9}}))
    await room.all_awake(len(CROWD))
    assert room.presence.newest == 9


async def test_a_device_that_is_asked_something_does_not_wait_for_the_crowd(room: Room) -> None:
    await room.sign(1, ["cam-61"])
    room.presence.wake("cam-99")
    await asyncio.sleep(HEAD_START_S / 4)
    assert "cam-99" in room.woken and len(room.woken) == 2


async def test_who_waits_hears_of_everything_although_the_store_was_changed_by_somebody_else(room: Room) -> None:
    room.presence.forget_all()
    room.presence.wake("cam-3")
    await room.all_awake(1)
    room.presence.forget("cam-4")
    room.presence.asked("")
    await room.all_awake(len(CROWD) - 1)
    assert "cam-4" not in room.woken, "it was sent away"


async def test_news_upon_news_wake_everybody_once(room: Room) -> None:
    for version in range(1, 51):
        await room.sign(version, [])
    assert len(room.presence._waking) <= len(CROWD)
    await room.all_awake(len(CROWD))
    assert not room.presence._waking
