"""Trials in real child processes: what passes, what is refused with which code, and what the parent of a death sees."""

from __future__ import annotations

import hashlib
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lenskeep.messages.runner import LENGTH_BYTES, FromTrial, TrialPlan, TrialProgress, TrialReport, decoder
from lenskeep.runner.engine import Engine
from tests import models
from tests.models import classifier, facts, finder, finder_facts, picture


@dataclass
class Outcome:
    """What the parent of a trial sees."""

    code: int
    report: TrialReport | None
    progress: list[TrialProgress] = field(default_factory=list)

    @property
    def told(self) -> TrialReport:
        assert self.report is not None, f"the child ended with {self.code} and no report"
        return self.report


def write_pictures(folder: Path, pictures: dict[str, np.ndarray]) -> dict[str, str]:
    paths = {}
    for name, image in pictures.items():
        path = folder / name.replace("/", "-")
        assert cv2.imwrite(str(path), image)
        paths[name] = str(path)
    return paths


def pictures(count: int = 4, width_px: int = 60, height_px: int = 40) -> dict[str, np.ndarray]:
    return {f"golden/{seed}.png": picture(seed, width_px, height_px) for seed in range(count)}


def golden(plain: dict[str, Any], model: bytes, folder: Path, shown: dict[str, np.ndarray]) -> dict[str, Any]:
    """Answer the pictures with the contract in `plain` and return the facts with these answers as golden."""
    engine = Engine.load(models.store(folder, model, plain), threads=1)
    cases: list[dict[str, Any]] = []
    for name, image in shown.items():
        prepared = engine.prepare(image)
        answer = engine.answer(engine.infer(prepared), prepared.placement)
        if answer.scores is not None:
            named = dict(zip(engine.manifest.labels.names, answer.scores.tolist(), strict=True))
            cases.append({"image": name, "scores": named})
        else:
            boxes = [{"label": d.label, "score": d.score, "box": [d.x1, d.y1, d.x2, d.y2]} for d in answer.detections]
            cases.append({"image": name, "boxes": boxes})
    return plain | {"golden": {"cases": cases, "produced_by": "the engine under the true contract"}}


def run(plan: TrialPlan, folder: Path, *, inside: tuple[str, ...] = ()) -> Outcome:
    path = folder / "plan.json"
    path.write_bytes(msgspec.json.encode(plan))
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "lenskeep.runner.qualify", str(path), "--report-fd", str(theirs.fileno())]
    with ours, subprocess.Popen([*inside, *command], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE) as child:
        theirs.close()
        data = b"".join(iter(lambda: ours.recv(65536), b""))
        code = child.wait(60)
        said = child.stderr.read().decode() if child.stderr else ""
    outcome = Outcome(code, None)
    decode = decoder(FromTrial).decode
    while data:
        size = int.from_bytes(data[:LENGTH_BYTES], "big")
        message, data = decode(data[LENGTH_BYTES : LENGTH_BYTES + size]), data[LENGTH_BYTES + size :]
        if isinstance(message, TrialReport):
            outcome.report = message
        else:
            outcome.progress.append(message)
    print(code, outcome.report, said)
    return outcome


def plan(folder: Path, model: bytes, plain: dict[str, Any], shown: dict[str, np.ndarray], **changes: Any) -> TrialPlan:
    limits: dict[str, Any] = {"threads": 1, "memory_max_mb": 512, "cpu_max_s": 20, "frames": 12}
    return TrialPlan(
        bundle=models.store(folder, model, plain),
        golden=write_pictures(folder, shown),
        prepared_path=str(folder / "prepared.onnx"),
        **(limits | changes),
    )


