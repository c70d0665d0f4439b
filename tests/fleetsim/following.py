"""How a simulated device follows an assignment: step by step, as slowly, badly or not at all as its habits say."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from lenskeep.errors import AssignmentError
from lenskeep.messages.sync import SlotNow
from lenskeep.trust.assignment import Assignment, SlotAssignment
from lenskeep.trust.names import model_of
from tests.fleetsim.habits import Habits
from tests.fleetsim.journal import Journal

STEPS = ("downloading", "staged", "asked", "probation", "followed")
SLOT = "main"
FAILED, TAKEN_BACK = "LK-3203", "LK-4301"


class Line:
    """The one slot of a simulated device: what it runs, and where it is on the way to what it should run."""

    def __init__(
        self, journal: Journal, habits: Habits, dice: random.Random, running: str, digest: str, step_s: float
    ) -> None:  # fmt: skip
        self._journal = journal
        self._habits = habits
        self._dice = dice
        self._step_s = step_s
        kept: dict[str, Any] = journal.noted("line", {})
        self.running: str = kept.get("running", running)
        self.digest: str = kept.get("digest", digest)
        self.before: list[str] = kept.get("before", [])
        self.generation: int = kept.get("generation", 0)
        self.state: str = kept.get("state", "")
        self.wanted: str = kept.get("wanted", "")
        self.wanted_digest: str = kept.get("wanted_digest", "")
        self.code: str = kept.get("code", "")
        self.due_s: float | None = 0.0 if self.state in (*STEPS[:-1], "new") else None

    def assign(self, made: Assignment, now_s: float, lists: Callable[[str, str], bool]) -> bool:
        """Take an assignment; say whether it is news. What no publisher lists is refused."""
        one = made.slots.get(SLOT)
        if one is None or made.generation <= self.generation:
            return False
        name, version = model_of(one.target) or ("", "")
        self.generation, self.wanted, self.wanted_digest = made.generation, f"{name}@{version}", one.sha256
        self.code = ""
        if not lists(one.target, one.sha256):
            self.code = AssignmentError.code
            self._to("refused", now_s)
            return True
        self._to("followed" if self.running == self.wanted else "new", now_s, one)
        return True

    def step(self, now_s: float) -> bool:
        """Do what is due; say whether something happened."""
        if self.due_s is None or now_s < self.due_s:
            return False
        after = "downloading" if self.state == "new" else STEPS[STEPS.index(self.state) + 1]
        match self._habits.outcome, after:
            case "fail", "asked":
                self.code = FAILED
                self._to("refused", now_s)
            case "hang", "probation":
                self.due_s = None  # it was asked, and nothing ever comes of it
            case "revert", "followed":
                self.running, self.digest = self.before[0], self.before[1]
                self.code = TAKEN_BACK
                self._to("rolled_back", now_s)
            case _:
                if after == "probation":
                    self.before = [self.running, self.digest]
                    self.running, self.digest = self.wanted, self.wanted_digest
                self._to(after, now_s)
        return True

    def _to(self, state: str, now_s: float, one: SlotAssignment | None = None) -> None:
        self.state = state
        waits = state in ("followed", "refused", "rolled_back")
        if one is not None and one.download == "skip":
            waits = True
        delay_s = (
            0.0 if state == "new" else self._dice.expovariate(1.0) * self._step_s
        )  # what is assigned is begun at once
        self.due_s = None if waits else now_s + delay_s
        kept = {
            name: getattr(self, name)
            for name in ("running", "digest", "before", "generation", "state", "wanted", "wanted_digest", "code")
        }
        self._journal.note("line", kept)

    def told(self) -> SlotNow:
        """Say where the slot stands."""
        return SlotNow(
            slot=SLOT, generation=self.generation, state=self.state, code=self.code, bundle=self.running,
            digest=self.digest,
        )  # fmt: skip
