"""The two tables: every step that they allow, and that nothing else happens."""

from __future__ import annotations

import pytest

from lenskeep.errors import SlotError
from lenskeep.lifecycle import (
    BUNDLE_TRANSITIONS,
    SLOT_TRANSITIONS,
    BundleEvent,
    BundleState,
    SlotEvent,
    SlotState,
    next_bundle_state,
    next_slot_state,
)


@pytest.mark.parametrize("state", SlotState)
@pytest.mark.parametrize("event", SlotEvent)
def test_a_slot_answers_what_its_row_says_and_refuses_the_rest(state: SlotState, event: SlotEvent) -> None:
    row = SLOT_TRANSITIONS[state]
    if event in row:
        assert next_slot_state(state, event) is row[event]
    else:
        with pytest.raises(SlotError):
            next_slot_state(state, event)


def test_a_crash_never_promotes_a_version_that_has_not_proved_itself() -> None:
    assert next_slot_state(SlotState.PROBATION, SlotEvent.RUNNER_CRASHED) is SlotState.ROLLED_BACK
    for state in SlotState:
        assert next_slot_state(state, SlotEvent.RUNNER_CRASHED) is not SlotState.SETTLED or state is SlotState.SETTLED


def test_a_retired_bundle_comes_back_only_by_being_imported_again() -> None:
    assert set(BUNDLE_TRANSITIONS[BundleState.RETIRED]) == {BundleEvent.IMPORTED_AGAIN}
    with pytest.raises(SlotError):
        next_bundle_state(BundleState.RETIRED, BundleEvent.TRIAL_PASSED)
