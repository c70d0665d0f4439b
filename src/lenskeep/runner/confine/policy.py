"""What the two processes that read models are left with: the child of a trial, and the runner of a slot."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from lenskeep.confine import landlock
from lenskeep.confine.confine import Needs, confine
from lenskeep.messages.runner import Confinement, SlotPlan, TrialPlan
from lenskeep.runner.confine import cameras
from lenskeep.runner.confine.cameras import LonePlaces

_PRIVATE = ("/etc", "/root", "/home")
_PEAK = Path("/proc/self/clear_refs")  # where the count of memory begins anew


def confine_trial(plan: TrialPlan) -> Confinement:
    """Leave to a trial the files of its version and the one that it writes; that one is made here, empty."""
    prepared = Path(plan.prepared_path)
    with contextlib.suppress(OSError):  # then there is no prepared model, as on a disk that cannot be written
        prepared.touch()
    given = [plan.bundle.model_path, *plan.golden.values()]
    paths = {Path(path): landlock.READ for path in given}
    paths |= {prepared: landlock.READ | landlock.WRITE, _PEAK: landlock.WRITE}
    return confine(Needs(paths, "read-only but for its one file"))


def confine_runner(plan: SlotPlan) -> tuple[Confinement, LonePlaces]:
    """Leave to a runner the stored versions and what its cameras need; its socket listens already.

    Returns: what is in force, and the places whose replacement asks for a new start.
    """
    store = [Path(folder) for folder in plan.store or _folders_of(plan)]
    private = [*store, Path(plan.socket_path).parent, *map(Path, _PRIVATE), Path(os.environ.get("HOME", "/root"))]
    lone = LonePlaces(plan.cameras, private)
    paths = dict.fromkeys(store, landlock.READ)
    for path, rights in cameras.paths_of(plan.cameras, private).items():
        paths[path] = paths.get(path, 0) | rights
    devices = any(rights & landlock.WRITE for rights in paths.values())
    files = "read-only but for camera devices" if devices else "read-only"
    needs = Needs(paths, files, cameras.network_of(plan.cameras), serves=True, renices=True)
    confinement = confine(needs)
    return confinement, lone if confinement.landlock_abi else LonePlaces([], [])


def _folders_of(plan: SlotPlan) -> set[str]:
    found = [plan.bundle.model_path, plan.bundle.prepared_path] if plan.bundle else []
    return {str(Path(path).parent) for path in found if path}
