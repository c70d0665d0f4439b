"""Models that attack the trial itself: signed by somebody, and past the static check or without it. Each ends in a
report with its code or in a death that the parent names; the child is confined all the while."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lenskeep.messages.runner import LENGTH_BYTES, FromTrial, TrialProgress, TrialReport, decoder
from tests import models
from tests.models import classifier, facts
from tests.process.test_trial import answers_of_anything, golden, head, node, pictures, plan, refused, run

LOOPS = {"golden": answers_of_anything(), "requires": {"opset": models.OPSET, "control_flow": True}}


@pytest.fixture(autouse=True)
def every_death_is_in_time() -> Any:
    begun = time.monotonic()
    yield
    assert time.monotonic() - begun < 40


@pytest.mark.attack(114)
def test_a_loop_that_keeps_what_it_makes_is_refused_for_its_memory(tmp_path: Path) -> None:
    """Each turn adds its tensor to an output that nobody asked for."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "go", "go_on"), node("Expand", "flat", "large", "more")],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, [])],
        [value("go_on", TensorProto.BOOL, []), value("more", TensorProto.FLOAT, None)],
    )
    model = models.build(
        [
            node("GlobalAveragePool", "image", "pooled"),
            node("Flatten", "pooled", "flat"),
            node("Loop", "times", "yes", "all", body=body),
            node("ReduceMean", "all", "mean", keepdims=0),
            node("Add", "flat", "mean", "scores"),
        ],
        weights={
            "times": np.array(1 << 40, np.int64), "yes": np.array(True), "large": np.array([1 << 20, 3], np.int64)
        },
    )  # fmt: skip
    report = refused(tmp_path, model, facts(**LOOPS), memory_max_mb=300, cpu_max_s=10)
    assert report.code in {"LK-8003", "LK-8006"}


@pytest.mark.attack(115)
def test_thirty_nested_branches_end_in_a_verdict(tmp_path: Path) -> None:
    def branch(name: str, output: str, nodes: list[Any]) -> Any:
        return helper.make_graph(nodes, name, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, 3])])

    nested = [node("Identity", "flat", "x30")]
    for depth in reversed(range(30)):
        then, other = branch(f"x{depth}", f"x{depth + 1}", nested), f"y{depth}"
        plain = branch(other, other, [node("Identity", "flat", other)])
        nested = [helper.make_node("If", ["yes"], [f"x{depth}"], then_branch=then, else_branch=plain)]
    model = models.build(
        [
            node("GlobalAveragePool", "image", "pooled"),
            node("Flatten", "pooled", "flat"),
            node("ReduceMean", "image", "mean", keepdims=0),
            node("Greater", "mean", "few", "yes"),  # known only when it runs
            *nested,
            node("Identity", "x0", "scores"),
        ],
        weights={"few": np.array(-1, np.float32)},
    )
    outcome = run(plan(tmp_path, model, facts(**LOOPS), pictures(2), cpu_max_s=5), tmp_path)
    assert outcome.code == 0 and outcome.told.code == "LK-8001"  # it runs, and its golden answers are nobody's


def functions(calls: dict[str, list[str]], called: str) -> bytes:
    """A model with local functions: each name calls the names it is given, one after the other."""
    opsets = [helper.make_opsetid("", models.OPSET), helper.make_opsetid("deep", 1)]
    model = onnx.load_from_string(head(helper.make_node(called, ["image"], ["end"], domain="deep"), source="end"))
    model.opset_import.append(opsets[1])
    for name, wanted in calls.items():
        values = ["a", *(f"v{place}" for place in range(len(wanted) - 1)), "b"]
        nodes = [
            helper.make_node(one, [values[place]], [values[place + 1]], domain="" if one == "Identity" else "deep")
            for place, one in enumerate(wanted)
        ]
        model.functions.append(helper.make_function("deep", name, ["a"], ["b"], nodes, opsets))
    return bytes(model.SerializeToString())


