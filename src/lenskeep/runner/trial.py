"""The trial of one version on this very device: can it be loaded, is it right, is it fast enough, does it fit.

Rules. Everything runs through the engine that the line uses, on the prepared model that the line will load. The line's
core comes first: what is heavy runs at low priority, and measured frames are followed by a pause as long as they took.
The first check that fails ends the trial; the report says which and, for wrong answers, why most likely.
Not here: limits of the process (sandbox), who hears the report (qualify).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, TypeVar

import cv2
import msgspec
import numpy as np

from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.manifest import GoldenCase
from lenskeep.errors import (
    BlobDamagedError,
    CameraFormatError,
    DiskHeadroomError,
    IncompatibleError,
    LatencyBudgetError,
    LenskeepError,
    ManifestError,
    MemoryBudgetError,
    ProviderFallbackError,
    UnusableOutputError,
    WrongOutputError,
)
from lenskeep.messages.runner import TrialCheck, TrialPlan, TrialProgress, TrialReport
from lenskeep.runner import causes, priority, sandbox
from lenskeep.runner.decode.answer import Answer, Raw
from lenskeep.runner.engine import (
    Engine,
    open_session,
    providers_here,
    session_options,
)
from lenskeep.runner.golden import compare
from lenskeep.runner.libraries import trim_memory
from lenskeep.runner.resize import Image
from lenskeep.runner.runtime import ort
from lenskeep.runner.sealed import SealedModel, sealed

WARM_RUNS = 3
ROUNDS = 3
PICTURES_MAX = 4  # in memory while frames are timed, as a line has a few
DISK_SPARE_BYTES = 64 << 20

CheckName = Literal["runtime", "provider", "memory", "disk", "golden", "latency"]
_CHECK_OF: dict[type[LenskeepError], CheckName] = {
    MemoryBudgetError: "memory",
    DiskHeadroomError: "disk",
    ProviderFallbackError: "provider",
    UnusableOutputError: "golden",
}
Made = TypeVar("Made")


class Trial:
    """One version's way through its checks.

    Args:
        tell: hears where the trial is.
        baseline_mb: resident memory of this process before it knew the model.
    """

    def __init__(self, plan: TrialPlan, tell: Callable[[TrialProgress], None], baseline_mb: int) -> None:
        self._plan = plan
        self._manifest = manifests.parse(plan.bundle.manifest_json)
        self._tell = tell
        self._baseline_mb = baseline_mb
        self._at: CheckName = "runtime"  # the check that a fault belongs to, unless its kind says otherwise
        self._checks: list[TrialCheck] = []
        self._measured: dict[str, Any] = {"runtime": ort.__version__}

    def run(self) -> TrialReport:
        """Go through all checks; a refusal is a report as well."""
        try:
            self._meets_requirements()
            engine = self._load(self._prepare())
            self._golden(engine)
            self._latency(engine)
            self._memory()
        except LenskeepError as fault:
            return self._refused(fault)
        except MemoryError:
            return self._refused(MemoryBudgetError(self._too_large()))
        proofs = ", ".join(check.text for check in self._checks if check.name in {"golden", "latency", "memory"})
        return self._report("", f"{self._plan.bundle.ref} passed: {proofs}.")

    # --- what it comes to -----------------------------------------------------------------------------------------

    def _pass(self, name: CheckName, text: str) -> None:
        self._checks.append(TrialCheck(name=name, passed=True, text=text))

    def _refused(self, fault: LenskeepError) -> TrialReport:
        name = _CHECK_OF.get(type(fault), self._at)
        self._checks.append(TrialCheck(name=name, passed=False, text=str(fault), code=fault.code))
        return self._report(fault.code, str(fault))

    def _report(self, code: str, message: str) -> TrialReport:
        return TrialReport(passed=not code, code=code, message=message, checks=self._checks, **self._measured)

    def _too_large(self) -> str:
        return f"{self._plan.bundle.ref} needs more than the {self._plan.memory_max_mb} MB that a trial may take."

    # --- the checks, in order -------------------------------------------------------------------------------------

    def _meets_requirements(self) -> None:
        asked = self._manifest.requires.onnxruntime
        if _version(ort.__version__) < _version(asked):
            raise IncompatibleError(
                f"{self._plan.bundle.ref} asks for ONNX Runtime {asked}; here is {ort.__version__}."
            )
        self._at = "provider"
        providers_here(self._manifest)
        self._at = "runtime"

    def _prepare(self) -> str:
        """Optimise the model for this device and store that; return its digest, or nothing if it cannot be stored.

        The file is there already, empty: this process may fill it, and neither make nor rename nor remove any.
        """
        self._tell(TrialProgress(stage="prepare", done=0, total=1))
        path = Path(self._plan.prepared_path)
        with sealed(self._plan.bundle.model_path, self._plan.bundle.model_sha256) as model:
            self._disk(path.parent, model.size_bytes)
            _beside_the_line(lambda: self._optimise(model, path))
        sha256 = _stored(path)
        self._tell(TrialProgress(stage="prepare", done=1, total=1))
        return sha256

    def _disk(self, folder: Path, model_bytes: int) -> None:
        free = shutil.disk_usage(folder).free
        needed = 2 * model_bytes + DISK_SPARE_BYTES
        if free < needed:
            raise DiskHeadroomError(
                f"{free >> 20} MB of disk are free; preparing the model may take {needed >> 20} MB."
            )
        self._pass("disk", f"{free >> 20} MB free")

    def _optimise(self, model: SealedModel, path: Path) -> None:
        """Build the session once and write down what the runtime makes of the model."""
        if providers_here(self._manifest) != ["CPU"]:
            return  # what other providers make of a model cannot be written down
        options = session_options(threads=1)
        options.optimized_model_filepath = str(path)
        try:
            open_session(model, self._manifest, options)
        except IncompatibleError:
            # if the model is at fault, it fails again; else it was the file (over 2 GB, over the process's limit)
            _empty(path)
            open_session(model, self._manifest, session_options(threads=1))

    def _load(self, prepared_sha256: str) -> Engine:
        """Load as the line will, and count memory from here on."""
        self._tell(TrialProgress(stage="load", done=0, total=1))
        ref = self._plan.bundle
        if prepared_sha256:
            ref = msgspec.structs.replace(ref, prepared_path=self._plan.prepared_path, prepared_sha256=prepared_sha256)
        gc.collect()
        trim_memory()
        sandbox.forget_peak()
        begun = time.perf_counter()
        threads = self._plan.threads
        # the runtime's own threads inherit the priority of the one that makes them, and keep it
        engine = (
            _beside_the_line(lambda: Engine.load(ref, threads=1)) if threads == 1 else Engine.load(ref, threads=threads)
        )
        self._measured |= {
            "load_ms": _ms_since(begun),
            "provider": engine.provider,
            "prepared_sha256": "" if engine.note else prepared_sha256,
        }
        self._pass("runtime", f"ONNX Runtime {ort.__version__}, opset {self._manifest.requires.opset}")
        self._pass("provider", engine.provider)
        self._tell(TrialProgress(stage="load", done=1, total=1))
        return engine

    def _golden(self, engine: Engine) -> None:
        """Replay the golden pictures, one at a time, and compare."""
        self._at = "golden"
        cases = self._manifest.golden.cases
        given, pictures, outputs = [], set(), set()
        for number, case in enumerate(cases):
            self._tell(TrialProgress(stage="golden", done=number, total=len(cases)))
            image = self._picture(case)
            answer, digest = _answer(engine, case, image)
            given.append(answer)
            pictures.add(_digest([image]))
            outputs.add(digest)
        compared = [compare(case, answer, self._manifest) for case, answer in zip(cases, given, strict=True)]
        passed = sum(one.passed for one in compared)
        self._measured |= {
            "golden_passed": passed,
            "golden_total": len(cases),
            "golden_score": round(sum(one.agreement for one in compared) / len(cases), 4),
        }
        expected = any(case.scores or case.boxes for case in cases)  # a detector may well find nothing twice
        if expected and len(pictures) > 1 and len(outputs) == 1:
            raise UnusableOutputError("The model gives the same outputs for different golden pictures.")
        count = f"{passed} of {len(cases)} golden pictures"
        if passed < len(cases):
            case, first = next((case, one) for case, one in zip(cases, compared, strict=True) if not one.passed)
            cause = _beside_the_line(lambda: causes.likely_cause(engine, self._picture, given))
            told = f"{count}; {case.image}: {first.difference}"
            raise WrongOutputError(f"{told}; matches when {cause}." if cause else f"{told}.")
        self._pass("golden", count)

    def _picture(self, case: GoldenCase) -> Image:
        return _read_picture(case, self._plan.golden)

    def _latency(self, engine: Engine) -> None:
        """Time whole frames and judge the least disturbed round: the device is busy with its line meanwhile."""
        self._at = "latency"
        budget_ms = self._manifest.budget.latency_p99_ms
        images = [self._picture(case) for case in self._manifest.golden.cases[:PICTURES_MAX]]
        engine.warm(WARM_RUNS)
        frames = -(-self._plan.frames // ROUNDS)
        rounds: list[tuple[float, float]] = []
        for number in range(ROUNDS):
            times_ms = []
            for frame in range(frames):
                if frame % 8 == 0:
                    self._tell(TrialProgress(stage="latency", done=number * frames + frame, total=ROUNDS * frames))
                times_ms.append(_frame_ms(engine, images[frame % len(images)]))
            rounds.append((_quantile(times_ms, 0.99), _quantile(times_ms, 0.5)))
            if rounds[-1][1] > 2 * budget_ms:
                break  # no quiet round will mend this
        p99_ms, p50_ms = min(rounds)
        self._measured |= {"p50_ms": round(p50_ms, 3), "p99_ms": round(p99_ms, 3)}
        text = f"p99 {p99_ms:.1f} ms of {budget_ms:g} ms"
        if p99_ms > budget_ms:
            raise LatencyBudgetError(f"{self._plan.bundle.ref} is too slow here: {text}, p50 {p50_ms:.1f} ms.")
        self._pass("latency", text)

    def _memory(self) -> None:
        self._at = "memory"
        memory_mb = max(1, sandbox.status_mb("VmHWM") - self._baseline_mb)
        budget_mb = self._manifest.budget.memory_mb
        self._measured["memory_mb"] = memory_mb
        if memory_mb > budget_mb:
            raise MemoryBudgetError(f"{self._plan.bundle.ref} needs {memory_mb} MB of its {budget_mb} MB.")
        self._pass("memory", f"{memory_mb} MB of {budget_mb} MB")


class _Pause:
    """After the work inside, sleeps as long as it took, so that the line has its core half of the time."""

    def __enter__(self) -> None:
        self._begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        time.sleep(time.perf_counter() - self._begun)


def _beside_the_line(work: Callable[[], Made]) -> Made:
    """Do something heavy in a thread of low priority and wait for it."""
    with ThreadPoolExecutor(1, initializer=priority.lower_own) as beside:
        return beside.submit(work).result()


def _empty(path: Path) -> None:
    with contextlib.suppress(OSError):  # where it could not be made, there is nothing to empty
        path.write_bytes(b"")


def _stored(path: Path) -> str:
    """Make the prepared model durable and return its digest; nothing when it could not be written."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
            return sha256 if file.tell() else ""
    except OSError:
        return ""


