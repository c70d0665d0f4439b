"""What a memory that was put back from a copy owes to assignments that are newer than it.

Rules. The repository is in no backup, so what it assigns was decided, whoever remembers that. A device that is assigned
the rollout's version was asked for it. One that is assigned another version than it was asked for is not ours any more:
what it is assigned is what it goes back to. Then the rollout waits for a person, because a decision was forgotten. What
is not newer than the memory, and what the memory explains, says nothing: a kill between two steps is no loss of memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from lenskeep.fleet.rollouts import judge
from lenskeep.fleet.rollouts.facts import Member, Moment, Rollout, move
from lenskeep.fleet.rollouts.judge import Look
from lenskeep.fleet.rollouts.lifecycle import OVER, UNDERWAY, MemberEvent, MemberState, RolloutState
from lenskeep.messages.rollouts import Way


@dataclass(frozen=True, slots=True)
class Assigned:
    """What the repository assigns to a device's slot."""

    bundle: str
    generation: int
    activate: Way


def agree(
    rollout: Rollout, members: Sequence[Member], assigned: Mapping[str, Assigned], remembered: Mapping[str, str],
    moment: Moment,
) -> Look:  # fmt: skip
    """Return a rollout and its devices as they are by what is assigned.

    Args:
        assigned: by device, for the rollout's slot; without devices that a later rollout has taken over.
        remembered: what this fleet asked each device for last, in any rollout, as far as that can be signed already.
    """
    there = {one.device: found for one in members if (found := assigned.get(one.device)) is not None}
    last = {one.device: remembered.get(one.device, "") for one in members}
    lost = [
        one for one in members
        if one.device in there and _forgotten(rollout, one, there[one.device], last[one.device])
    ]  # fmt: skip
    after = []
    for one in members:
        found = there.get(one.device)
        if found is None:
            after.append(one)
        elif one in lost or (
            lost and one.state == MemberState.SCHEDULED and _third(rollout, one, found, last[one.device])
        ):
            after.append(_let_go(one, found, moment))
        elif rollout.state not in OVER and _asked(rollout, one, found, last[one.device]):
            after.append(_adopt(one, found, moment))
        else:
            after.append(one)
    if not lost or rollout.state != RolloutState.RUNNING:
        return rollout, after
    first = lost[0]
    more = f" and {len(lost) - 1} more" if lost[1:] else ""
    reason = (
        f"put back from a copy: {first.device}{more} was assigned {there[first.device].bundle} since, which this fleet"
        " does not remember; look what devices run, then resume or abort"
    )
    return judge.pause(rollout, after, reason, moment)


def _forgotten(rollout: Rollout, member: Member, found: Assigned, remembered: str) -> bool:
    """Say whether a device that was asked is assigned something else by a newer signature."""
    if not member.attempts:
        return False
    if not member.signed:  # decided, and about to be signed: not over what nobody here decided
        return _third(rollout, member, found, remembered)
    return 0 < member.generation < found.generation and member.want not in ("", found.bundle)


def _third(rollout: Rollout, member: Member, found: Assigned, remembered: str) -> bool:
    """Say whether a device is assigned neither the version nor what it ran, nor what it was asked for before."""
    return found.bundle not in (rollout.plan.bundle, member.before, remembered)


def _asked(rollout: Rollout, member: Member, found: Assigned, remembered: str) -> bool:
    """Say whether a device that waits for its wave was asked already."""
    return member.state == MemberState.SCHEDULED and found.bundle == rollout.plan.bundle != remembered


def _let_go(member: Member, found: Assigned, moment: Moment) -> Member:
    """Leave a device with what it is assigned."""
    if member.state == MemberState.SCHEDULED or member.state in UNDERWAY:
        text = f"is assigned {found.bundle} since, which this fleet does not remember"
        member = move(member, MemberEvent.CALLED_OFF, text, moment.wall_ms)
    return replace(member, before=found.bundle, want=found.bundle, activate=found.activate, signed=True, renumber=False)


def _adopt(member: Member, found: Assigned, moment: Moment) -> Member:
    asked = move(member, MemberEvent.ASKED, "was asked, which this fleet does not remember", moment.wall_ms)
    return replace(
        asked, want=found.bundle, activate=found.activate, signed=True, renumber=False, attempts=1,
        generation=found.generation,
    )  # fmt: skip