def test_a_sound_bundle_passes_and_leaves_a_prepared_model_that_loads(tmp_path: Path) -> None:
    plain = golden(facts(), classifier(), tmp_path, pictures())
    asked = plan(tmp_path, classifier(), plain, pictures())
    outcome = run(asked, tmp_path)
    report = outcome.told
    assert outcome.code == 0 and report.passed and report.code == ""
    assert [check.name for check in report.checks] == ["disk", "runtime", "provider", "golden", "latency", "memory"]
    assert (report.golden_passed, report.golden_total, report.provider) == (4, 4, "CPU")
    assert report.golden_score > 0.999
    assert 0 < report.p50_ms <= report.p99_ms and report.memory_mb >= 1 and report.load_ms > 0
    assert {"load", "prepare", "golden", "latency"} == {progress.stage for progress in outcome.progress}
    prepared = Path(asked.prepared_path)
    assert hashlib.sha256(prepared.read_bytes()).hexdigest() == report.prepared_sha256
    ref = msgspec.structs.replace(asked.bundle, prepared_path=str(prepared), prepared_sha256=report.prepared_sha256)
    engine = Engine.load(ref, threads=1)
    assert engine.note == "" and engine.digest == asked.bundle.model_sha256


def test_wrong_golden_answers_are_refused_and_the_picture_is_named(tmp_path: Path) -> None:
    plain = golden(facts(), classifier(), tmp_path, pictures())
    plain["golden"]["cases"][2]["scores"] = {"good": 0.2, "scratched": 0.2, "missing": 0.6}
    report = run(plan(tmp_path, classifier(), plain, pictures()), tmp_path).told
    assert report.code == "LK-8001" and not report.passed
    assert "3 of 4" in report.message and "golden/2.png" in report.message and "matches when" not in report.message
    assert report.checks[-1].name == "golden" and not report.checks[-1].passed


