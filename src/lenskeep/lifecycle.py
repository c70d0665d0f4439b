"""The lives of a bundle and of a slot, as two tables.

Rules. The tables are the whole truth: a state is written only through `next_*_state`, and a pair that is not in the
table is an error that changes nothing. Every state of a slot answers RUNNER_CRASHED. Not here: who does the work,
when, and how often a crash is forgiven (the daemon's activator and supervisor).

A slot's way: somebody asks for a version (SWAP_ASKED), the runner exchanges it between two frames (SWAPPED), it is
watched for a while (PROBATION) and then stays (SETTLED), or takes itself back (ROLLED_BACK).
"""

from __future__ import annotations

from enum import StrEnum

from lenskeep.errors import SlotError


class BundleState(StrEnum):
    """What is known about a stored bundle on this device."""

    IMPORTED = "imported"
    QUALIFIED = "qualified"
    REJECTED = "rejected"
    RETIRED = "retired"


class BundleEvent(StrEnum):
    """What can happen to a stored bundle."""

    TRIAL_PASSED = "trial_passed"
    TRIAL_FAILED = "trial_failed"
    REMOVED = "removed"
    IMPORTED_AGAIN = "imported_again"


class SlotState(StrEnum):
    """Where a slot stands between what is wanted and what runs."""

    EMPTY = "empty"
    SWAPPING = "swapping"
    PROBATION = "probation"
    SETTLED = "settled"
    ROLLED_BACK = "rolled_back"


class SlotEvent(StrEnum):
    """What can happen to a slot."""

    SWAP_ASKED = "swap_asked"
    SWAPPED = "swapped"
    SWAP_REFUSED = "swap_refused"
    CONFIRMED = "confirmed"
    GATE_BROKEN = "gate_broken"
    ROLLBACK_ASKED = "rollback_asked"
    RUNNER_CRASHED = "runner_crashed"
    CRASH_LOOP = "crash_loop"
    STOPPED = "stopped"  # the repository withdrew what ran, and the configuration says that nothing runs then


B, E, S = BundleState, BundleEvent, SlotState
V = SlotEvent

BUNDLE_TRANSITIONS: dict[BundleState, dict[BundleEvent, BundleState]] = {
    B.IMPORTED: {
        E.TRIAL_PASSED: B.QUALIFIED,
        E.TRIAL_FAILED: B.REJECTED,
        E.REMOVED: B.RETIRED,
        E.IMPORTED_AGAIN: B.IMPORTED,
    },
    B.QUALIFIED: {
        E.TRIAL_PASSED: B.QUALIFIED,
        E.TRIAL_FAILED: B.REJECTED,
        E.REMOVED: B.RETIRED,
        E.IMPORTED_AGAIN: B.QUALIFIED,
    },
    B.REJECTED: {
        E.TRIAL_PASSED: B.QUALIFIED,
        E.TRIAL_FAILED: B.REJECTED,
        E.REMOVED: B.RETIRED,
        E.IMPORTED_AGAIN: B.REJECTED,
    },
    B.RETIRED: {E.IMPORTED_AGAIN: B.IMPORTED},
}

SLOT_TRANSITIONS: dict[SlotState, dict[SlotEvent, SlotState]] = {
    S.EMPTY: {V.SWAP_ASKED: S.SWAPPING, V.RUNNER_CRASHED: S.EMPTY, V.STOPPED: S.EMPTY},
    S.SWAPPING: {
        V.SWAPPED: S.PROBATION,
        V.SWAP_REFUSED: S.ROLLED_BACK,
        V.ROLLBACK_ASKED: S.ROLLED_BACK,
        V.RUNNER_CRASHED: S.SWAPPING,  # asked again after the restart; the activator bounds how often
        V.CRASH_LOOP: S.ROLLED_BACK,
    },
    S.PROBATION: {
        V.STOPPED: S.EMPTY,
        V.CONFIRMED: S.SETTLED,
        V.GATE_BROKEN: S.ROLLED_BACK,
        V.ROLLBACK_ASKED: S.ROLLED_BACK,
        V.RUNNER_CRASHED: S.ROLLED_BACK,
        V.CRASH_LOOP: S.ROLLED_BACK,
    },
    S.SETTLED: {
        V.STOPPED: S.EMPTY,
        V.SWAP_ASKED: S.SWAPPING,
        V.ROLLBACK_ASKED: S.ROLLED_BACK,
        V.RUNNER_CRASHED: S.SETTLED,
        V.CRASH_LOOP: S.ROLLED_BACK,
    },
    S.ROLLED_BACK: {
        V.STOPPED: S.EMPTY,
        V.SWAP_ASKED: S.SWAPPING,
        V.CONFIRMED: S.SETTLED,  # somebody has seen it and says that what runs now is right
        V.ROLLBACK_ASKED: S.ROLLED_BACK,
        V.RUNNER_CRASHED: S.ROLLED_BACK,
        V.CRASH_LOOP: S.ROLLED_BACK,
    },
}

assert set(SLOT_TRANSITIONS) == set(SlotState), "a slot state has no row"
assert all(SlotEvent.RUNNER_CRASHED in row for row in SLOT_TRANSITIONS.values()), "a slot state ignores a crash"
assert {state for row in SLOT_TRANSITIONS.values() for state in row.values()} == set(SlotState), (
    "a slot state is out of reach"
)


def next_bundle_state(state: BundleState, event: BundleEvent) -> BundleState:
    """Return what becomes of a bundle. Raises: SlotError when the event has no meaning in this state."""
    try:
        return BUNDLE_TRANSITIONS[state][event]
    except KeyError:
        raise SlotError(f"A bundle that is {state} cannot be {event}. Nothing was changed.") from None


def next_slot_state(state: SlotState, event: SlotEvent) -> SlotState:
    """Return what becomes of a slot. Raises: SlotError when the event has no meaning in this state."""
    try:
        return SLOT_TRANSITIONS[state][event]
    except KeyError:
        raise SlotError(f"A slot that is {state} does not answer {event}. Nothing was changed.") from None
