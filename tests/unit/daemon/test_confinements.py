"""What `doctor` says of processes that gave up their rights."""

from __future__ import annotations

import msgspec

from lenskeep.daemon.confinements import confinement_check
from lenskeep.messages.runner import Confinement

STRONG = Confinement(
    no_new_privs=True, landlock_abi=7, filesystem="read-only", network="none", seccomp=136, limits=[], gaps=[]
)


def test_a_process_that_gave_up_everything_is_worth_a_note() -> None:
    check = confinement_check("main", STRONG)
    assert (check.passed, check.severity, check.name) == (True, "info", "sandbox main")
    assert check.text == "no network, files read-only (Landlock 7), 136 system calls refused"


def test_a_process_that_kept_something_is_a_warning_with_its_cause_and_the_fix() -> None:
    gap = "files are open: this kernel has no Landlock, or it is switched off"
    weak = msgspec.structs.replace(
        STRONG, landlock_abi=0, filesystem="open", network="TCP to any port", gaps=[gap]
    )  # fmt: skip
    check = confinement_check("main", weak)
    assert (check.passed, check.severity, check.code) == (False, "warn", "LK-3003")
    assert check.text == f"network: TCP to any port, files open, 136 system calls refused; {gap}."
    assert "Landlock" in check.hint