CHANGED_CONTRACTS = {
    "colour order is BGR": {"color": "BGR"},
    "the resize mode is letterbox": {"resize": {"mode": "letterbox"}},
    "the resize mode is shortest_crop": {"resize": {"mode": "shortest_crop"}},
    "the resize kernel is linear_antialias": {"resize": {"mode": "stretch", "kernel": "linear_antialias"}},
    "pixels are not scaled": {"scale": 1.0},
    "pixels are brought to -1..1": {"mean": [0.5] * 3, "std": [0.5] * 3},
    "pixels are divided by 255 and normalised as for ImageNet": {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "colour order is BGR and the resize mode is letterbox": {"color": "BGR", "resize": {"mode": "letterbox"}},
}


@pytest.mark.parametrize("words", CHANGED_CONTRACTS)
def test_a_wrong_contract_is_named_as_the_cause(tmp_path: Path, words: str) -> None:
    shown = pictures(5, 200, 90)
    truth = facts(input=facts()["input"] | CHANGED_CONTRACTS[words])
    answers = golden(truth, classifier(), tmp_path, shown)["golden"] | {"tolerance": {"score_abs": 0.001}}
    report = run(plan(tmp_path, classifier(), facts(golden=answers), shown), tmp_path).told
    assert report.code == "LK-8001"
    assert report.message.endswith(f"matches when {words}.")


def test_softmax_that_was_forgotten_is_named_as_the_cause(tmp_path: Path) -> None:
    logits = classifier(softmax=False)
    truth = facts(decode={"kind": "classify", "softmax": True})
    answers = golden(truth, logits, tmp_path, pictures())["golden"]
    report = run(plan(tmp_path, logits, facts(golden=answers), pictures()), tmp_path).told
    assert report.code == "LK-8001" and report.message.endswith("matches when softmax is applied.")


def test_labels_in_another_order_are_named_as_the_cause(tmp_path: Path) -> None:
    shown = pictures()
    answers = golden(facts(names=["missing", "good", "scratched"]), classifier(), tmp_path, shown)["golden"]
    report = run(plan(tmp_path, classifier(), facts(golden=answers), shown), tmp_path).told
    assert report.code == "LK-8001"
    assert report.message.endswith("matches when the labels are in the order missing, good, scratched.")


def test_a_detector_that_was_trained_with_stretched_pictures_is_told_so(tmp_path: Path) -> None:
    shown = pictures(3, 120, 60)
    truth = finder_facts(input=finder_facts()["input"] | {"resize": {"mode": "stretch"}})
    answers = golden(truth, finder(), tmp_path, shown)["golden"]
    assert any(case["boxes"] for case in answers["cases"])
    report = run(plan(tmp_path, finder(), finder_facts(golden=answers), shown), tmp_path).told
    assert report.code == "LK-8001" and report.message.endswith("matches when the resize mode is stretch.")


def test_a_detector_with_exchanged_labels_is_told_so(tmp_path: Path) -> None:
    shown = pictures(3, 120, 60)
    answers = golden(finder_facts(), finder(), tmp_path, shown)["golden"]
    for case in answers["cases"]:
        for box in case["boxes"]:
            box["label"] = {"red": "blue", "blue": "red"}[box["label"]]
    report = run(plan(tmp_path, finder(), finder_facts(golden=answers), shown), tmp_path).told
    assert report.code == "LK-8001"
    assert report.message.endswith("matches when the labels are in the order blue, red.")


def node(kind: str, *values: str, **attributes: Any) -> Any:
    """A node whose last value is its output."""
    return helper.make_node(kind, list(values[:-1]), [values[-1]], **attributes)


def head(*before: Any, source: str = "image", weights: dict[str, np.ndarray] | None = None, **more: Any) -> bytes:
    """A classifier of mean colours behind other nodes; `source` is what those nodes make."""
    nodes = [*before, node("GlobalAveragePool", source, "pooled"), node("Flatten", "pooled", "scores")]
    return models.build(nodes, weights=weights, **more)


def answers_of_anything(count: int = 2) -> dict[str, Any]:
    cases = [{"image": f"golden/{seed}.png", "scores": {"good": 0.5, "scratched": 0.5}} for seed in range(count)]
    return {"cases": cases, "produced_by": "nobody"}


def refused(folder: Path, model: bytes, plain: dict[str, Any] | None = None, **changes: Any) -> TrialReport:
    plain = plain or facts(golden=answers_of_anything())
    outcome = run(plan(folder, model, plain, pictures(2), **changes), folder)
    assert outcome.code == 0
    assert not outcome.told.passed
    assert outcome.told.checks[-1].code == outcome.told.code if outcome.told.checks else True
    return outcome.told


@pytest.mark.attack(127)
def test_nan_is_refused_as_unusable(tmp_path: Path) -> None:
    model = head(node("Sub", "image", "image", "zero"), node("Div", "zero", "zero", "nan"), source="nan")
    report = refused(tmp_path, model)
    assert report.code == "LK-8007" and "NaN" in report.message


@pytest.mark.attack(127)
def test_infinity_is_refused_as_unusable(tmp_path: Path) -> None:
    model = head(node("Exp", "image", "too_large"), source="too_large")
    plain = facts(golden=answers_of_anything(), input=facts()["input"] | {"scale": 1.0})
    assert refused(tmp_path, model, plain).code == "LK-8007"


@pytest.mark.attack(128)
def test_an_output_of_another_shape_is_refused_as_unusable(tmp_path: Path) -> None:
    model = models.build(
        [node("GlobalAveragePool", "image", "scores")], outputs={"scores": (TensorProto.FLOAT, [1, 3, 1, 1])}
    )
    report = refused(tmp_path, model)
    assert report.code == "LK-8007" and "[1, 3, 1, 1]" in report.message


@pytest.mark.attack(128)
def test_an_output_shape_that_shows_only_at_run_time_is_refused_as_unusable(tmp_path: Path) -> None:
    model = models.build([node("Flatten", "image", "scores")], outputs={"scores": (TensorProto.FLOAT, [1, "n"])})
    report = refused(tmp_path, model)
    assert report.code == "LK-8007" and "[1, 768]" in report.message


@pytest.mark.attack(127)
def test_a_model_that_ignores_its_input_is_refused_as_unusable(tmp_path: Path) -> None:
    weights = {"zero": np.array(0, np.float32), "half": np.array(0.5, np.float32)}
    model = head(
        node("Mul", "image", "zero", "none"), node("Add", "none", "half", "same"), source="same", weights=weights
    )
    report = refused(tmp_path, model)
    assert report.code == "LK-8007" and "same outputs" in report.message


@pytest.mark.attack(129)
def test_a_model_over_its_latency_budget_is_refused(tmp_path: Path) -> None:
    model = models.slow_classifier(6)
    spec = facts()["input"] | {"shape": [1, 3, 64, 64]}
    plain = golden(facts(input=spec), model, tmp_path, pictures(2))
    plain["budget"] = {"latency_p99_ms": 0.5, "memory_mb": 500}
    report = refused(tmp_path, model, plain)
    assert report.code == "LK-8002" and report.p99_ms > 0.5 and report.golden_passed == 2


def test_a_model_over_its_memory_budget_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weights = {"many": rng.random((768, 20000), np.float32), "few": rng.random((20000, 3), np.float32)}
    model = models.build(
        [
            node("Flatten", "image", "flat"),
            node("MatMul", "flat", "many", "wide"),
            node("MatMul", "wide", "few", "scores"),
        ],
        weights=weights,
    )
    plain = golden(facts(decode={"kind": "classify", "softmax": True}), model, tmp_path, pictures(2))
    plain["budget"] = {"latency_p99_ms": 1000.0, "memory_mb": 20}
    report = refused(tmp_path, model, plain)
    assert report.code == "LK-8003" and report.memory_mb > 40 and report.checks[-1].name == "memory"


MEAN_OF_HUGE = [
    node("ConstantOfShape", "size", "huge"),
    node("ReduceMean", "huge", "mean", keepdims=0),
    node("Add", "image", "mean", "sum"),
]


@pytest.mark.attack(111)
@pytest.mark.parametrize("gigabytes", [1, 16])
def test_a_bomb_of_constants_is_refused_for_its_memory(tmp_path: Path, gigabytes: int) -> None:
    """A kilobyte that asks for gigabytes when it runs; it cannot be folded away, for it depends on the input."""
    sizing = [
        node("Shape", "image", "shape"),
        node("Mul", "shape", "zeros", "none"),
        node("Add", "none", "large", "size"),
    ]
    weights = {"zeros": np.zeros(4, np.int64), "large": np.array([1, 1, 1, gigabytes << 28], np.int64)}
    assert refused(tmp_path, head(*sizing, *MEAN_OF_HUGE, source="sum", weights=weights)).code == "LK-8003"


@pytest.mark.attack(111)
def test_a_bomb_of_constants_that_is_folded_at_load_is_refused_for_its_memory(tmp_path: Path) -> None:
    model = head(*MEAN_OF_HUGE, source="sum", weights={"size": np.array([16 << 28], np.int64)})
    assert refused(tmp_path, model).code == "LK-8003"


@pytest.mark.attack(112)
def test_a_bomb_of_resizes_is_refused_for_its_memory(tmp_path: Path) -> None:
    model = head(
        node("Resize", "image", "", "by", "huge", mode="nearest"), source="huge",
        weights={"by": np.array([1, 1, 4000, 4000], np.float32)},
    )  # fmt: skip
    assert refused(tmp_path, model).code == "LK-8003"


def endless() -> bytes:
    """A loop of 2^62 turns."""
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "go", "go_on"), node("Add", "x", "x", "y")],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("x", TensorProto.FLOAT, [1, 3])],
        [value("go_on", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, [1, 3])],
    )
    return models.build(
        [
            node("GlobalAveragePool", "image", "pooled"),
            node("Flatten", "pooled", "flat"),
            node("Loop", "times", "yes", "flat", "scores", body=body),
        ],
        weights={"times": np.array(1 << 62, np.int64), "yes": np.array(True)},
    )