def _read_picture(case: GoldenCase, paths: dict[str, str]) -> Image:
    if case.image not in paths:
        raise ManifestError(f"model.json: golden picture {case.image} is not in the bundle")
    try:
        data = Path(paths[case.image]).read_bytes()
    except OSError as error:
        raise BlobDamagedError(f"Golden picture {case.image} cannot be read: {error.strerror}.") from error
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # an empty file, or one that says it is larger than the library reads
        image = None
    if image is None:
        raise ManifestError(f"model.json: golden picture {case.image} is no picture")
    return np.asarray(image, np.uint8)


def _answer(engine: Engine, case: GoldenCase, image: Image) -> tuple[Answer, bytes]:
    """Return what the engine says of a picture, and a digest of the numbers that it says it with."""
    try:
        prepared = engine.prepare(image)
    except CameraFormatError as error:
        raise ManifestError(f"model.json: golden picture {case.image}: {error}") from error
    with _Pause():
        outputs = engine.infer(prepared)
        return engine.answer(outputs, prepared.placement), _digest(outputs)


def _digest(arrays: Sequence[Raw]) -> bytes:
    return hashlib.sha256(b"".join(array.tobytes() for array in arrays)).digest()


def _frame_ms(engine: Engine, image: Image) -> float:
    with _Pause():
        begun = time.perf_counter()
        prepared = engine.prepare(image)
        engine.decode(engine.infer(prepared), prepared.placement)
        return _ms_since(begun)


def _ms_since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000


def _quantile(times_ms: list[float], share: float) -> float:
    return sorted(times_ms)[math.ceil(share * len(times_ms)) - 1]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
