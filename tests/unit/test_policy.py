"""Nothing is activated without enough different people: whatever is asked, signed, refused, changed, and in which order."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenskeep.errors import (
    ApprovalMismatchError,
    ApprovalOverError,
    LenskeepError,
    NotYourApprovalError,
    RequestError,
)
from lenskeep.permissions import ROLES, TABLE, covers, may
from lenskeep.policy import (
    ApprovalEvent,
    ApprovalState,
    Asked,
    Demand,
    Signature,
    end,
    listed,
    overtaken,
    sign,
)

DIGEST, OTHER = "a" * 64, "b" * 64
ENDS_MS = 1000
PERSONS = ["ada", "ben", "cleo", "dora"]


def asked(demand: Demand, **changes: Any) -> Asked:
    return dataclasses.replace(Asked("ada", DIGEST, demand.text(), ENDS_MS), **changes)


def signature(person: str, **changes: str) -> Signature:
    return dataclasses.replace(Signature(person, "supervisor", "approval", DIGEST), **changes)


class World:
    """One request and all that may happen to it, with a log that is judged apart from the code under test."""

    def __init__(self, demand: Demand) -> None:
        self.demand, self.digest, self.now_ms = demand, DIGEST, 0
        self.request = asked(demand)
        self.taken: list[Signature] = []
        self.activated = 0

    def look(self) -> None:
        over = overtaken(self.request, self.demand, self.digest, self.now_ms)
        if over is not None:
            self.request = end(self.request, over[0])

    def sign(self, one: Signature) -> None:
        self.look()
        self.request = sign(self.request, self.demand, one, self.now_ms)
        self.taken.append(one)

    def carry_out(self) -> None:
        self.look()
        self.request = end(self.request, ApprovalEvent.CARRIED_OUT)
        self.activated += 1
        people = {one.person for one in self.taken if one.digest == DIGEST and one.role in ("supervisor", "admin")}
        if not self.demand.own:
            people.discard("ada")
        assert len(people) >= self.demand.approvals, people
        assert all(one.meaning in self.demand.meanings for one in self.taken)
        assert (self.digest, self.now_ms < ENDS_MS) == (DIGEST, True)
        assert self.request.demand == self.demand.text()


demands = st.builds(
    Demand,
    approvals=st.integers(1, 4),
    roles=st.just(("supervisor", "admin")),
    meanings=st.sampled_from([("review", "approval"), ("approval",)]),
    own=st.booleans(),
)
signatures = st.builds(
    Signature,
    person=st.sampled_from(PERSONS),
    role=st.sampled_from([*ROLES, "supervisor", "supervisor", "admin"]),
    meaning=st.sampled_from(["review", "approval", "approval", "responsibility"]),
    digest=st.sampled_from([DIGEST, DIGEST, DIGEST, OTHER]),
)
steps = st.lists(
    st.one_of(
        signatures,
        signatures,
        st.just("carry out"),
        st.just("carry out"),
        st.sampled_from(["refuse", "pass time", "other bytes", "same bytes again", "other policy", "look"]),
    ),
    max_size=25,
)


@settings(max_examples=1500, deadline=None, print_blob=True)
@given(demands, steps)
def test_no_order_of_events_activates_without_enough_different_people(demand: Demand, script: list[Any]) -> None:
    world = World(demand)
    for step in script:
        try:
            if isinstance(step, Signature):
                world.sign(step)
            elif step == "carry out":
                world.carry_out()
            elif step == "refuse":
                world.request = end(world.request, ApprovalEvent.REFUSED)
            elif step == "pass time":
                world.now_ms += 600
            elif step == "other policy":
                world.demand = dataclasses.replace(world.demand, approvals=world.demand.approvals - 1)
            elif step == "look":
                world.look()
            else:
                world.digest = OTHER if step == "other bytes" else DIGEST
        except LenskeepError:
            pass  # a refusal changes nothing; the next step goes on
    assert world.activated <= 1


@settings(max_examples=300, deadline=None, print_blob=True)
@given(st.integers(1, 3), st.permutations(PERSONS))
def test_enough_people_are_enough_in_every_order(approvals: int, people: list[str]) -> None:
    demand = Demand(approvals=approvals)
    request = asked(demand, asker="eve")
    for person in people[:approvals]:
        assert request.state == ApprovalState.WAITING
        request = sign(request, demand, signature(person), 0)
    assert request.state == ApprovalState.GRANTED


def test_whoever_asked_and_whoever_has_signed_does_not_count_again() -> None:
    demand = Demand(approvals=2)
    with pytest.raises(NotYourApprovalError, match="somebody else"):
        sign(asked(demand), demand, signature("ada"), 0)
    once = sign(asked(demand), demand, signature("ben"), 0)
    with pytest.raises(NotYourApprovalError, match="already"):
        sign(once, demand, signature("ben", meaning="review"), 0)
    own = Demand(approvals=1, own=True)
    assert sign(asked(own), own, signature("ada"), 0).state == ApprovalState.GRANTED


def test_other_bytes_other_roles_and_other_meanings_are_refused() -> None:
    demand = Demand(approvals=1, roles=("admin",), meanings=("approval",))
    with pytest.raises(ApprovalMismatchError):
        sign(asked(demand), demand, signature("ben", role="admin", digest=OTHER), 0)
    with pytest.raises(NotYourApprovalError, match="role admin"):
        sign(asked(demand), demand, signature("ben"), 0)
    with pytest.raises(RequestError, match="meaning"):
        sign(asked(demand), demand, signature("ben", role="admin", meaning="review"), 0)


def test_time_other_bytes_and_another_policy_end_a_request_even_a_granted_one() -> None:
    demand = Demand(approvals=1)
    for request in (asked(demand), sign(asked(demand), demand, signature("ben"), 0)):
        assert overtaken(request, demand, DIGEST, ENDS_MS - 1) is None
        for over in (
            overtaken(request, demand, DIGEST, ENDS_MS),
            overtaken(request, demand, OTHER, 0),
            overtaken(request, dataclasses.replace(demand, locked=("cap-inspect@1.0.0",)), DIGEST, 0),
        ):
            assert over is not None
            ended = end(request, over[0])
            with pytest.raises(ApprovalOverError):
                end(ended, ApprovalEvent.CARRIED_OUT)
            with pytest.raises(ApprovalOverError):
                sign(ended, demand, signature("cleo"), 0)


def test_a_locked_slot_takes_its_list_alone() -> None:
    assert listed([], "cap-inspect", "1.0.0", DIGEST)
    assert listed(["cap-inspect@1.0.0"], "cap-inspect", "1.0.0", DIGEST)
    assert listed([f"cap-inspect@sha256:{DIGEST}"], "cap-inspect", "9.9.9", DIGEST)
    assert not listed(["cap-inspect@1.0.0"], "cap-inspect", "1.0.1", DIGEST)
    assert not listed([f"cap-inspect@sha256:{OTHER}"], "cap-inspect", "1.0.0", DIGEST)
    assert not listed(["cap-inspect@1.0.0"], "cap", "1.0.0", DIGEST)


def test_roles_are_no_ladder_and_an_administrator_covers_them_all() -> None:
    assert not any(TABLE[name].reach != "reading" for name in TABLE if may("auditor", name))
    assert not covers("engineer", "auditor") and not covers("auditor", "operator")
    assert all(covers("admin", role) and covers(role, role) for role in ROLES)
