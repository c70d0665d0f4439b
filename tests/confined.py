"""Hostile code in the place of a model: `python -m tests.confined trial|runner PLAN.json CODE` confines itself as that
process does, says what is in force, and then runs Python code as an attacker would who took the process over."""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from lenskeep.messages.runner import SlotPlan, TrialPlan
from lenskeep.runner import sandbox
from lenskeep.runner.confine.policy import confine_runner, confine_trial


def main(kind: str, plan_path: str, code: str) -> None:
    """Become the process of this kind, then do what the code says."""
    data = Path(plan_path).read_bytes()
    if kind == "trial":
        plan = msgspec.json.decode(data, type=TrialPlan)
        sandbox.die_with_parent()
        confinement = confine_trial(plan)
        sandbox.limit(memory_max_mb=plan.memory_max_mb, threads=1, cpu_max_s=plan.cpu_max_s, file_max_mb=1)
    else:
        confinement, _ = confine_runner(msgspec.json.decode(data, type=SlotPlan))
    print(msgspec.json.encode(confinement).decode(), flush=True)
    exec(code, {"__name__": "hostile"})


if __name__ == "__main__":
    main(*sys.argv[1:])
