"""Every attack of the list has a test, or a reason why it has none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.attacks import CASES, GROUPS

ROOT = Path(__file__).parents[1]


def test_the_groups_hold_every_attack_once() -> None:
    assert [number for group in GROUPS.values() for number in group] == list(CASES) == list(range(1, 131))


def test_every_attack_has_a_test_or_a_reason() -> None:
    command = [sys.executable, "-m", "tests.attacktable", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
