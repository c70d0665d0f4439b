"""A rollout whose fleet was put back from a copy, by what is assigned meanwhile."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from lenskeep.fleet.rollouts.facts import Member, Rollout
from lenskeep.fleet.rollouts.lifecycle import MemberState, RolloutState
from lenskeep.messages.rollouts import Gates, Plan, Wave
from tests.rolloutworld import NEW, OLD, World

M, R = MemberState, RolloutState
THIRD = "cap-inspect@1.2.0"


def begun() -> tuple[World, str]:
    """Two devices; the first one runs the version and is watched, the second one waits for its wave."""
    plan = Plan(bundle=NEW, slot="main", waves=[Wave(take="1"), Wave(take="100%")], soak_s=60, gates=Gates())
    world = World(plan, 2)
    (first,) = [one.device for one in world.members if one.wave == 0]
    while world.member(first).state != M.COMMITTED:
        world.round()
    return world, first


def forget(world: World, kept: tuple[Rollout, list[Member]]) -> None:
    """Put the memory back; devices and signatures stay as they are."""
    world.rollout, world.members = kept
    world.agree()


def test_a_device_that_was_asked_meanwhile_is_asked_once() -> None:
    world, first = begun()
    kept = (world.rollout, list(world.members))
    (second,) = set(world.devices) - {first}
    while world.member(second).state != M.STAGED:
        world.round()
        world.steady_ms += 1000
    signed = dict(world.generations)
    forget(world, kept)
    assert world.member(second).state == M.ASSIGNED and world.rollout.opened == 1
    assert world.rollout.state == R.RUNNING, "nothing was forgotten that somebody decided"
    world.hear(second)
    assert world.member(second).state == M.STAGED
    world.steady_ms += 61_000
    world.until(R.FINISHED)
    assert world.generations == signed and world.devices[second].activated == [NEW]


@pytest.mark.parametrize("now", [OLD, THIRD])
def test_a_device_that_is_assigned_another_version_since_is_let_go_and_a_person_decides(now: str) -> None:
    world, first = begun()
    kept = (world.rollout, list(world.members))
    (second,) = set(world.devices) - {first}
    for number, device in enumerate(world.devices.values()):
        device.assigned = (now, "attempt", 7 + number)
        device.running = now
    forget(world, kept)
    assert world.rollout.state == R.PAUSED and f"{first} was assigned {now} since" in world.rollout.reason
    assert world.member(second).state == (M.CANCELED if now == THIRD else M.SCHEDULED)
    world.agree()  # a second start
    for name in world.devices:
        world.hear(name)
    world.abort(revert=True)
    for _ in range(12):
        world.round()
    assert world.rollout.state == R.ABORTED
    assert {(one.assigned[0], one.running) for one in world.devices.values()} == {(now, now)}
    assert not any(one.generation > 6 for one in world.members), "nothing was signed anew"


def test_what_was_decided_and_not_signed_is_not_signed_over_a_version_that_came_meanwhile() -> None:
    world = World(Plan(bundle=NEW, slot="main", waves=[Wave(take="100%")]), 1)
    world.look()
    kept = (world.rollout, list(world.members))
    assert not world.member("cam-0").signed
    world.devices["cam-0"].assigned, world.devices["cam-0"].running = (THIRD, "attempt", 2), THIRD
    forget(world, kept)
    for _ in range(8):
        world.round()
    assert world.rollout.state == R.PAUSED and world.devices["cam-0"].running == THIRD


def test_what_was_decided_and_not_signed_when_the_server_died_is_signed() -> None:
    world, first = begun()
    world.abort(revert=True)
    assert not world.member(first).signed
    world.agree()
    assert world.member(first).state == M.REVERTING and not world.member(first).signed
    for _ in range(8):
        world.round()
    assert world.devices[first].running == OLD


def test_what_an_earlier_rollout_left_assigned_is_no_sign_of_a_lost_memory() -> None:
    world, first = begun()
    (second,) = set(world.devices) - {first}
    world.devices[second].assigned = (NEW, "attempt", 3)  # it failed there, and that rollout was finished
    remembered = world.member(second)
    world.members = [replace(one, attempts=1, want=NEW) if one == remembered else one for one in world.members]
    before = list(world.members)
    world.agree()
    assert world.members == before and world.rollout.state == R.RUNNING
