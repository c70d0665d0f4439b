"""What can be said about a stored version before it is tried: is it still what was signed, may its signer sign it,
and is there room for it. Each answer is a line of the trial's report."""

from __future__ import annotations

import psutil

from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.authority import Authority
from lenskeep.bundle.manifest import Manifest
from lenskeep.daemon.recheck import verify_stored
from lenskeep.errors import DiskHeadroomError, LenskeepError, MemoryBudgetError
from lenskeep.messages.runner import TrialCheck, TrialReport
from lenskeep.registry.blobs import MEBIBYTE, Blobs
from lenskeep.registry.bundles import StoredBundle, StoredFile

MEMORY_SPARE_MB = 64
DISK_SPARE_BYTES = 4 * MEBIBYTE


def precheck_in_thread(
    bundle: StoredBundle, files: list[StoredFile], blobs: Blobs, trust: Authority, now_s: float
) -> tuple[list[TrialCheck], LenskeepError | None]:
    """Look at signature, memory and disk; stop at the first fault. Cost: reads the whole bundle, about 1 s a GiB."""
    manifest = manifests.parse(bundle.manifest)
    model_bytes = next(file.size_bytes for file in files if file.name == manifest.model)
    checks: list[TrialCheck] = []
    try:
        checks.append(_passed("signature", verify_stored(bundle, files, blobs, trust, now_s)))
        checks.append(_passed("memory", _memory(manifest)))
        checks.append(_passed("disk", _disk(blobs, model_bytes)))
    except LenskeepError as fault:
        name = ("signature", "memory", "disk")[len(checks)]
        checks.append(TrialCheck(name=name, passed=False, text=str(fault), code=fault.code))  # type: ignore[arg-type]
        return checks, fault
    return checks, None


def refusal(checks: list[TrialCheck], fault: LenskeepError) -> TrialReport:
    """Make the report of a version that was not even tried."""
    return TrialReport(passed=False, code=fault.code, message=str(fault), checks=checks)


def _passed(name: str, text: str) -> TrialCheck:
    return TrialCheck(name=name, passed=True, text=text)  # type: ignore[arg-type]


def _memory(manifest: Manifest) -> str:
    free_mb, needed_mb = psutil.virtual_memory().available // MEBIBYTE, manifest.budget.memory_mb + MEMORY_SPARE_MB
    if free_mb < needed_mb:
        raise MemoryBudgetError(f"{needed_mb} MB are needed beside what runs, {free_mb} MB are free.")
    return f"{manifest.budget.memory_mb} MB of {free_mb} MB free"


def _disk(blobs: Blobs, model_bytes: int) -> str:
    free, needed = max(0, blobs.free_bytes()), model_bytes * 2 + DISK_SPARE_BYTES
    if free < needed:
        raise DiskHeadroomError(f"Preparing it takes {needed // MEBIBYTE} MB, {free // MEBIBYTE} MB may be used.")
    return f"{needed // MEBIBYTE} MB of {free // MEBIBYTE} MB"
