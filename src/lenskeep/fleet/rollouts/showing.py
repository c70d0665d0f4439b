"""A rollout as operators are shown it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from lenskeep.clock import rfc3339
from lenskeep.fleet.rollouts.facts import Member, Rollout
from lenskeep.messages.rollouts import MemberView, RolloutDetail, RolloutRow, WaveView


def row(rollout: Rollout, states: Mapping[str, int]) -> RolloutRow:
    """Show a rollout on one line."""
    return RolloutRow(
        id=rollout.id, bundle=rollout.plan.bundle, slot=rollout.plan.slot, target=rollout.plan.target,
        state=rollout.state, reason=rollout.reason, since=_moment(rollout.since_ms), by=rollout.by,
        started=_moment(rollout.made_ms), wave=rollout.opened, waves=rollout.waves, devices=sum(states.values()),
        states=dict(sorted(states.items())), approvals=rollout.approvals, approvals_needed=rollout.plan.approvals,
    )  # fmt: skip


def detail(rollout: Rollout, members: Sequence[Member]) -> RolloutDetail:
    """Show everything about a rollout."""
    return RolloutDetail(
        rollout=row(rollout, Counter(str(one.state) for one in members)), plan=rollout.plan, gates=rollout.gates,
        waves=[_wave(rollout, number, members) for number in range(rollout.waves)],
        members=[_member(one) for one in members],
    )  # fmt: skip


def _wave(rollout: Rollout, number: int, members: Sequence[Member]) -> WaveView:
    mine = [one for one in members if one.wave == number]
    takes = rollout.plan.waves
    return WaveView(
        number=number + 1, take=takes[number].take if number < len(takes) else "the rest",
        state=_state(rollout, number), devices=len(mine),
        states=dict(sorted(Counter(str(one.state) for one in mine).items())),
    )  # fmt: skip


def _state(rollout: Rollout, number: int) -> Literal["waiting", "running", "soaking", "through"]:
    if number >= rollout.opened:
        return "waiting"
    if number < rollout.opened - 1 or rollout.state == "finished":
        return "through"
    return "soaking" if rollout.through_steady_ms else "running"


def _member(one: Member) -> MemberView:
    return MemberView(
        device=one.device, wave=one.wave + 1, state=one.state, reason=one.reason, since=_moment(one.since_ms),
        code=one.code, attempts=one.attempts, generation=one.generation, hardware=one.hardware, before=one.before,
    )  # fmt: skip


def _moment(ms: int) -> str:
    return rfc3339(ms / 1000)
