"""`python -m lenskeep.runner.qualify PLAN.json --report-fd N`: the short-lived process in which a version is tried.

It says where it is and what it found as frames of `messages.runner.FromTrial` on the descriptor it was given, and ends
with 0 once it has reported, whatever the report says. A process that ends without a report has crashed or was ended
by a limit: that is the parent's to tell.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

import msgspec

from lenskeep.errors import LenskeepError, ModelHungError
from lenskeep.messages.runner import Confinement, TrialPlan, TrialProgress, TrialReport, frame
from lenskeep.runner import libraries, sandbox
from lenskeep.runner.confine.policy import confine_trial

PREPARED_GROWTH = 2  # an optimised model holds folded constants; one that more than doubles is refused a file


class Reporter:
    """Writes frames to the parent, from any thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()

    def tell(self, message: TrialProgress | TrialReport) -> None:
        """Write one message whole."""
        data = memoryview(frame(message))
        with self._lock:
            while data:
                data = data[os.write(self._descriptor, data) :]


def main(arguments: list[str]) -> int:
    """Try the version of a plan and report."""
    parser = argparse.ArgumentParser(prog="lenskeep.runner.qualify")
    parser.add_argument("plan", type=Path)
    parser.add_argument("--report-fd", type=int, required=True)
    given = parser.parse_args(arguments)
    sandbox.die_with_parent()
    reporter = Reporter(given.report_fd)
    plan = msgspec.json.decode(given.plan.read_bytes(), type=TrialPlan)
    model_mb = Path(plan.bundle.model_path).stat().st_size // sandbox.MB + 1
    confinement = confine_trial(plan)  # before any thread, so that it holds for all of them
    reporter.tell(_try(plan, reporter, confinement, PREPARED_GROWTH * model_mb + 16))
    return 0


def _try(plan: TrialPlan, reporter: Reporter, confinement: Confinement, file_max_mb: int) -> TrialReport:
    libraries.settle_libraries()
    from lenskeep.runner.trial import Trial  # heavy: OpenCV and ONNX Runtime

    limits = sandbox.limit(
        memory_max_mb=plan.memory_max_mb, threads=plan.threads, cpu_max_s=plan.cpu_max_s, file_max_mb=file_max_mb
    )

    def whole(report: TrialReport) -> TrialReport:
        """Say with a report how it was come by."""
        in_force = msgspec.structs.replace(confinement, limits=[*confinement.limits, *limits])
        return msgspec.structs.replace(report, confinement=in_force)

    def hung() -> None:
        message = f"{plan.bundle.ref} used more than {plan.cpu_max_s} s of processor time."
        reporter.tell(whole(TrialReport(passed=False, code=ModelHungError.code, message=message, checks=[])))
        sandbox.end_at_once()

    sandbox.CpuWatch(plan.cpu_max_s, hung).start()
    try:
        return whole(Trial(plan, reporter.tell, sandbox.status_mb("VmRSS")).run())
    except LenskeepError as fault:  # the manifest itself
        return whole(TrialReport(passed=False, code=fault.code, message=str(fault), checks=[]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
