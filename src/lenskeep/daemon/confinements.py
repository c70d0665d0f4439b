"""What the processes that read models gave up, as they report it themselves: one line of `doctor` for each."""

from __future__ import annotations

from lenskeep.daemon.problems import fault_check
from lenskeep.daemon.qualifier import Qualifier
from lenskeep.daemon.supervisor import Supervisor
from lenskeep.errors import WeakConfinementError
from lenskeep.messages.control import Check
from lenskeep.messages.runner import Confinement


class Confinements:
    """Asks the slots' processes, and the newest trial of this start."""

    def __init__(self, supervisor: Supervisor, qualifier: Qualifier) -> None:
        self._supervisor = supervisor
        self._qualifier = qualifier

    async def checks(self) -> list[Check]:
        """Return a line for each process that has said what it gave up."""
        told = {name: process.beat.confinement for name, process in self._supervisor.processes.items() if process.beat}
        told["trial"] = self._qualifier.confinement
        return [confinement_check(name, confinement) for name, confinement in told.items() if confinement]


def confinement_check(name: str, given_up: Confinement) -> Check:
    """Say in one line what is in force; what is missing is a warning with its cause."""
    files = f"files {given_up.filesystem}" + (f" (Landlock {given_up.landlock_abi})" if given_up.landlock_abi else "")
    network = "no network" if given_up.network == "none" else f"network: {given_up.network}"
    parts = [network, files, f"{given_up.seccomp} system calls refused"]
    text = "; ".join([", ".join(parts), *given_up.gaps])
    name = f"sandbox {name}"
    if given_up.gaps:
        return fault_check(name, WeakConfinementError(f"{text}."), "warn")
    return Check(name=name, passed=True, text=text, severity="info")
