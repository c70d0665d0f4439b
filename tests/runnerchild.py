"""A real runner process for tests: tiny versions to swap between, a plan, and the daemon's end of its socket."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lenskeep.bundle.manifest import labels_digest
from lenskeep.messages.runner import (
    LENGTH_BYTES,
    Acknowledge,
    Beat,
    BundleRef,
    CameraPlan,
    FromRunner,
    Picture,
    Result,
    Results,
    SlotPlan,
    SwapFailed,
    Swapped,
    decoder,
    frame,
)

LABELS = ["good", "bad"]
WAIT_S = 20.0  # a bound against hanging, not a time that is measured


def version_score(version: str) -> float:
    """The score that a version of `constant_model` gives every frame: results cannot be mixed up unseen."""
    return 0.6 + 0.39 * (int(hashlib.sha256(version.encode()).hexdigest()[:6], 16) / 0xFFFFFF)


def constant_model(version: str, size_px: int) -> bytes:
    """A model that gives every picture its version's own score."""
    good = version_score(version)
    bias = np.log(np.array([[good, 1 - good]], np.float32))
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "zeros"], ["none"]),
        helper.make_node("Add", ["none", "bias"], ["sum"]),
        helper.make_node("Softmax", ["sum"], ["scores"], axis=1),
    ]
    return _model(nodes, {"zeros": np.zeros((3, 2), np.float32), "bias": bias}, size_px)


