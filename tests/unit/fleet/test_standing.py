"""Where a device stands: the worst that is true of it, by what it signed, said last, and was asked."""

from __future__ import annotations

from typing import Any

import pytest

from lenskeep.fleet.standing import Known, Wanted, drift, judge
from lenskeep.messages.fleet import DeviceReport, LastRefusal, SlotReport
from lenskeep.messages.sync import SlotNow

NOW_MS = 1_800_000_000_000
OLD, NEW = "cap@1.0.0", "cap@1.1.0"


def known(running: str = OLD, assigned: str = OLD, *, refusal: str = "", **words: Any) -> Known:
    said = LastRefusal(code=refusal, text="no", at_ms=NOW_MS) if refusal else None
    slot = SlotReport(slot="main", running=running, assigned=assigned, digest="a" * 64, state="settled")
    report = DeviceReport(device="cam-1", counter=1, at_ms=NOW_MS, clock_trusted=True, slots=[slot], refusal=said)
    facts: dict[str, Any] = {"state": "enrolled", "changed_ms": NOW_MS - 10, "heard_ms": NOW_MS - 10, "report": report}
    return Known(device="cam-1", **(facts | words))


def now(state: str, **words: Any) -> dict[str, SlotNow]:
    return {"main": SlotNow(slot="main", state=state, **words)}


def wanted(bundle: str, generation: int) -> dict[str, Wanted]:
    return {"main": Wanted(bundle, generation, "Rollout 3: assigned.")}


@pytest.mark.parametrize(
    ("facts", "health"),
    [
        (known(), "healthy"),
        (known(OLD, NEW), "behind"),
        (known(OLD, NEW, refusal="LK-8002"), "refused"),
        (known(OLD, NEW, now=now("refused", code="LK-8002", reason="slow", generation=1)), "refused"),
        (known(OLD, NEW, now=now("rolled_back", generation=1)), "refused"),
        (known(OLD, NEW, now=now("staged", code="LK-8201", busy=True, generation=1)), "behind"),
        (known(NEW, NEW, refusal="LK-8002"), "healthy"),  # an old refusal, mended since
        (known(OLD, NEW, heard_ms=NOW_MS - 901_000, changed_ms=1), "silent"),
        (known(state="revoked", revoked_reason="stolen", heard_ms=1), "revoked"),
        (known(state="invited", report=None, heard_ms=0), "invited"),
        (known(report=None, heard_ms=0), "healthy"),  # enrolled a moment ago
        (known(report=None, heard_ms=0, changed_ms=NOW_MS - 901_000), "silent"),
        (known(wanted=wanted(NEW, 5), now=now("followed", generation=4)), "behind"),  # it has not heard of it yet
        (known(wanted=wanted(NEW, 4), now=now("followed", generation=4)), "healthy"),  # something newer was assigned
        (
            known(NEW, OLD, wanted=wanted(OLD, 5), now=now("followed", generation=4)),
            "behind",
        ),  # a revert, not there yet
    ],
)
def test_a_device_is_judged_by_the_worst_that_is_true_of_it(facts: Known, health: str) -> None:
    line = judge(facts, now_ms=NOW_MS, silent_after_s=900)
    assert line.health == health
    assert (line.reason == "") == (health == "healthy"), "whoever is not well has a reason"


def test_what_runs_is_what_was_signed_and_not_what_was_said_along_the_way() -> None:
    facts = known(OLD, NEW, now=now("followed", bundle=NEW, digest="b" * 64, generation=9))
    slot = judge(facts, now_ms=NOW_MS, silent_after_s=900).slots[0]
    assert (slot.running, slot.digest, slot.desired) == (OLD, "a" * 64, NEW)


def test_drift_names_slots_and_leaves_out_who_is_not_let_in() -> None:
    lines = [
        judge(facts, now_ms=NOW_MS, silent_after_s=900)
        for facts in (known(), known(OLD, NEW), known(OLD, NEW, state="revoked"))
    ]
    assert [(one.device, one.slot, one.desired, one.running) for one in drift(lines)] == [("cam-1", "main", NEW, OLD)]
