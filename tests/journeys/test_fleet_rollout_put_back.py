"""A fleet that is put back to a backup that was taken while a rollout ran; each test is named after what was lost.

The repository is not in a backup: its signatures are newer then than what the fleet remembers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lenskeep.messages.rollouts import Plan, RolloutAsk, RolloutDetail, Wave
from lenskeep.trust.keeping import director, state
from lenskeep.trust.keeping.workspace import Workspace
from tests.journeys.test_fleet_rollouts import WAIT_S, Fleet, state_of
from tests.process.test_fleet_put_back import command
from tests.rolloutworld import NEW, OLD

THIRD = "cap-inspect@1.2.0"


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    fleet.repository.release("cap-inspect", "1.2.0")
    fleet.server.start()
    yield fleet
    await fleet.close()


async def canaries(fleet: Fleet, soak_s: float = 600.0) -> tuple[int, str]:
    """Begin a rollout to three devices and wait until the first runs the version; return its number and that device."""
    await fleet.join(3)
    shown = await fleet.start("1", "100%", soak_s=soak_s)
    (first,) = [one.device for one in shown.members if one.wave == 1]
    await fleet.until_device(shown.rollout.id, first, "committed")
    return shown.rollout.id, first


async def keep(fleet: Fleet) -> Path:
    file = fleet.server.folder / "kept.lkf"
    await asyncio.to_thread(command, fleet.server, "backup", str(file))
    return file


async def put_back(fleet: Fleet, file: Path) -> dict[str, int]:
    """Put the fleet back, and return which numbers its assignments had before that."""
    fleet.server.kill()
    for path in fleet.server.database.parent.glob("fleet.sqlite*"):
        path.unlink()
    await asyncio.to_thread(command, fleet.server, "restore", str(file))
    before = generations(fleet)
    await asyncio.to_thread(fleet.server.start)
    return before


def generations(fleet: Fleet) -> dict[str, int]:
    work = Workspace(fleet.server.repository)
    return {name: one.generation for name, one in director.assigned(work, state.load(work)).items()}


def assigned(fleet: Fleet) -> dict[str, str]:
    return {name: one.device.assigned[0] for name, one in fleet.devices.items()}


def running(fleet: Fleet) -> dict[str, str]:
    return {name: one.device.running for name, one in fleet.devices.items()}


async def everybody_runs(fleet: Fleet, bundle: str) -> None:
    async with asyncio.timeout(WAIT_S):
        while set(running(fleet).values()) != {bundle}:
            await asyncio.sleep(0.05)


async def finish(fleet: Fleet, number: int) -> None:
    """Let the rollout go through although its first wave is still watched: by a second one for the others."""
    await fleet.abort(number, revert=False)
    plan = Plan(bundle=NEW, slot="main", waves=[Wave(take="100%")], soak_s=0)
    shown = await asyncio.to_thread(fleet.server.client.start_rollout, RolloutAsk(plan=plan))
    await fleet.until(shown.rollout.id, "finished")


async def settled(fleet: Fleet, number: int) -> RolloutDetail:
    """Let everybody call a few times, and return how the rollout stands then."""
    calls = {name: one.calls for name, one in fleet.devices.items()}
    async with asyncio.timeout(WAIT_S):
        while any(one.calls < calls[name] + 3 for name, one in fleet.devices.items()):
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)
    return await fleet.show(number)


async def test_devices_that_went_further_meanwhile_are_believed_and_the_end_is_theirs_too(fleet: Fleet) -> None:
    number, _ = await canaries(fleet)
    file = await keep(fleet)
    await finish(fleet, number)
    assert set(running(fleet).values()) == {NEW}
    numbers = await put_back(fleet, file)
    shown = await settled(fleet, number)
    assert (shown.rollout.state, shown.rollout.wave) == ("running", 1), "it stands as it stood"
    assert shown.rollout.states == {"committed": 3}, shown.members
    assert set(running(fleet).values()) == {NEW} and generations(fleet) == numbers, "nothing was signed"
    await fleet.abort(number, revert=False)
    await settled(fleet, number)
    assert set(running(fleet).values()) == {NEW}
    await fleet.abort(number, revert=True)
    await fleet.until(number, "aborted")
    await everybody_runs(fleet, OLD)
    now = generations(fleet)
    assert all(now[name] > numbers[name] for name in numbers)
    assert {one.device.activated.count(NEW) for one in fleet.devices.values()} == {1}


async def test_devices_on_their_way_meanwhile_are_called_off_when_it_is_aborted(fleet: Fleet) -> None:
    number, first = await canaries(fleet, soak_s=3.0)
    others = sorted(set(fleet.devices) - {first})
    file = await keep(fleet)
    for name in others:
        fleet.devices[name].goes = False  # they hear of the next wave, and do nothing yet
    async with asyncio.timeout(WAIT_S):
        while any(assigned(fleet)[name] != NEW for name in others):
            await asyncio.sleep(0.05)
    numbers = await put_back(fleet, file)
    shown = await fleet.show(number)
    assert {state_of(shown, name) for name in others} == {"assigned"}, shown.members
    await fleet.abort(number, revert=False)
    for name in others:
        fleet.devices[name].goes = True
    async with asyncio.timeout(WAIT_S):
        while any(assigned(fleet)[name] != OLD for name in others):
            await asyncio.sleep(0.05)
    await settled(fleet, number)
    assert [fleet.devices[name].device.activated for name in others] == [[], []]
    now = generations(fleet)
    assert all(now[name] > numbers[name] for name in others)


async def test_a_rollout_that_was_taken_back_meanwhile_does_not_go_on_by_itself(fleet: Fleet) -> None:
    number, first = await canaries(fleet, soak_s=2.5)
    file = await keep(fleet)
    await fleet.abort(number, revert=True)
    await fleet.until(number, "aborted")
    await everybody_runs(fleet, OLD)
    await put_back(fleet, file)
    shown = await fleet.until(number, "paused")
    await asyncio.sleep(2.0)  # its first wave would have been watched for long enough
    shown = await settled(fleet, number)
    assert (shown.rollout.state, shown.rollout.wave) == ("paused", 1)
    assert set(running(fleet).values()) == {OLD} and first in shown.rollout.reason
    await fleet.abort(number, revert=False)
    await everybody_runs(fleet, OLD)


async def test_a_newer_version_that_was_rolled_out_meanwhile_is_not_taken_back(fleet: Fleet) -> None:
    number, _ = await canaries(fleet)
    file = await keep(fleet)
    await fleet.abort(number, revert=False)
    plan = Plan(bundle=THIRD, slot="main", waves=[Wave(take="100%")], soak_s=0)
    shown = await asyncio.to_thread(fleet.server.client.start_rollout, RolloutAsk(plan=plan))
    await fleet.until(shown.rollout.id, "finished")
    await everybody_runs(fleet, THIRD)
    numbers = await put_back(fleet, file)
    shown = await fleet.until(number, "paused")
    assert f"was assigned {THIRD} since, which this fleet does not remember" in shown.rollout.reason
    await settled(fleet, number)
    await asyncio.to_thread(fleet.server.client.resume_rollout, number, "looked")
    for revert in (False, True):
        await settled(fleet, number)
        assert set(running(fleet).values()) == {THIRD}
        await fleet.abort(number, revert=revert)
    await settled(fleet, number)
    assert set(running(fleet).values()) == {THIRD} and set(assigned(fleet).values()) == {THIRD}
    assert generations(fleet) == numbers, "nothing was signed over it"