@pytest.mark.attack(113)
def test_an_endless_loop_is_ended_at_the_limit_of_processor_time(tmp_path: Path) -> None:
    begun = time.monotonic()
    plain = facts(golden=answers_of_anything(), requires={"opset": models.OPSET, "control_flow": True})
    report = refused(tmp_path, endless(), plain, cpu_max_s=2)
    assert report.code == "LK-8006"
    assert time.monotonic() - begun < 30


@pytest.mark.attack(121)
def test_a_future_opset_is_refused_as_incompatible(tmp_path: Path) -> None:
    nodes = [node("GlobalAveragePool", "image", "pooled"), node("Flatten", "pooled", "scores")]
    report = refused(tmp_path, models.build(nodes, opset=99))
    assert report.code == "LK-8004" and "99" in report.message and report.checks[-1].name == "runtime"


def test_a_newer_runtime_that_is_asked_for_is_refused_as_incompatible(tmp_path: Path) -> None:
    plain = facts(golden=answers_of_anything(), requires={"opset": models.OPSET, "onnxruntime": ">=9.1"})
    report = refused(tmp_path, classifier(), plain)
    assert report.code == "LK-8004" and ">=9.1" in report.message


def test_a_provider_that_is_not_here_is_refused_and_never_replaced_by_the_processor(tmp_path: Path) -> None:
    plain = facts(golden=answers_of_anything(), requires={"opset": models.OPSET, "providers": ["CUDA"]})
    report = refused(tmp_path, classifier(), plain)
    assert report.code in {"LK-8004", "LK-8008"} and "CUDA" in report.message and report.checks[-1].name == "provider"