@pytest.mark.attack(116)
def test_a_function_that_calls_itself_is_refused(tmp_path: Path) -> None:
    asked = plan(tmp_path, functions({"f": ["f"]}, "f"), facts(golden=answers_of_anything()), pictures(2), cpu_max_s=4)
    outcome = run(asked, tmp_path)
    assert outcome.code == -signal.SIGSEGV or outcome.told.code in {"LK-8004", "LK-8006"}


@pytest.mark.attack(117)
def test_a_billion_laughs_of_functions_is_ended_at_its_limits(tmp_path: Path) -> None:
    laughs = {f"f{depth}": [f"f{depth + 1}"] * 2 for depth in range(28)} | {"f28": ["Identity"]}
    report = refused(tmp_path, functions(laughs, "f0"), facts(golden=answers_of_anything()), cpu_max_s=3)
    assert report.code in {"LK-8003", "LK-8004", "LK-8006"}


LIES = {
    "a length of 3 GiB": b"\x3a" + bytes([0x80, 0x80, 0x80, 0x80, 0x0C]),
    "a length of 2^63": b"\x3a" + b"\xff" * 8 + b"\x7f",
    "a negative length": b"\x3a" + b"\xff" * 9 + b"\x01",
    "a length without an end": b"\x3a" + b"\x80" * 20,
}


@pytest.mark.attack(123)
@pytest.mark.parametrize("lie", LIES)
def test_a_file_that_lies_about_gigabytes_is_refused_and_takes_none(tmp_path: Path, lie: str) -> None:
    report = refused(tmp_path, b"\x08\x0a" + LIES[lie] + classifier(), memory_max_mb=200)
    assert report.code == "LK-8004"


@pytest.mark.attack(123)
def test_a_tensor_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    for dims in ([1 << 33], [1 << 20, 1 << 20, 1 << 20, 1 << 20], [-1], [3, 3]):
        model = onnx.load_from_string(classifier())
        del model.graph.initializer[0].dims[:]
        model.graph.initializer[0].dims.extend(dims)
        assert refused(tmp_path, model.SerializeToString(), memory_max_mb=200).code in {"LK-8003", "LK-8004"}


@pytest.mark.attack(126)
def test_an_open_input_is_never_run_at_another_size_than_the_manifest_says(tmp_path: Path) -> None:
    """The model takes a picture of any size; a golden picture of 20,000 pixels is refused before it is prepared."""
    model = models.build(
        [node("GlobalAveragePool", "image", "pooled"), node("Flatten", "pooled", "scores")],
        inputs={"image": (TensorProto.FLOAT, [1, 3, "height", "width"])},
    )
    shown = {"golden/0.png": np.zeros((20000, 20, 3), np.uint8)}
    report = run(plan(tmp_path, model, facts(golden=answers_of_anything(1)), shown), tmp_path).told
    assert report.code == "LK-4012" and "20x20000" in report.message


@pytest.mark.attack(130)
@pytest.mark.parametrize(("stage", "done"), [("load", 0), ("golden", 0), ("latency", 1000)])
def test_a_crash_at_load_at_the_first_run_and_at_run_1000_leaves_its_signal(
    tmp_path: Path, stage: str, done: int
) -> None:
    """The crash itself is sent from outside: no model is known that crashes this runtime so late."""
    plain = golden(facts(), classifier(), tmp_path, pictures(2))
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(plan(tmp_path, classifier(), plain, pictures(2), frames=30000)))
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "lenskeep.runner.qualify", str(path), "--report-fd", str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[theirs.fileno()]) as child:
        theirs.close()
        decode = decoder(FromTrial).decode
        stream = ours.makefile("rb")
        while True:
            message = decode(stream.read(int.from_bytes(stream.read(LENGTH_BYTES), "big")))
            assert not isinstance(message, TrialReport), message
            if isinstance(message, TrialProgress) and message.stage == stage and message.done >= done:
                break
        os.kill(child.pid, signal.SIGSEGV)
        assert child.wait(10) == -signal.SIGSEGV
        rest = stream.read()
        stream.close()
    assert b"report" not in rest