def failing_model(size_px: int) -> bytes:
    """A model that loads, warms up on a grey picture, and fails on every real one."""
    nodes = [
        helper.make_node("Sub", ["images", "grey"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["distance"]),
        helper.make_node("ReduceMax", ["distance"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "many"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["row"], axis=0),
        helper.make_node("Unsqueeze", ["row", "first"], ["scores"]),
    ]
    weights = {
        "grey": np.array(128 / 255, np.float32),
        "many": np.array(1000, np.float32),
        "table": np.array([[0.9, 0.1]], np.float32),
        "first": np.array([0], np.int64),
    }
    return _model(nodes, weights, size_px)


def endless_model(size_px: int) -> bytes:
    """A model that loads and never lets go of its first frame."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["x", "x"], ["y"])],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, [1, 2])],
        [value("go_on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [1, 2])],
    )
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "zeros"], ["none"]),
        helper.make_node("Loop", ["times", "yes", "none"], ["scores"], body=body),
    ]
    weights = {
        "zeros": np.zeros((3, 2), np.float32),
        "times": np.array(1 << 62, np.int64),
        "yes": np.array(True),
    }
    return _model(nodes, weights, size_px)


def _model(nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray], size_px: int) -> bytes:
    graph = helper.make_graph(
        nodes, "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size_px, size_px])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, len(LABELS)])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def manifest_json(name: str, version: str, size_px: int, labels: list[str], softmax: bool = False) -> bytes:
    """The signed facts of a square classifier on [0, 1] RGB."""
    facts = {
        "schema": "lenskeep.model/1", "name": name, "version": version, "created": "2026-11-20T06:00:00Z",
        "task": "classify",
        "input": {"name": "images", "shape": [1, 3, size_px, size_px], "resize": {"mode": "stretch"}, "scale": 1 / 255},
        "outputs": [{"name": "scores", "shape": [1, len(labels)]}],
        "decode": {"kind": "classify", "softmax": softmax},
        "labels": {"names": labels, "sha256": labels_digest(labels)},
        "verdict": {"ok": labels[:1], "ng": labels[1:]},
        "budget": {"latency_p99_ms": 100.0, "memory_mb": 200},
        "requires": {"opset": 17},
        "golden": {"cases": [{"image": "a.png", "scores": {labels[0]: 0.9}}], "produced_by": "tests"},
        "license": "Apache-2.0",
    }  # fmt: skip
    return json.dumps(facts).encode()


def stored(folder: Path, version: str, *, size_px: int = 32, data: bytes | None = None, **changes: Any) -> BundleRef:
    """Store a version as the registry would; return what the daemon would send."""
    data = data if data is not None else constant_model(version, size_px)
    path = folder / f"{version}-{size_px}.onnx"
    path.write_bytes(data)
    ref = BundleRef(
        name="cap", version=version, digest=hashlib.sha256(version.encode()).hexdigest(),
        manifest_json=manifest_json("cap", version, size_px, LABELS), model_path=str(path),
        model_sha256=hashlib.sha256(data).hexdigest(), memory_mb=10,
    )  # fmt: skip
    return msgspec.structs.replace(ref, **changes)


TICKS = CameraPlan(name="cam", source="synthetic:ticks", pace="fast")


def plan(folder: Path, bundle: BundleRef | None, **changes: Any) -> SlotPlan:
    """A slot with one camera that counts."""
    base = SlotPlan(slot="main", socket_path=str(folder / "main.sock"), cameras=[TICKS], bundle=bundle)
    return msgspec.structs.replace(base, **changes)


class RunnerChild:
    """One runner process and one connection to it. Use as a context manager: the process is ended whatever happens."""

    def __init__(
        self,
        slot: SlotPlan,
        folder: Path,
        *,
        module: str = "lenskeep.runner",
        cores: int = 0,
        before: tuple[str, ...] = (),
    ) -> None:
        self.plan = slot
        plan_path = folder / "plan.json"
        plan_path.write_bytes(msgspec.json.encode(slot))
        self.log_path = folder / "runner.log"
        allowed = sorted(os.sched_getaffinity(0))[: cores or None]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*before, sys.executable, "-m", module, str(plan_path)], stderr=log, stdout=log, start_new_session=True,
                preexec_fn=lambda: os.sched_setaffinity(0, allowed),
            )  # fmt: skip
        self.results: list[Result] = []
        self.news: list[Swapped | SwapFailed] = []
        self.beats: list[Beat] = []
        self.pictures: list[Picture] = []
        self.lost = 0
        self.run = ""
        self.acknowledging = True
        self._socket: socket.socket | None = None
        self._buffer = bytearray()
        self._decode = decoder(FromRunner).decode

    def __enter__(self) -> RunnerChild:
        self.dial()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    # --- the daemon's end -------------------------------------------------------------------------------------------

    def dial(self) -> None:
        """Connect, as often as it takes while the process starts."""
        deadline = time.monotonic() + WAIT_S
        while True:
            dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                dialled.connect(self.plan.socket_path)
                break
            except OSError:
                dialled.close()
                assert self.process.poll() is None, f"ended with {self.process.returncode}: {self.log()}"
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.01)
        self._buffer.clear()
        self._socket = dialled

    def hang_up(self) -> None:
        """Drop the connection, as a daemon that was killed does."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def say(self, message: msgspec.Struct) -> None:
        """Send an order."""
        assert self._socket is not None
        self._socket.sendall(frame(message))

    def listen(self, timeout_s: float = 0.5) -> bool:
        """Take in what has come; False when nothing came in time or the runner hung up."""
        assert self._socket is not None
        self._socket.settimeout(timeout_s)
        try:
            data = self._socket.recv(1 << 18)
        except (TimeoutError, ConnectionResetError):
            return False
        self._buffer += data
        while len(self._buffer) >= LENGTH_BYTES:
            end = LENGTH_BYTES + int.from_bytes(self._buffer[:LENGTH_BYTES], "big")
            if len(self._buffer) < end:
                break
            self._take(self._decode(bytes(self._buffer[LENGTH_BYTES:end])))
            del self._buffer[:end]
        return bool(data)

    def _take(self, message: Any) -> None:
        match message:
            case Results():
                self.run = message.run
                self.lost += message.lost
                self.results += message.results
                if self.acknowledging:
                    with contextlib.suppress(BrokenPipeError):  # what it sent before it hung up is still read
                        self.say(Acknowledge(run=message.run, sequence=message.results[-1].sequence))
            case Beat():
                self.beats.append(message)
            case Picture():
                self.pictures.append(message)
            case _:
                self.news.append(message)

    def until(self, look: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
        """Listen until something is there; return it."""
        deadline = time.monotonic() + timeout_s
        while not (found := look()):
            assert time.monotonic() < deadline, f"not seen in {timeout_s} s: {self.log()}"
            self.listen(0.1)
        return found

    def more(self, count: int) -> None:
        """Listen until so many more results have come."""
        wanted = len(self.results) + count
        self.until(lambda: len(self.results) >= wanted)

    def answer(self, op: str) -> Swapped | SwapFailed:
        """Listen until an order is answered."""
        found: Swapped | SwapFailed = self.until(lambda: next((news for news in self.news if news.op == op), None))
        return found

    def beat(self, look: Callable[[Beat], object] = lambda _: True) -> Beat:
        """Listen until a new beat says something."""
        seen = len(self.beats)
        found: Beat = self.until(lambda: next((beat for beat in self.beats[seen:] if look(beat)), None))
        return found

    def end(self, timeout_s: float = 5.0) -> int:
        """Wait for the process to end, taking in what it still sends."""
        deadline = time.monotonic() + timeout_s
        while self.listen(0.2) and time.monotonic() < deadline:
            pass
        return self.process.wait(timeout_s)

    def log(self) -> str:
        """What the process has said on its error stream."""
        return self.log_path.read_text(errors="replace")[-4000:]

    def kill(self, number: int = signal.SIGKILL) -> int:
        """End the process at once; return its status."""
        os.kill(self.process.pid, number)
        return self.process.wait(5)