@pytest.mark.attack(125)
@pytest.mark.parametrize(
    ("kind", "shape"),
    [(TensorProto.FLOAT, [1, 3, 32, 32]), (TensorProto.UINT8, [1, 3, 16, 16]), (TensorProto.FLOAT, [3, 256])],
)
def test_an_input_other_than_the_manifest_says_is_refused(tmp_path: Path, kind: int, shape: list[int]) -> None:
    model = models.build(
        [node("Cast", "image", "numbers", to=TensorProto.FLOAT), node("ReduceMean", "numbers", "mean", keepdims=0),
         node("Add", "mean", "nothing", "scores")],
        inputs={"image": (kind, shape)}, weights={"nothing": np.zeros((1, 3), np.float32)},
    )  # fmt: skip
    report = refused(tmp_path, model)
    assert report.code == "LK-4012" and str(shape) in report.message


@pytest.mark.attack(119)
def test_an_unknown_operator_is_refused_as_incompatible(tmp_path: Path) -> None:
    model = models.build([helper.make_node("Surprise", ["image"], ["scores"])])
    report = refused(tmp_path, model)
    assert report.code == "LK-8004" and "Surprise" in report.message


@pytest.mark.attack(120)
def test_a_graph_with_a_cycle_is_refused_as_incompatible(tmp_path: Path) -> None:
    model = models.build([node("Add", "image", "b", "a"), node("Add", "a", "a", "b"), node("Flatten", "a", "scores")])
    assert refused(tmp_path, model).code == "LK-8004"


@pytest.mark.attack(74)
def test_a_stored_model_that_is_damaged_is_not_run(tmp_path: Path) -> None:
    asked = plan(tmp_path, classifier(), facts(golden=answers_of_anything()), pictures(2))
    path = Path(asked.bundle.model_path)
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert run(asked, tmp_path).told.code == "LK-5003"


@pytest.mark.attack(126)
def test_a_golden_picture_that_is_too_large_is_refused_before_it_is_resized(tmp_path: Path) -> None:
    shown = {"golden/0.png": np.zeros((20, 20000, 3), np.uint8)}
    plain = facts(golden=answers_of_anything(1))
    report = run(plan(tmp_path, classifier(), plain, shown), tmp_path).told
    assert report.code == "LK-4012" and "20000x20" in report.message


@pytest.mark.attack(124)
def test_a_golden_picture_without_a_pixel_is_refused(tmp_path: Path) -> None:
    asked = plan(tmp_path, classifier(), facts(golden=answers_of_anything(1)), pictures(1))
    Path(asked.golden["golden/0.png"]).write_bytes(b"")
    report = run(asked, tmp_path).told
    assert report.code == "LK-4012" and "golden/0.png" in report.message


