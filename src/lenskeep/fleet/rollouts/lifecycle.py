"""The lives of a rollout and of a device in it, as two tables.

Rules. The tables are the whole truth: a state is written only through `next_*_state`, and a pair that is not in the
table is an error that changes nothing. Every state of a device answers what devices may say at any time (SAID_*),
because a device is believed and not the plan. Every state in which something is expected answers SILENCE. A rollout
can be aborted in every state but those in which it is over and brought back.
Not here: when an event comes (judge), and who does the work (the conductor).
"""

from __future__ import annotations

from enum import StrEnum

from lenskeep.errors import ConflictError


class MemberState(StrEnum):
    """Where a device stands in a rollout."""

    SCHEDULED = "scheduled"  # its wave has not begun
    ASSIGNED = "assigned"  # asked; it has said nothing of it
    DOWNLOADING = "downloading"
    STAGED = "staged"  # there and tried on the device
    ACTIVATING = "activating"
    PROBATION = "probation"
    COMMITTED = "committed"  # it runs the version for good
    ROLLED_BACK = "rolled_back"  # it took itself back
    FAILED = "failed"  # it could not; trying again may help
    REJECTED = "rejected"  # it refused; trying again does not help
    SILENT = "silent"  # nothing was heard in time; it is believed when it returns
    REVERTING = "reverting"  # asked to run again what it ran before
    REVERTED = "reverted"
    CANCELED = "canceled"  # the rollout ended before it, or without it
    SKIPPED = "skipped"  # never asked: it runs the version already, or the version failed there before


class MemberEvent(StrEnum):
    """What can happen to a device in a rollout."""

    ASKED = "asked"
    ASKED_AGAIN = "asked_again"
    SAID_DOWNLOADING = "said_downloading"
    SAID_STAGED = "said_staged"
    SAID_ACTIVATING = "said_activating"
    SAID_PROBATION = "said_probation"
    SAID_RUNNING = "said_running"
    SAID_ROLLED_BACK = "said_rolled_back"
    SAID_FAILED = "said_failed"
    SAID_REJECTED = "said_rejected"
    SAID_BEFORE = "said_before"  # it runs what it ran before the rollout
    SILENCE = "silence"
    PASSED_OVER = "passed_over"
    CALLED_OFF = "called_off"
    REVERT_ASKED = "revert_asked"


class RolloutState(StrEnum):
    """Where a rollout stands."""

    PROPOSED = "proposed"  # lacks approvals
    RUNNING = "running"
    PAUSED = "paused"
    REVERTING = "reverting"
    FINISHED = "finished"
    ABORTED = "aborted"


class RolloutEvent(StrEnum):
    """What can happen to a rollout."""

    APPROVED = "approved"
    PAUSE = "pause"
    RESUME = "resume"
    RESUME_UNAPPROVED = "resume_unapproved"
    ABORT_KEEP = "abort_keep"
    ABORT_REVERT = "abort_revert"
    COMPLETED = "completed"
    REVERTED = "reverted"


M, E = MemberState, MemberEvent
R, V = RolloutState, RolloutEvent

# What a device says moves it from wherever it was asked, in any order: steps get lost, and some are too quick to see.
_SAID = {
    E.SAID_DOWNLOADING: M.DOWNLOADING,
    E.SAID_STAGED: M.STAGED,
    E.SAID_ACTIVATING: M.ACTIVATING,
    E.SAID_PROBATION: M.PROBATION,
    E.SAID_RUNNING: M.COMMITTED,
    E.SAID_ROLLED_BACK: M.ROLLED_BACK,
    E.SAID_FAILED: M.FAILED,
    E.SAID_REJECTED: M.REJECTED,
}
SAID = (*_SAID, E.SAID_BEFORE)


def _asked(state: MemberState) -> dict[MemberEvent, MemberState]:
    """Return the row of a state in which a device has been asked and something is expected of it."""
    return {
        **_SAID, E.SAID_BEFORE: state, E.ASKED_AGAIN: state, E.SILENCE: M.SILENT, E.CALLED_OFF: M.CANCELED,
        E.REVERT_ASKED: M.REVERTING,
    }  # fmt: skip


def _stays(state: MemberState) -> dict[MemberEvent, MemberState]:
    """Return what a state says to every report of a device that was not asked, or not any more: nothing changes."""
    return dict.fromkeys(SAID, state)


