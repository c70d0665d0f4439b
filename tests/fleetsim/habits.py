"""What a crowd of simulated devices is like, and how each of them behaves; all of it follows from one seed."""

from __future__ import annotations

import random
from typing import Literal

from msgspec import Struct

from lenskeep.sketch import Sketch

DAY_S = 86400.0
CLOCKS_S = (-1.76e9, 30 * DAY_S, 100 * 365 * DAY_S)  # no battery, a month ahead, beyond belief
HARDWARE = ("x86-64-a/ort1.31", "x86-64-b/ort1.31", "arm64-c/ort1.31")
Outcome = Literal["follow", "fail", "hang", "revert", "silent"]


class Chances(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often something happens: shares of the devices, or chances for each call."""

    # of the devices, with a version that is assigned to them
    fail: float = 0.0
    hang: float = 0.0
    revert: float = 0.0
    silent: float = 0.0
    # of the devices
    lying_clock: float = 0.0
    thorough: float = 0.0  # verify with the product's own look
    # for each call
    duplicate: float = 0.0  # say it twice at once, on two connections
    replay: float = 0.0  # say an old call again
    late: float = 0.0  # a copy of the call arrives after the next one
    drop_answer: float = 0.0  # hang up before the answer was read
    restart: float = 0.0  # forget everything but the journal


CALM = Chances()
ROUGH = Chances(
    fail=0.1, hang=0.05, revert=0.1, lying_clock=0.2, duplicate=0.05, replay=0.05, late=0.05, drop_answer=0.1,
    restart=0.03, thorough=0.05,
)  # fmt: skip


class Habits(Struct, frozen=True, kw_only=True):
    """One device's lot."""

    hardware: str
    outcome: Outcome
    clock_lie_s: float
    thorough: bool

    @classmethod
    def draw(cls, dice: random.Random, chances: Chances) -> Habits:
        """Throw the dice for one device."""
        at = dice.random()
        outcome: Outcome = "follow"
        for name, share in (
            ("fail", chances.fail), ("hang", chances.hang), ("revert", chances.revert), ("silent", chances.silent),
        ):  # fmt: skip
            if 0.0 <= at < share:
                outcome = name  # type: ignore[assignment]
            at -= share
        lie_s = dice.choice(CLOCKS_S) if dice.random() < chances.lying_clock else 0.0
        return cls(
            hardware=dice.choice(HARDWARE), outcome=outcome, clock_lie_s=lie_s,
            thorough=dice.random() < chances.thorough,
        )  # fmt: skip


class Sample(Struct, frozen=True):
    """A minute of a line's work, made beforehand."""

    frames: int
    sketches: dict[str, bytes]


def samples(seed: int, *, slower: float = 1.0, count: int = 64) -> list[Sample]:
    """Make minutes of work to choose from; the same seed gives the same ones."""
    dice, made = random.Random(f"samples {seed}"), []
    for _ in range(count):
        sketches = {"inference": Sketch(), "total": Sketch()}
        frames = dice.randrange(50, 400)
        for _ in range(frames):
            for stage, middle_us in (("inference", 9000.0), ("total", 14000.0)):
                sketches[stage].add(middle_us * slower * dice.lognormvariate(0.0, 0.25))
        made.append(Sample(frames, {stage: sketch.to_bytes() for stage, sketch in sketches.items()}))
    return made