def test_a_disk_without_room_for_the_prepared_model_is_told(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    small_disk = ("unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=32m none {disk} && exec "$@"', "sh")
    if subprocess.run([*small_disk, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    asked = plan(tmp_path, classifier(), facts(golden=answers_of_anything()), pictures(2))
    asked = msgspec.structs.replace(asked, prepared_path=str(disk / "prepared.onnx"))
    report = run(asked, tmp_path, inside=small_disk).told
    assert report.code == "LK-8009" and report.checks[-1].name == "disk"


def test_a_model_that_grows_too_large_when_prepared_is_tried_as_it_was_signed(tmp_path: Path) -> None:
    model = models.build(
        [
            node("ConstantOfShape", "size", "huge"),
            node("ReduceMean", "image", "mean", keepdims=0),
            node("Add", "huge", "mean", "sum"),
            node("GlobalAveragePool", "sum", "pooled"),
            node("Flatten", "pooled", "scores"),
        ],
        weights={"size": np.array([1, 3, 2000, 2000], np.int64)},
    )
    plain = golden(facts(), model, tmp_path, pictures(2))
    report = run(plan(tmp_path, model, plain, pictures(2), memory_max_mb=1024), tmp_path).told
    assert report.passed and report.prepared_sha256 == ""
    assert [path.stat().st_size for path in tmp_path.glob("prepared.onnx*")] == [0]  # the parent removes it


def test_a_child_whose_parent_is_gone_ends_itself(tmp_path: Path) -> None:
    plain = facts(golden=answers_of_anything(), requires={"opset": models.OPSET, "control_flow": True})
    path = tmp_path / "plan.json"
    path.write_bytes(msgspec.json.encode(plan(tmp_path, endless(), plain, pictures(2))))
    starter = (
        "import os, subprocess, sys\n"
        "read, write = os.pipe()\n"
        f"command = [sys.executable, '-m', 'lenskeep.runner.qualify', {str(path)!r}, '--report-fd', str(write)]\n"
        "child = subprocess.Popen(command, pass_fds=[write])\n"
        "os.read(read, 1)\n"
        "print(child.pid, flush=True)\n"
    )
    answer = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, timeout=30, check=True)
    pid = int(answer.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the child lives on"
        time.sleep(0.01)


@pytest.mark.attack(118, 130)
def test_a_model_that_crashes_the_runtime_leaves_its_signal_to_the_parent(tmp_path: Path) -> None:
    """Three thousand local functions, each calling the next, overflow the runtime's stack while it loads."""
    opsets = [helper.make_opsetid("", models.OPSET), helper.make_opsetid("deep", 1)]
    calls = [helper.make_node(f"f{number + 1}", ["a"], ["b"], domain="deep") for number in range(2999)]
    model = onnx.load_from_string(head(helper.make_node("f0", ["image"], ["end"], domain="deep"), source="end"))
    model.opset_import.append(opsets[1])
    for number, call in enumerate([*calls, node("Identity", "a", "b")]):
        model.functions.append(helper.make_function("deep", f"f{number}", ["a"], ["b"], [call], opsets))
    asked = plan(tmp_path, model.SerializeToString(), facts(golden=answers_of_anything()), pictures(2))
    outcome = run(asked, tmp_path)
    assert outcome.code == -signal.SIGSEGV and outcome.report is None


def test_many_golden_pictures_do_not_count_as_the_memory_of_the_model(tmp_path: Path) -> None:
    shown = {name: cv2.resize(image, (1280, 720)) for name, image in pictures(40).items()}  # 110 MB together
    plain = golden(facts(), classifier(), tmp_path, shown)
    plain["budget"] = {"latency_p99_ms": 1000.0, "memory_mb": 40}
    report = run(plan(tmp_path, classifier(), plain, shown), tmp_path).told
    assert report.passed and report.golden_passed == 40
