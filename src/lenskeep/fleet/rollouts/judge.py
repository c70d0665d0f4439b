"""The judge: looks at a rollout as it stands and says what it should be, for the conductor to write and to do.

Rules. A look changes nothing outside; the same facts give the same answer, so one that was lost is taken again. Gates
come before waves: nothing is opened in a look that finds one broken. While a rollout is paused, and outside its
windows, devices that have not begun to exchange are asked not to (`activate: skip`), and their time stands still.
A rollout that is over still lets time run for devices that have not answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from lenskeep.fleet.rollouts import gates
from lenskeep.fleet.rollouts.facts import Evidence, Member, Moment, Rollout, done, move, settled, turn
from lenskeep.fleet.rollouts.lifecycle import (
    EXPECTING,
    OVER,
    UNDERWAY,
    WAITING,
    MemberEvent,
    MemberState,
    RolloutEvent,
    RolloutState,
)
from lenskeep.messages.rollouts import GateView, Plan, Way

Look = tuple[Rollout, list[Member]]


def look(rollout: Rollout, members: Sequence[Member], evidence: Evidence, moment: Moment) -> Look:
    """Return the rollout and all its devices as they should be now."""
    if rollout.state == RolloutState.PROPOSED:
        return rollout, list(members)
    after = [_let_time_run(rollout, one, moment) for one in members]
    if rollout.state == RolloutState.RUNNING:
        rollout, after = _advance(rollout, after, evidence, moment)
    if rollout.state == RolloutState.REVERTING and not any(one.state == MemberState.REVERTING for one in after):
        rollout = turn(rollout, RolloutEvent.REVERTED, rollout.reason, moment.wall_ms)
    if (
        rollout.state == RolloutState.ABORTED
    ):  # who lost it and begins anew, or fell silent, is not helped to it any more
        lacks = WAITING | {MemberState.SILENT}
        begins = [one.state in lacks and one.want == rollout.plan.bundle for one in after]
        after = [
            _end(one, rollout.reason, moment, revert=False) if begun else one
            for one, begun in zip(after, begins, strict=True)
        ]
    if rollout.state not in OVER:
        after = [_hold(rollout, one, moment) for one in after]
    return rollout, after


# --- what operators decide ------------------------------------------------------------------------------------------


def pause(rollout: Rollout, members: Sequence[Member], reason: str, moment: Moment) -> Look:
    """Stop before anything new. Raises: ConflictError."""
    rollout = turn(rollout, RolloutEvent.PAUSE, reason, moment.wall_ms)
    return rollout, [_hold(rollout, one, moment) for one in members]


def resume(rollout: Rollout, members: Sequence[Member], reason: str, moment: Moment) -> Look:
    """Go on, with what the gates show now taken as seen and accepted. Raises: ConflictError."""
    approved = len(rollout.approvals) >= rollout.plan.approvals
    event = RolloutEvent.RESUME if approved else RolloutEvent.RESUME_UNAPPROVED
    seen = {f"{gate.gate}/{gate.subject}": gate.value for gate in rollout.gates if gate.broken}
    rollout = replace(turn(rollout, event, reason, moment.wall_ms), forgiven={**rollout.forgiven, **seen})
    return rollout, [_hold(rollout, one, moment) for one in members]


def approve(rollout: Rollout, by: str, moment: Moment) -> Rollout:
    """Take an approval; the last one that is needed starts the rollout."""
    rollout = replace(rollout, approvals=[*rollout.approvals, by])
    lacks = rollout.plan.approvals - len(rollout.approvals)
    if lacks > 0:
        return replace(rollout, reason=f"waits for {lacks} more approval{'s' if lacks > 1 else ''}")
    if rollout.state != RolloutState.PROPOSED:  # paused while it waited: it starts when somebody resumes it
        return rollout
    return turn(rollout, RolloutEvent.APPROVED, f"approved by {', '.join(rollout.approvals)}", moment.wall_ms)


def abort(rollout: Rollout, members: Sequence[Member], reason: str, moment: Moment, *, revert: bool) -> Look:
    """End it. What has not begun to exchange is called off; with `revert` the others are asked to go back.

    Either way nobody stays assigned to the version who does not run it: a device that returns much later finds what
    it ran before. Raises: ConflictError.
    """
    event = RolloutEvent.ABORT_REVERT if revert else RolloutEvent.ABORT_KEEP
    rollout = turn(rollout, event, reason, moment.wall_ms)
    return rollout, [_end(one, reason, moment, revert=revert) for one in members]


def _end(member: Member, reason: str, moment: Moment, *, revert: bool) -> Member:
    if member.state == MemberState.SCHEDULED:
        return move(member, MemberEvent.CALLED_OFF, f"not asked: {reason}", moment.wall_ms)
    if member.state in WAITING:
        return _back(move(member, MemberEvent.CALLED_OFF, f"called off: {reason}", moment.wall_ms))
    runs = (MemberState.ACTIVATING, MemberState.PROBATION, MemberState.COMMITTED, MemberState.SILENT)
    failed_return = member.state == MemberState.FAILED and member.want != "" and member.want == member.before
    if revert and (member.state in runs or failed_return):
        if not member.before:
            return replace(_back(member), reason="nothing ran there before: it stays as it is")
        text = f"is to run {member.before} again: {reason}"
        return _back(move(member, MemberEvent.REVERT_ASKED, text, moment.wall_ms))
    if member.state in (MemberState.SILENT, MemberState.FAILED, MemberState.REJECTED, MemberState.ROLLED_BACK):
        return _back(member)
    return member


def _back(member: Member) -> Member:
    """Assign what ran before."""
    if member.want == member.before and not member.renumber and member.signed:
        return member
    return replace(member, want=member.before, activate="forced", signed=False, renumber=True)


# --- time -----------------------------------------------------------------------------------------------------------


def _let_time_run(rollout: Rollout, member: Member, moment: Moment) -> Member:
    plan = rollout.plan
    if member.state == MemberState.FAILED and member.want == plan.bundle and member.attempts <= plan.retries:
        return _try_again(rollout, member, moment)
    if member.state not in EXPECTING or done(member, plan) or _held(rollout, member, moment):
        return member
    seconds = float(getattr(plan.deadlines, f"{member.state}_s"))
    if not member.due_steady_ms:
        return replace(member, due_steady_ms=moment.steady_ms + int(seconds * 1000))
    if moment.steady_ms < member.due_steady_ms:
        return member
    return move(member, MemberEvent.SILENCE, f"nothing heard for {seconds:.0f} s while {member.state}", moment.wall_ms)


def _try_again(rollout: Rollout, member: Member, moment: Moment) -> Member:
    if not member.due_steady_ms:
        wait_s = rollout.plan.retry_s * 2 ** max(member.attempts - 1, 0)
        return replace(member, due_steady_ms=moment.steady_ms + max(int(wait_s * 1000), 1))
    if moment.steady_ms < member.due_steady_ms or rollout.state != RolloutState.RUNNING:
        return member
    again = move(member, MemberEvent.ASKED_AGAIN, f"asked again after: {member.reason}", moment.wall_ms)
    return _ask(again, rollout, moment)


def _held(rollout: Rollout, member: Member, moment: Moment) -> bool:
    return member.state in WAITING and _way(rollout, member, moment) == "skip" and rollout.plan.activate != "skip"


def _way(rollout: Rollout, member: Member, moment: Moment) -> Way:
    """Say how activation is asked for now; what a device took back once it takes again only when it has to."""
    if rollout.state == RolloutState.PAUSED or not moment.window_open:
        return "skip"
    again = rollout.plan.again and member.failed and rollout.plan.activate == "attempt"
    return "forced" if again else rollout.plan.activate


def _hold(rollout: Rollout, member: Member, moment: Moment) -> Member:
    """Ask a device that has not begun to exchange to wait, or no longer to wait; a silent one may return any time."""
    way = _way(rollout, member, moment)
    waits = member.state in WAITING or (member.state == MemberState.SILENT and member.want == rollout.plan.bundle)
    if not waits or member.activate == way:
        return member
    return replace(member, activate=way, signed=False, due_steady_ms=0)


# --- waves ----------------------------------------------------------------------------------------------------------


def _advance(rollout: Rollout, members: list[Member], evidence: Evidence, moment: Moment) -> Look:
    found = gates.judge(rollout, members, evidence)
    rollout = replace(rollout, gates=found)
    if broken := [one for one in found if one.broken]:
        return _stop(rollout, members, broken, moment)
    if rollout.opened == 0:
        rollout, members = _open(rollout, members, moment)
    while True:
        rollout, through, broken_gate = _weigh(replace(rollout, gates=found), members, evidence, moment)
        if broken_gate is not None:
            return _stop(rollout, members, [broken_gate], moment)
        if not through:
            return rollout, members
        if rollout.opened == rollout.waves:
            break
        rollout, members = _open(rollout, members, moment)
    if all(settled(one, rollout.plan) for one in members):
        rollout = turn(rollout, RolloutEvent.COMPLETED, _summary(members), moment.wall_ms)
    return rollout, members


def _weigh(
    rollout: Rollout, members: list[Member], evidence: Evidence, moment: Moment
) -> tuple[Rollout, bool, GateView | None]:
    """Say whether the newest wave is through, or which gate it breaks."""
    wave = [one for one in members if one.wave == rollout.opened - 1]
    share, gate = gates.success(rollout, wave)
    rollout = replace(rollout, gates=[*rollout.gates, gate])
    open_ = any(not settled(one, rollout.plan) for one in wave)
    if gate.broken or (open_ and share < rollout.plan.gates.success_share_min):
        return replace(rollout, through_steady_ms=0), False, gate if gate.broken and not open_ else None
    return _soak(rollout, wave, members, evidence, moment)


def _soak(
    rollout: Rollout, wave: list[Member], members: list[Member], evidence: Evidence, moment: Moment
) -> tuple[Rollout, bool, GateView | None]:
    """Say whether a wave that succeeded was watched for long enough, or which gate breaks for want of frames."""
    if not any(one.attempts for one in wave):
        return rollout, True, None  # nobody was asked: there is nothing to watch
    if not rollout.through_steady_ms:
        rollout = replace(rollout, through_steady_ms=max(moment.steady_ms, 1))
    over_s = (moment.steady_ms - rollout.through_steady_ms) / 1000 - soak_of(rollout.plan, rollout.opened - 1)
    if over_s < 0:
        return rollout, False, None
    wait_s = rollout.plan.gates.evidence_s_max
    lacks = gates.lacking(rollout, members, evidence) if wait_s and "evidence/" not in rollout.forgiven else ""
    if not lacks:
        return rollout, True, None
    gate = GateView(gate="evidence", subject="", value=over_s, limit=wait_s, broken=over_s >= wait_s, text=lacks)
    return replace(rollout, gates=[*rollout.gates, gate]), False, gate if gate.broken else None


def soak_of(plan: Plan, wave: int) -> float:
    """Return how long a wave is watched; whoever was left over is watched as the plan says."""
    own = plan.waves[wave].soak_s if wave < len(plan.waves) else None
    return plan.soak_s if own is None else own


def _open(rollout: Rollout, members: list[Member], moment: Moment) -> Look:
    number = rollout.opened
    rollout = replace(
        rollout, opened=number + 1, through_steady_ms=0, since_ms=moment.wall_ms,
        reason=f"wave {number + 1} of {rollout.waves}",
        forgiven={gate: value for gate, value in rollout.forgiven.items() if gate != "success/"},
    )  # fmt: skip
    return rollout, [_begin(one, rollout, moment) if one.wave == number else one for one in members]


def _begin(member: Member, rollout: Rollout, moment: Moment) -> Member:
    if member.state != MemberState.SCHEDULED:
        return member
    if member.device in moment.gone:
        return move(member, MemberEvent.PASSED_OVER, "is let in no longer", moment.wall_ms)
    asked = move(member, MemberEvent.ASKED, f"asked in wave {rollout.opened}", moment.wall_ms)
    return _ask(asked, rollout, moment)


def _ask(member: Member, rollout: Rollout, moment: Moment) -> Member:
    return replace(
        member, want=rollout.plan.bundle, activate=_way(rollout, member, moment), signed=False,
        renumber=True, attempts=member.attempts + 1, generation=0,
    )  # fmt: skip


def _stop(rollout: Rollout, members: list[Member], broken: list[GateView], moment: Moment) -> Look:
    # two gates may say the same, one of a number and one of a share
    reason = f"stopped itself: {'; '.join(dict.fromkeys(one.text for one in broken))}"
    if rollout.plan.on_broken == "pause":
        return pause(rollout, members, reason, moment)
    return abort(rollout, members, reason, moment, revert=rollout.plan.on_broken == "abort-revert")


def _summary(members: Sequence[Member]) -> str:
    there = sum(one.attempts > 0 and one.state in (MemberState.COMMITTED, MemberState.STAGED) for one in members)
    asked = sum(one.attempts > 0 for one in members)
    return f"{there} of {asked} devices have it for good"


def next_due_ms(rollout: Rollout, members: Sequence[Member], moment: Moment) -> int | None:
    """Return in how many steady milliseconds the next look is due by time alone; None = not before something comes."""
    due = [one.due_steady_ms - moment.steady_ms for one in members if one.due_steady_ms and one.state in _TIMED]
    if rollout.state == RolloutState.RUNNING and rollout.through_steady_ms:
        plan = rollout.plan
        soaked = rollout.through_steady_ms + int(soak_of(plan, rollout.opened - 1) * 1000)
        ends = [soaked, soaked + int(plan.gates.evidence_s_max * 1000)]
        due += [end - moment.steady_ms for end in ends if end >= moment.steady_ms]
    return max(min(due), 0) if due else None


_TIMED = UNDERWAY | {MemberState.REVERTING, MemberState.FAILED}
