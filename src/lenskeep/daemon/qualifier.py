"""Tries a stored version on this very device, in a child process that may crash, hang or eat memory without harm.

One trial at a time, so that a trial measures the version and not another trial. The child's report is kept with the
version; what a crash, a hang or silence of the child means is decided here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from lenskeep.bundle import manifest as manifests
from lenskeep.clock import Clock
from lenskeep.config import Trial
from lenskeep.daemon.events import Events
from lenskeep.daemon.operations import Operations
from lenskeep.daemon.places import Places
from lenskeep.daemon.plans import Plans
from lenskeep.daemon.precheck import precheck_in_thread, refusal
from lenskeep.daemon.trustkeeper import TrustKeeper
from lenskeep.database import Database
from lenskeep.errors import (
    LenskeepError,
    MemoryBudgetError,
    ModelCrashedError,
    ModelHungError,
    QualificationError,
    fault_book,
)
from lenskeep.lifecycle import BundleEvent, BundleState
from lenskeep.messages.control import CheckRequest, Operation
from lenskeep.messages.runner import (
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    Confinement,
    FromTrial,
    TrialPlan,
    TrialProgress,
    TrialReport,
    decoder,
)
from lenskeep.registry import audit, bundles, scrub, slots
from lenskeep.registry.blobs import Blobs, sync_folder
from lenskeep.registry.bundles import StoredBundle, StoredFile

log = logging.getLogger(__name__)


class Qualifier:
    """Runs trials."""

    def __init__(
        self, database: Database, blobs: Blobs, places: Places, plans: Plans, operations: Operations, events: Events,
        clock: Clock, limits: Trial, trust: TrustKeeper,
    ) -> None:  # fmt: skip
        self._trust = trust
        self._database = database
        self._blobs = blobs
        self._places = places
        self._plans = plans
        self._operations = operations
        self._events = events
        self._clock = clock
        self._limits = limits
        self._one_at_a_time = asyncio.Lock()
        self.confinement: Confinement | None = None  # what the newest trial gave up before it read its model

    @property
    def busy(self) -> bool:
        """Say whether a trial is under way."""
        return self._one_at_a_time.locked()

    async def check(self, request: CheckRequest, by: str) -> Operation:
        """Begin a dry run of an activation; what runs and what is wanted stays as it is."""
        bundle = await self.find(request.bundle)
        threads = self._plans.slot_config(request.slot).threads if request.slot else 1
        operation = await self._operations.begin("check", bundle.ref, by)

        async def work() -> TrialReport:
            return await self.trial(bundle.id, by, operation.id, threads=threads, frames=request.frames)

        self._operations.spawn(operation.id, work)
        return operation

    async def find(self, ref: str) -> StoredBundle:
        """Return a stored version by `name@version`, or the newest of a name. Raises: UnknownNameError."""
        name, _, version = ref.partition("@")
        async with self._database.read() as tx:
            found = await bundles.of_name(tx, name)
        found = [bundle for bundle in found if version in ("", bundle.version)]
        if not found:
            raise bundles.unknown(ref)
        return max(found, key=lambda bundle: manifests.version_key(bundle.version))

    async def trial(
        self, bundle_id: str, by: str, operation_id: str, *, threads: int = 1, frames: int = 0
    ) -> TrialReport:
        """Try a version and record what came of it.

        Raises: the QualificationError that the trial ended with.
        """
        async with self._one_at_a_time:
            async with self._database.read() as tx:
                bundle = await bundles.get(tx, bundle_id)
                stored = await bundles.files(tx, bundle_id)
            authority = await self._trust.authority()
            checks, fault = await asyncio.to_thread(
                precheck_in_thread, bundle, stored, self._blobs, authority, self._clock.now_s()
            )
            if fault is not None:
                report, prepared_file = refusal(checks, fault), ""
            else:
                plan = await self._plan(bundle, stored, operation_id, threads, frames)
                report, prepared_file = await self._try(bundle, plan, operation_id)
                told = {check.name for check in report.checks}
                first = [check for check in checks if check.name not in told]
                report = msgspec.structs.replace(report, checks=first + report.checks)
            await self._record(bundle, report, by, prepared_file)
        if not report.passed:
            raise fault_of(report)
        return report

    async def _plan(
        self, bundle: StoredBundle, stored: list[StoredFile], operation_id: str, threads: int, frames: int
    ) -> TrialPlan:
        ref = msgspec.structs.replace(await self._plans.bundle_ref(bundle.id), prepared_path="", prepared_sha256="")
        golden = {case.image for case in manifests.parse(bundle.manifest).golden.cases}
        return TrialPlan(
            bundle=ref,
            golden={file.name: str(self._blobs.path(file.sha256)) for file in stored if file.name in golden},
            prepared_path=str(self._places.prepared / f"{bundle.model_sha256}.{operation_id}"), threads=threads,
            memory_max_mb=self._limits.memory_mb_max, cpu_max_s=self._limits.cpu_s_max,
            frames=frames or self._limits.frames,
        )  # fmt: skip

    async def _try(self, bundle: StoredBundle, plan: TrialPlan, operation_id: str) -> tuple[TrialReport, str]:
        """Run the child; return its report and the name under which the prepared model is kept."""

        def heard(progress: TrialProgress) -> None:
            self._operations.progress(operation_id, progress.stage, progress.done, progress.total, "")

        part, prepared_file = Path(plan.prepared_path), f"{bundle.model_sha256[:32]}-{self._plans.runtime_key}.onnx"
        try:
            child = Child(plan, self._places.runtime_dir / f"trial-{operation_id}.json")
            report = await child.run(self._limits.wall_s_max, heard)
            self.confinement = report.confinement or self.confinement
            if not report.passed or not report.prepared_sha256:  # some models cannot be written down prepared
                return report, ""
            await asyncio.to_thread(part.replace, self._places.prepared / prepared_file)
            await asyncio.to_thread(sync_folder, self._places.prepared)
            return report, prepared_file
        finally:
            for left in self._places.prepared.glob(f"*.{operation_id}*"):
                left.unlink(missing_ok=True)

    async def _record(self, bundle: StoredBundle, report: TrialReport, by: str, prepared_file: str) -> None:
        event = BundleEvent.TRIAL_PASSED if report.passed else BundleEvent.TRIAL_FAILED
        async with self._database.write() as tx:
            current = await bundles.get(tx, bundle.id)
            await bundles.record_trial(
                tx, bundle.id, report, at_ms=self._clock.now_ms(), by=by, runtime_key=self._plans.runtime_key,
                prepared_file=prepared_file,
            )  # fmt: skip
            if report.passed and prepared_file:
                await scrub.heal(tx, {prepared_file})
            # what is on the line proved itself there; a dry run on a busy device does not take that away
            if report.passed or bundle.id not in await slots.in_use(tx):
                state = await bundles.record_state(tx, current, event)
            else:
                state = current.state
            await audit.add(
                tx, self._clock, by=by, action="trial", subject=bundle.ref, reason=report.message, before=current.state,
                after=f"{state}: {report.code or 'passed'}",
            )  # fmt: skip
        self._events.publish("bundle", {"bundle": bundle.ref, "state": state, "code": report.code})

    async def resume(self, by: str) -> None:
        """Try what was stored but never tried, because the daemon died in between."""
        async with self._database.read() as tx:
            waiting = [one for one in await bundles.everything(tx) if one.state == BundleState.IMPORTED]
        for bundle in waiting:
            await self.check(CheckRequest(bundle=bundle.ref), by)


def fault_of(report: TrialReport) -> LenskeepError:
    """Turn a report into the fault it ended with."""
    return fault_book().get(report.code, QualificationError)(f"{report.message} The running version is unchanged.")


class Child:
    """One trial process: started, heard, and ended whatever happens."""

    def __init__(self, plan: TrialPlan, plan_path: Path) -> None:
        self._plan = plan
        self._plan_path = plan_path

    async def run(self, wall_s_max: float, heard: Callable[[TrialProgress], None]) -> TrialReport:
        """Run the trial to its report; a crash or a hang is a report as well."""
        ours, theirs = socket.socketpair()
        self._plan_path.write_bytes(msgspec.json.encode(self._plan))
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lenskeep.runner.qualify", str(self._plan_path), "--report-fd", str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL, pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            async with asyncio.timeout(wall_s_max):
                report = await self._read(reader, heard)
                code = await child.wait()
        except TimeoutError:
            return self._refused(
                ModelHungError,
                f"{self._plan.bundle.ref} did not finish its trial in {wall_s_max:.0f} s and was ended.",
            )
        finally:
            writer.close()
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            self._plan_path.unlink(missing_ok=True)
        return report or self._died(code)

    async def _read(self, reader: asyncio.StreamReader, heard: Callable[[TrialProgress], None]) -> TrialReport | None:
        decode = decoder(FromTrial).decode
        report = None
        with contextlib.suppress(asyncio.IncompleteReadError, msgspec.DecodeError, UnicodeDecodeError, OSError):
            while True:
                size = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
                message = decode(await reader.readexactly(min(size, FRAME_BYTES_MAX)))
                if isinstance(message, TrialProgress):
                    heard(message)
                else:
                    report = message
        return report

    def _died(self, code: int) -> TrialReport:
        """Say what the end of a silent child means, from its exit status."""
        ref = self._plan.bundle.ref
        if code == -signal.SIGXCPU:
            return self._refused(ModelHungError, f"{ref} used more than {self._plan.cpu_max_s} s of processor time.")
        if code == -signal.SIGKILL:
            return self._refused(
                MemoryBudgetError, f"The trial of {ref} was ended by the system, most likely for its memory."
            )
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return self._refused(ModelCrashedError, f"The trial of {ref} died with {how}.")

    def _refused(self, fault: type[LenskeepError], message: str) -> TrialReport:
        return TrialReport(passed=False, code=fault.code, message=message, checks=[])


def remove_leftovers_in_thread(places: Places, wanted: set[str]) -> None:
    """Remove prepared models that nothing points to, and what killed trials left."""
    places.prepared.mkdir(parents=True, exist_ok=True, mode=0o750)
    for path in places.prepared.iterdir():
        if path.name not in wanted:
            path.unlink(missing_ok=True)
    for path in places.runtime_dir.glob("trial-*.json"):
        path.unlink()
