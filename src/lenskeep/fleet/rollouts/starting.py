"""A plan made into a rollout: who takes part, in which wave, and who is passed over and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lenskeep.errors import RequestError
from lenskeep.fleet.rollouts import windows
from lenskeep.fleet.rollouts.facts import Member, Rollout
from lenskeep.fleet.rollouts.lifecycle import MemberState, RolloutState
from lenskeep.fleet.rollouts.selecting import Candidate, cut, select
from lenskeep.messages.rollouts import Plan


@dataclass(frozen=True, slots=True)
class Ground:
    """What a rollout starts from."""

    devices: Sequence[Candidate]
    running: Mapping[str, Mapping[str, str]]  # by device and slot, as their reports say
    groups: Mapping[str, str]
    failed_there: Mapping[str, str]  # devices on which this version failed before, with why
    listed: frozenset[str]


def compose(plan: Plan, ground: Ground, number: int, by: str, now_ms: int) -> tuple[Rollout, list[Member]]:
    """Return the rollout that a plan asks for. Raises: RequestError."""
    windows.check(plan.windows)
    if plan.bundle not in ground.listed:
        raise RequestError(
            f"{plan.bundle} is not released here: no publisher lists it. Nothing was started.",
            hint="Release it first: lenskeep trust release FILE; then: lenskeep trust refresh.",
        )
    chosen = select(plan.target, ground.devices, ground.groups)
    if not chosen:
        raise RequestError(f"No device is meant by {plan.target!r}. Nothing was started.")
    passed = {one.device: text for one in chosen if (text := _passed_over(plan, one.device, ground))}
    asked = [one for one in chosen if one.device not in passed]
    waves = cut(plan.waves, asked, ground.groups, f"{plan.bundle}/{plan.slot}")
    used, needs = max(waves.values(), default=0) + 1, plan.approvals
    rollout = Rollout(
        id=number, plan=plan, by=by, made_ms=now_ms, since_ms=now_ms,
        state=RolloutState.PROPOSED if needs else RolloutState.RUNNING,
        reason=f"waits for {needs} approval{'s' if needs > 1 else ''}" if needs else "started",
        waves=max(used, len(plan.waves)),
    )  # fmt: skip
    members = [_member(rollout, one, waves.get(one.device, 0), passed.get(one.device, ""), ground) for one in chosen]
    return rollout, sorted(members, key=lambda one: (one.wave, one.device))


def _passed_over(plan: Plan, device: str, ground: Ground) -> str:
    if ground.running.get(device, {}).get(plan.slot) == plan.bundle:
        return "runs it already"
    if not plan.again and device in ground.failed_there:
        return f"it failed there before, {ground.failed_there[device]}"
    return ""


def _member(rollout: Rollout, one: Candidate, wave: int, passed_over: str, ground: Ground) -> Member:
    before = ground.running.get(one.device, {}).get(rollout.plan.slot, "")
    return Member(
        rollout=rollout.id, device=one.device, slot=rollout.plan.slot, wave=wave,
        state=MemberState.SKIPPED if passed_over else MemberState.SCHEDULED,
        reason=passed_over or f"waits for wave {wave + 1}", since_ms=rollout.made_ms, hardware=one.hardware,
        before=before, failed=one.device in ground.failed_there,
    )  # fmt: skip
