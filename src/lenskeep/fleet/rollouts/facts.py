"""What is known of a rollout and of the devices in it, as plain values that the judge reads and returns changed.

Two times. `*_ms` without a further word is the wall clock's: a label for people. `steady_ms` counts only while a
conductor is at work and never leaps: deadlines and pauses are measured with it, so that neither a stepping clock nor a
night in which the fleet was down makes a device silent.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from msgspec.structs import replace

from lenskeep.errors import LenskeepError, WrongOutputError, fault_book
from lenskeep.fleet.rollouts.lifecycle import (
    EXPECTING,
    FAILURES,
    MemberEvent,
    MemberState,
    RolloutEvent,
    RolloutState,
    next_member_state,
    next_rollout_state,
)
from lenskeep.messages.rollouts import GateView, Plan, Way
from lenskeep.messages.sync import SlotNow
from lenskeep.messages.telemetry import TrialSum

GOLDEN = frozenset({WrongOutputError.code})


class Moment(Struct, frozen=True):
    """The times of one look."""

    wall_ms: int
    steady_ms: int
    window_open: bool = True
    gone: frozenset[str] = frozenset()  # devices that are let in no longer


class Member(Struct, frozen=True, kw_only=True):
    """One device in one rollout. What is signed for it is `want` and `activate`; `signed` = that was done."""

    rollout: int
    device: str
    slot: str
    wave: int
    state: MemberState
    reason: str
    since_ms: int
    code: str = ""
    due_steady_ms: int = 0  # when the state's time is over; 0 = to be set at the next look
    attempts: int = 0  # how often it was asked
    hardware: str = ""
    before: str = ""  # what it ran when the rollout began
    want: str = ""
    activate: Way = "attempt"
    signed: bool = True
    renumber: bool = False  # the next generation begins a new attempt: what is told of older ones does not count
    generation: int = 0  # of this attempt
    steps: int = 0  # entries in its history
    failed: bool = False  # the version failed here; remembered over the end of the rollout


class Rollout(Struct, frozen=True, kw_only=True):
    """One rollout."""

    id: int
    plan: Plan
    state: RolloutState
    reason: str
    since_ms: int
    by: str
    made_ms: int
    waves: int  # one more than the plan's when devices were left over
    opened: int = 0  # waves that were begun
    through_steady_ms: int = 0  # since when the newest wave has succeeded; 0 = it has not
    forgiven: dict[str, float] = {}  # by gate: what an operator has seen and accepted
    gates: list[GateView] = []
    approvals: list[str] = []


class Behaviour(Struct, frozen=True, kw_only=True):
    """What a version did on one hardware class."""

    frames: int = 0
    misses: int = 0
    outcomes: Mapping[str, int] = {}
    p99_ms: float = 0.0

    def share(self, outcome: str) -> float:
        """Return which part of the frames ended in an outcome."""
        return self.outcomes.get(outcome, 0) / self.frames if self.frames else 0.0


class Evidence(Struct, frozen=True, kw_only=True):
    """How the version behaves, and how those before it did, by hardware class."""

    now: Mapping[str, Behaviour] = {}
    before: Mapping[str, Behaviour] = {}
    tried: Mapping[str, TrialSum] = {}  # on the devices that were asked: the newest trial of each
    tried_before: Mapping[str, TrialSum] = {}
    untold: frozenset[str] = frozenset()  # devices that tell of trials, and of this version have not yet


def failed_for_good(member: Member, plan: Plan) -> bool:
    """Say whether a device counts as failed: one that is tried again does not yet."""
    if member.state == MemberState.FAILED and member.want == plan.bundle:
        return member.attempts > plan.retries
    return member.state in FAILURES


def done(member: Member, plan: Plan) -> bool:
    """Say whether a device is where the plan wants it; a plan that activates nothing wants it staged."""
    return member.state == MemberState.COMMITTED or (plan.activate == "skip" and member.state == MemberState.STAGED)


def settled(member: Member, plan: Plan) -> bool:
    """Say whether nothing more is expected of a device."""
    if member.state == MemberState.FAILED:
        return failed_for_good(member, plan)
    return done(member, plan) or member.state not in (EXPECTING | {MemberState.SCHEDULED})


def move(member: Member, event: MemberEvent, reason: str, now_ms: int, code: str = "") -> Member:
    """Let something happen to a device; what only repeats itself leaves it as it is. Raises: ConflictError."""
    state = next_member_state(member.state, event)
    if state == member.state and event != MemberEvent.ASKED_AGAIN:
        return member
    failed = state in FAILURES if member.state != MemberState.REVERTING else member.failed
    return replace(
        member, state=state, reason=reason, code=code, since_ms=now_ms, due_steady_ms=0, steps=member.steps + 1,
        failed=failed or (member.failed and state != MemberState.COMMITTED),
    )  # fmt: skip


def turn(rollout: Rollout, event: RolloutEvent, reason: str, now_ms: int) -> Rollout:
    """Let something happen to a rollout. Raises: ConflictError."""
    return replace(rollout, state=next_rollout_state(rollout.state, event), reason=reason, since_ms=now_ms)


# --- what devices say -----------------------------------------------------------------------------------------------

_STATES = {
    "downloading": MemberEvent.SAID_DOWNLOADING,
    "staged": MemberEvent.SAID_STAGED,
    "asked": MemberEvent.SAID_ACTIVATING,
    "probation": MemberEvent.SAID_PROBATION,
    "followed": MemberEvent.SAID_RUNNING,
    "rolled_back": MemberEvent.SAID_ROLLED_BACK,
}
_RUNS = ("", "followed")


def hear(member: Member, told: SlotNow, target: str, now_ms: int) -> Member:
    """Believe what a device says of its slot.

    Args:
        target: the rollout's version.
    """
    event = _meant(member, told, target)
    if event is None or (member.state == MemberState.CANCELED and not member.attempts):
        return member
    moved = move(member, event, _words(event, told, target), now_ms, told.code)
    if moved.state == MemberState.REVERTING and member.state != MemberState.REVERTING:
        return replace(moved, reason=f"was quicker than the end of the rollout; {member.want or 'nothing'} is assigned")
    return moved


def _meant(member: Member, told: SlotNow, target: str) -> MemberEvent | None:
    fresh = not member.renumber and 0 < member.generation <= told.generation
    if member.state == MemberState.REVERTING:
        return _of_return(member, told) if fresh else None
    if not member.attempts:
        return MemberEvent.SAID_RUNNING if told.bundle == target and told.state in _RUNS else None
    if fresh and member.want == target:
        if told.state == "refused":
            return MemberEvent.SAID_FAILED if _may_help(told.code) else MemberEvent.SAID_REJECTED
        if told.state in _STATES and not (told.state == "followed" and told.bundle not in ("", target)):
            return _STATES[told.state]
    if told.bundle == target:
        running = {"probation": MemberEvent.SAID_PROBATION}.get(told.state, MemberEvent.SAID_RUNNING)
        return running if told.state in (*_RUNS, "probation") else None
    changed = bool(told.bundle) and member.state in (MemberState.COMMITTED, MemberState.PROBATION)
    return MemberEvent.SAID_BEFORE if changed else None


def _of_return(member: Member, told: SlotNow) -> MemberEvent | None:
    if told.state == "refused":
        return MemberEvent.SAID_FAILED
    return MemberEvent.SAID_BEFORE if told.bundle == member.want and told.state in _RUNS else None


def _may_help(code: str) -> bool:
    return fault_book().get(code, LenskeepError).retryable


def _words(event: MemberEvent, told: SlotNow, target: str) -> str:
    said = told.reason or told.code
    words = {
        MemberEvent.SAID_DOWNLOADING: "fetches the version",
        MemberEvent.SAID_STAGED: "has tried it; it waits to be activated",
        MemberEvent.SAID_ACTIVATING: "exchanges it",
        MemberEvent.SAID_PROBATION: "runs it, watched",
        MemberEvent.SAID_RUNNING: f"runs {target}",
        MemberEvent.SAID_ROLLED_BACK: f"took itself back{f': {said}' if said else ''}",
        MemberEvent.SAID_FAILED: f"could not{f': {said}' if said else ''}",
        MemberEvent.SAID_REJECTED: f"refused it{f': {said}' if said else ''}",
        MemberEvent.SAID_BEFORE: f"runs {told.bundle or 'nothing'}",
    }[event]
    return f"{words}; the line is busy" if told.busy and event == MemberEvent.SAID_STAGED else words