MEMBER_TRANSITIONS: dict[MemberState, dict[MemberEvent, MemberState]] = {
    # brought by stick or by hand before its turn: believed
    M.SCHEDULED: {
        **_stays(M.SCHEDULED), E.SAID_RUNNING: M.SKIPPED, E.ASKED: M.ASSIGNED, E.PASSED_OVER: M.SKIPPED,
        E.CALLED_OFF: M.CANCELED,
    },
    M.ASSIGNED: _asked(M.ASSIGNED),
    M.DOWNLOADING: _asked(M.DOWNLOADING),
    M.STAGED: _asked(M.STAGED),
    M.ACTIVATING: _asked(M.ACTIVATING),
    M.PROBATION: {**_asked(M.PROBATION), E.SAID_BEFORE: M.ROLLED_BACK},
    M.COMMITTED: {
        **_stays(M.COMMITTED), E.SAID_ROLLED_BACK: M.ROLLED_BACK, E.SAID_BEFORE: M.ROLLED_BACK,
        E.SAID_PROBATION: M.PROBATION, E.REVERT_ASKED: M.REVERTING,
    },
    M.ROLLED_BACK: {**_stays(M.ROLLED_BACK), E.SAID_RUNNING: M.COMMITTED},
    M.FAILED: {
        **_stays(M.FAILED), E.SAID_RUNNING: M.COMMITTED, E.SAID_REJECTED: M.REJECTED, E.ASKED_AGAIN: M.ASSIGNED,
        E.REVERT_ASKED: M.REVERTING,
    },
    M.REJECTED: {**_stays(M.REJECTED), E.SAID_RUNNING: M.COMMITTED},
    M.SILENT: {**_SAID, E.SAID_BEFORE: M.SILENT, E.REVERT_ASKED: M.REVERTING},
    M.REVERTING: {
        **_stays(M.REVERTING), E.SAID_BEFORE: M.REVERTED, E.SAID_FAILED: M.FAILED, E.SAID_REJECTED: M.FAILED,
        E.SILENCE: M.SILENT,
    },
    M.REVERTED: {**_stays(M.REVERTED)},
    # it was quicker than the word that called it off: what ran before is assigned to it by then
    M.CANCELED: {**_stays(M.CANCELED), E.SAID_PROBATION: M.REVERTING, E.SAID_RUNNING: M.REVERTING},
    M.SKIPPED: _stays(M.SKIPPED),
}  # fmt: skip

ROLLOUT_TRANSITIONS: dict[RolloutState, dict[RolloutEvent, RolloutState]] = {
    R.PROPOSED: {
        V.APPROVED: R.RUNNING, V.PAUSE: R.PAUSED, V.ABORT_KEEP: R.ABORTED, V.ABORT_REVERT: R.REVERTING,
    },
    R.RUNNING: {
        V.PAUSE: R.PAUSED, V.ABORT_KEEP: R.ABORTED, V.ABORT_REVERT: R.REVERTING, V.COMPLETED: R.FINISHED,
    },
    R.PAUSED: {
        V.RESUME: R.RUNNING, V.RESUME_UNAPPROVED: R.PROPOSED, V.PAUSE: R.PAUSED, V.ABORT_KEEP: R.ABORTED,
        V.ABORT_REVERT: R.REVERTING,
    },
    R.REVERTING: {V.ABORT_KEEP: R.ABORTED, V.REVERTED: R.ABORTED},
    R.FINISHED: {V.ABORT_REVERT: R.REVERTING},
    R.ABORTED: {V.ABORT_REVERT: R.REVERTING},
}  # fmt: skip

WAITING = frozenset({M.ASSIGNED, M.DOWNLOADING, M.STAGED})  # asked, and nothing is running differently yet
UNDERWAY = WAITING | {M.ACTIVATING, M.PROBATION}
FAILURES = frozenset({M.ROLLED_BACK, M.FAILED, M.REJECTED})
EXPECTING = UNDERWAY | {M.REVERTING}  # something is due by a deadline
REVERTIBLE = frozenset(state for state, row in MEMBER_TRANSITIONS.items() if E.REVERT_ASKED in row)
OVER = frozenset({R.FINISHED, R.ABORTED})

assert set(MEMBER_TRANSITIONS) == set(MemberState), "a device's state has no row"
assert set(ROLLOUT_TRANSITIONS) == set(RolloutState), "a rollout's state has no row"
assert all(set(SAID) <= set(row) for row in MEMBER_TRANSITIONS.values()), "a device's state does not listen"
assert all(E.SILENCE in MEMBER_TRANSITIONS[state] for state in EXPECTING), (
    "a device may keep a rollout waiting for ever"
)
assert all(V.ABORT_REVERT in ROLLOUT_TRANSITIONS[state] for state in set(R) - {R.REVERTING}), "no way back"
assert {state for row in MEMBER_TRANSITIONS.values() for state in row.values()} == set(MemberState), "out of reach"


def next_member_state(state: MemberState, event: MemberEvent) -> MemberState:
    """Return what becomes of a device. Raises: ConflictError when the event has no meaning in this state."""
    try:
        return MEMBER_TRANSITIONS[state][event]
    except KeyError:
        raise ConflictError(f"A device that is {state} does not answer {event}. Nothing was changed.") from None


def next_rollout_state(state: RolloutState, event: RolloutEvent) -> RolloutState:
    """Return what becomes of a rollout. Raises: ConflictError when the event has no meaning in this state."""
    try:
        return ROLLOUT_TRANSITIONS[state][event]
    except KeyError:
        words = str(event).replace("_", " ")
        raise ConflictError(
            f"A rollout that is {state} does not answer {words}. Nothing was changed.",
            hint="See where it stands: lenskeep fleet rollout show.",
        ) from None
