"""Runs a bundle's trial on this machine, in the very child process that a device uses, before it is released."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from lenskeep.bundle.look import Look
from lenskeep.config import Trial
from lenskeep.errors import LenskeepError, ModelCrashedError, ModelHungError, QualificationError, fault_book
from lenskeep.messages.runner import (
    FRAME_BYTES_MAX,
    LENGTH_BYTES,
    BundleRef,
    FromTrial,
    TrialPlan,
    TrialProgress,
    TrialReport,
    decoder,
)

Heard = Callable[[TrialProgress], None]


def try_bundle(look: Look, limits: Trial, *, threads: int, heard: Heard) -> TrialReport:
    """Try a bundle here and return what was found; a crash or a hang is a report as well.

    Cost: some seconds; at most `limits.wall_s_max`.
    """
    with tempfile.TemporaryDirectory(prefix="lenskeep-trial-") as name:
        plan = _plan(look, Path(name), limits, threads)
        plan_path = Path(name) / "plan.json"
        plan_path.write_bytes(msgspec.json.encode(plan))
        return _run(plan, plan_path, limits.wall_s_max, heard)


def fault_of(report: TrialReport) -> LenskeepError:
    """Turn a report of a trial that did not pass into its fault."""
    return fault_book().get(report.code, QualificationError)(report.message)


def _plan(look: Look, folder: Path, limits: Trial, threads: int) -> TrialPlan:
    wanted = [look.manifest.model, *(case.image for case in look.manifest.golden.cases)]
    paths = {name: folder / f"{number:04}" for number, name in enumerate(wanted)}
    for name, path in paths.items():
        with look.content(name) as data:
            path.write_bytes(data)
    manifest = look.manifest
    model = next(file for file in look.files if file.name == manifest.model)
    return TrialPlan(
        bundle=BundleRef(
            name=manifest.name, version=manifest.version, digest=look.digest, manifest_json=look.manifest_json,
            model_path=str(paths[manifest.model]), model_sha256=model.sha256,
        ),
        golden={name: str(path) for name, path in paths.items() if name != manifest.model},
        prepared_path=str(folder / "prepared.onnx"), threads=threads, memory_max_mb=limits.memory_mb_max,
        cpu_max_s=limits.cpu_s_max, frames=limits.frames,
    )  # fmt: skip


def _run(plan: TrialPlan, plan_path: Path, wall_s_max: float, heard: Heard) -> TrialReport:
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = subprocess.Popen(
                [sys.executable, "-m", "lenskeep.runner.qualify", str(plan_path), "--report-fd", str(theirs.fileno())],
                stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
            )  # fmt: skip
        try:
            report = _listen(ours, time.monotonic() + wall_s_max, heard)
        except TimeoutError:
            message = f"{plan.bundle.ref} did not finish its trial in {wall_s_max:.0f} s and was ended."
            return TrialReport(passed=False, code=ModelHungError.code, message=message, checks=[])
        finally:
            child.kill()
            code = child.wait()
    if report is None:
        message = f"The trial of {plan.bundle.ref} ended with status {code} and without a report."
        return TrialReport(passed=False, code=ModelCrashedError.code, message=message, checks=[])
    return report


def _listen(channel: socket.socket, until_s: float, heard: Heard) -> TrialReport | None:
    """Read frames to the report, or to the end of a child that died. Raises: TimeoutError."""
    decode = decoder(FromTrial).decode
    while True:
        count = int.from_bytes(_exactly(channel, LENGTH_BYTES, until_s), "big")
        if not 0 < count <= FRAME_BYTES_MAX:
            return None
        body = _exactly(channel, count, until_s)
        try:
            message = decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):  # it died in the middle of a frame, or lost its wits
            return None
        if isinstance(message, TrialReport):
            return message
        heard(message)


def _exactly(channel: socket.socket, count: int, until_s: float) -> bytes:
    """Receive exactly so many bytes; nothing when the other end is gone. Raises: TimeoutError."""
    got = bytearray()
    while len(got) < count:
        channel.settimeout(max(until_s - time.monotonic(), 0.001))
        chunk = channel.recv(count - len(got))
        if not chunk:
            return b""
        got += chunk
    return bytes(got)
