"""A run of mutations against one target."""

from __future__ import annotations

import random
import re
import time
from dataclasses import dataclass, field

from tests.fuzz import mutate
from tests.fuzz.watch import Crash, Target, tried

CRASHES_MAX = 20


@dataclass
class Done:
    """What a run came to."""

    cases: int = 0
    seconds: float = 0.0
    crashes: list[Crash] = field(default_factory=list)


def run(target: Target, *, seconds: float, seed: int) -> Done:
    """Feed spoiled inputs for a time; crashes that say the same are counted once."""
    dice, done, begun = random.Random(seed), Done(), time.monotonic()
    pool = [*target.seeds(), *target.kept()]
    known: set[str] = set()
    while (spent := time.monotonic() - begun) < seconds and len(known) < CRASHES_MAX:
        crash = tried(target, mutate.spoiled(dice, dice.choice(pool), pool))
        done.cases += 1
        if crash is not None and (said := _kind(crash)) not in known:
            known.add(said)
            done.crashes.append(crash)
        done.seconds = spent
    return done


def _kind(crash: Crash) -> str:
    """Name what went wrong without the numbers in it."""
    return re.sub(r"0x[0-9a-f]+|\d+|'[^']*'", "", crash.what.strip().rpartition("\n")[2])[:60]
