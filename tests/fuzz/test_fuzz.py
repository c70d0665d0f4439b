"""Whatever a stranger writes is read or refused: no foreign exception, no hang, no flood of memory."""

from __future__ import annotations

import os
import random

import pytest

from lenskeep.errors import LenskeepError
from tests.fuzz.run import run
from tests.fuzz.targets import TARGETS
from tests.fuzz.watch import tried

SECONDS = float(os.environ.get("LENSKEEP_FUZZ_SECONDS", "2"))  # for each target
SEED = int(os.environ.get("LENSKEEP_FUZZ_SEED") or random.randrange(1 << 31))


@pytest.mark.parametrize("name", TARGETS)
def test_the_good_inputs_are_read(name: str) -> None:
    """A corpus that is refused at the first byte would prove nothing."""
    target = TARGETS[name]
    read = 0
    for data in target.seeds():
        try:
            target.feed(data)
        except LenskeepError:
            continue
        read += 1
    assert read


@pytest.mark.parametrize("name", TARGETS)
def test_what_once_crashed_a_parser_does_so_no_more(name: str) -> None:
    for data in TARGETS[name].kept():
        crash = tried(TARGETS[name], data)
        assert crash is None, crash.what


@pytest.mark.parametrize("name", TARGETS)
def test_spoiled_inputs_are_read_or_refused(name: str) -> None:
    print(f"seed {SEED}: python -m tests.fuzz {name} --plain --seconds {SECONDS:g} --seed {SEED}")
    done = run(TARGETS[name], seconds=SECONDS, seed=SEED)
    print(f"{done.cases} cases")
    assert not done.crashes, f"{len(done.crashes)} crashes in {done.cases} cases, the first:\n{done.crashes[0].what}"
    assert done.cases > 20
