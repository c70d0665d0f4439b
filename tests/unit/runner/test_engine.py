"""One loaded version: from which bytes, on which processor, and what it does when something is wrong."""

from __future__ import annotations

import hashlib
import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from lenskeep.errors import (
    BlobDamagedError,
    IncompatibleError,
    InferenceError,
    LenskeepError,
    ManifestError,
    MemoryBudgetError,
    SwapRefusedError,
    UnusableOutputError,
)
from lenskeep.messages.runner import BundleRef
from lenskeep.runner.engine import Cancel, Engine, open_session, session_options
from lenskeep.runner.sealed import sealed
from lenskeep.runner.tensors import Prepared
from tests import models
from tests.models import classifier, facts, finder, finder_facts, manifest, picture, store


def judged(engine: Engine, image: np.ndarray) -> object:
    prepared = engine.prepare(image)
    return engine.decode(engine.infer(prepared), prepared.placement)


def prepared_ref(folder: Path, ref: BundleRef) -> BundleRef:
    """Optimise a model as its trial does."""
    path = folder / "prepared.onnx"
    options = session_options(1)
    options.optimized_model_filepath = str(path)
    with sealed(ref.model_path, ref.model_sha256) as model:
        open_session(model, manifest(facts()), options)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return msgspec.structs.replace(ref, prepared_path=str(path), prepared_sha256=sha256)


def test_a_frame_is_judged_from_picture_to_verdict(tmp_path: Path) -> None:
    engine = Engine.load(store(tmp_path, classifier()), threads=1)
    engine.warm(2)
    image = picture(1)
    session = ort.InferenceSession(classifier(), providers=["CPUExecutionProvider"])
    [scores] = session.run(None, {"image": engine.prepare(image).tensor})[0]
    seen = judged(engine, image)
    assert (seen.label, seen.score) == (models.LABELS[int(scores.argmax())], pytest.approx(float(scores.max())))
    assert engine.provider == "CPU" and engine.note == ""
    assert engine.digest == hashlib.sha256(classifier()).hexdigest()


def test_a_detector_finds_a_red_thing_where_it_is(tmp_path: Path) -> None:
    engine = Engine.load(store(tmp_path, finder(), finder_facts()), threads=1)
    frame = np.full((240, 320, 3), 128, np.uint8)
    frame[40:80, 80:120] = (0, 0, 255)
    prepared = engine.prepare(frame)
    [thing] = engine.decode(engine.infer(prepared), prepared.placement).detections
    assert thing.label == "red" and thing.score > 0.9
    assert abs((thing.x1 + thing.x2) / 2 - 100) < 1 and abs((thing.y1 + thing.y2) / 2 - 60) < 1


def test_the_prepared_model_is_used_and_the_signed_one_stays_the_identity(tmp_path: Path) -> None:
    ref = prepared_ref(tmp_path, store(tmp_path, classifier()))
    expected = judged(Engine.load(store(tmp_path, classifier()), threads=1), picture(1))
    Path(ref.model_path).unlink()  # one file is read, not two
    engine = Engine.load(ref, threads=1)
    assert engine.note == "" and engine.digest == ref.model_sha256 != ref.prepared_sha256
    assert judged(engine, picture(1)) == expected


@pytest.mark.parametrize("spoiled", ["flipped", "missing", "cut", "another"])
def test_a_prepared_model_that_is_damaged_falls_back_to_the_signed_one(tmp_path: Path, spoiled: str) -> None:
    ref = prepared_ref(tmp_path, store(tmp_path, classifier()))
    path = Path(ref.prepared_path)
    data = path.read_bytes()
    if spoiled == "missing":
        path.unlink()
    else:
        broken = {"flipped": data[:-9] + b"\x55" + data[-8:], "cut": data[:-1], "another": classifier(2)}
        path.write_bytes(broken[spoiled])
    engine = Engine.load(ref, threads=1)
    assert "prepared" in engine.note and engine.digest == ref.model_sha256
    assert judged(engine, picture(1)) == judged(Engine.load(store(tmp_path, classifier()), threads=1), picture(1))


def test_a_prepared_model_of_another_runtime_falls_back_to_the_signed_one(tmp_path: Path) -> None:
    strange = models.build([helper.make_node("ReorderedConv", ["image"], ["scores"])])
    path = tmp_path / "prepared.onnx"
    path.write_bytes(strange)
    ref = msgspec.structs.replace(
        store(tmp_path, classifier()), prepared_path=str(path), prepared_sha256=hashlib.sha256(strange).hexdigest()
    )
    assert "ReorderedConv" in Engine.load(ref, threads=1).note


@pytest.mark.attack(75)
@pytest.mark.parametrize("spoiled", ["flipped", "missing"])
def test_a_signed_model_that_is_damaged_is_never_run(tmp_path: Path, spoiled: str) -> None:
    ref = store(tmp_path, classifier())
    path = Path(ref.model_path)
    if spoiled == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.raises(BlobDamagedError):
        Engine.load(ref, threads=1)


@pytest.mark.attack(75)
def test_the_file_may_change_after_the_load_without_any_effect(tmp_path: Path) -> None:
    ref = store(tmp_path, classifier())
    engine = Engine.load(ref, threads=1)
    expected = judged(engine, picture(1))
    Path(ref.model_path).write_bytes(b"something else")
    assert judged(engine, picture(1)) == expected


def test_frames_are_prepared_in_one_thread_and_judged_in_another(tmp_path: Path) -> None:
    engine = Engine.load(store(tmp_path, classifier()), threads=1)
    images = [picture(seed, 60 + seed % 2) for seed in range(10)]
    expected = [judged(engine, image) for image in images]
    ready: queue.Queue[Prepared | None] = queue.Queue(2)

    def capture() -> None:
        for number in range(500):
            ready.put(engine.prepare(images[number % 10]))
        ready.put(None)

    thread = threading.Thread(target=capture)
    thread.start()
    seen = []
    while (prepared := ready.get()) is not None:
        seen.append(engine.decode(engine.infer(prepared), prepared.placement))
    thread.join()
    assert seen == expected * 50


def big_model(tmp_path: Path) -> BundleRef:
    """So many nodes that loading takes a good part of a second."""
    nodes = [helper.make_node("Flatten", ["image"], ["x0"])]
    nodes += [helper.make_node("MatMul", [f"x{n}", "w"], [f"x{n + 1}"]) for n in range(3000)]
    nodes += [helper.make_node("MatMul", ["x3000", "last"], ["scores"])]
    weights = {"w": np.eye(768, dtype=np.float32), "last": np.ones((768, 3), np.float32)}
    return store(tmp_path, models.build(nodes, weights=weights))


def test_a_load_is_cancelled_inside_the_runtime(tmp_path: Path) -> None:
    ref, cancel = big_model(tmp_path), Cancel()
    begun = time.monotonic()
    Engine.load(ref, threads=1)
    whole_s = time.monotonic() - begun
    threading.Timer(whole_s / 10, cancel.set).start()
    begun = time.monotonic()
    with pytest.raises(SwapRefusedError, match="cancelled"):
        Engine.load(ref, threads=1, cancel=cancel)
    assert time.monotonic() - begun < whole_s


def test_a_load_that_was_cancelled_before_it_began_does_not_begin(tmp_path: Path) -> None:
    cancel = Cancel()
    cancel.set()
    with pytest.raises(SwapRefusedError):
        Engine.load(store(tmp_path, classifier()), threads=1, cancel=cancel)


@pytest.mark.parametrize("provider", ["CUDA", "TensorRT", "OpenVINO"])
def test_a_provider_that_is_not_installed_is_no_reason_to_use_the_processor(tmp_path: Path, provider: str) -> None:
    plain = facts(requires={"opset": models.OPSET, "providers": [provider]})
    with pytest.raises(LenskeepError) as caught:
        Engine.load(store(tmp_path, classifier(), plain), threads=1)
    assert caught.value.code in {"LK-8004", "LK-8008"} and provider in str(caught.value)


def test_the_first_provider_that_is_here_is_used(tmp_path: Path) -> None:
    plain = facts(requires={"opset": models.OPSET, "providers": ["CUDA", "CPU"]})
    assert Engine.load(store(tmp_path, classifier(), plain), threads=1).provider in {"CUDA", "CPU"}


def test_a_model_with_two_inputs_contradicts_the_manifest(tmp_path: Path) -> None:
    kind = (TensorProto.FLOAT, [1, 3, 16, 16])
    nodes = [helper.make_node("Add", ["image", "mask"], ["sum"]), helper.make_node("Flatten", ["sum"], ["scores"])]
    model = models.build(nodes, inputs={"image": kind, "mask": kind}, outputs={"scores": (TensorProto.FLOAT, [1, 768])})
    with pytest.raises(ManifestError, match="2 inputs"):
        Engine.load(store(tmp_path, model), threads=1)


def test_an_output_of_another_name_is_refused(tmp_path: Path) -> None:
    ref = store(tmp_path, classifier(), facts(outputs=[{"name": "probabilities", "shape": [1, 3]}]))
    with pytest.raises(UnusableOutputError, match="probabilities"):
        Engine.load(ref, threads=1)


def test_open_axes_fit_any_size(tmp_path: Path) -> None:
    nodes = [helper.make_node("GlobalAveragePool", ["image"], ["p"]), helper.make_node("Flatten", ["p"], ["scores"])]
    model = models.build(
        nodes,
        inputs={"image": (TensorProto.FLOAT, ["batch", 3, "height", "width"])},
        outputs={"scores": (TensorProto.FLOAT, ["batch", 3])},
    )
    assert judged(Engine.load(store(tmp_path, model), threads=1), picture(1))


def test_what_the_runtime_raises_for_a_frame_is_our_fault_in_plain_words(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["image", "shape"], ["scores"])]
    sizes = [helper.make_node("ReduceMean", ["image"], ["mean"], keepdims=0),
             helper.make_node("Cast", ["mean"], ["whole"], to=TensorProto.INT64),
             helper.make_node("Add", ["whole", "seven"], ["shape"])]  # fmt: skip
    model = models.build(
        sizes + nodes, weights={"seven": np.array([7, 7], np.int64)}, outputs={"scores": (TensorProto.FLOAT, [1, "n"])}
    )
    engine = Engine.load(store(tmp_path, model), threads=1)
    with pytest.raises(InferenceError, match=r"cap-inspect@1\.0\.0") as caught:
        engine.infer(engine.prepare(picture(1)))
    assert "onnxruntime_src" not in str(caught.value)


def test_a_request_for_more_memory_than_can_be_addressed_is_told_as_memory(tmp_path: Path) -> None:
    nodes = [helper.make_node("Shape", ["image"], ["shape"]), helper.make_node("Mul", ["shape", "large"], ["size"]),
             helper.make_node("ConstantOfShape", ["size"], ["huge"]),
             helper.make_node("ReduceMean", ["huge"], ["mean"], keepdims=0),
             helper.make_node("Expand", ["mean", "three"], ["scores"])]  # fmt: skip
    weights = {"large": np.array([1, 1, 1 << 22, 1 << 22], np.int64), "three": np.array([1, 3], np.int64)}
    engine = Engine.load(store(tmp_path, models.build(nodes, weights=weights)), threads=1)
    with pytest.raises(MemoryBudgetError):
        engine.infer(engine.prepare(picture(1)))


@pytest.mark.parametrize("data", [b"", b"hello", classifier()[:-100]], ids=["empty", "text", "cut"])
def test_bytes_that_are_no_model_are_refused_as_incompatible(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(IncompatibleError):
        Engine.load(store(tmp_path, data), threads=1)


@pytest.mark.attack(104, 105, 108)
@pytest.mark.parametrize("where", ["absolute", "beside", "above", "descriptor"])
def test_weights_outside_the_file_are_never_read(tmp_path: Path, where: str) -> None:
    secret = tmp_path / "secret.bin"
    secret.write_bytes(bytes(48 * 3 * 4))
    with secret.open("rb") as opened:
        places = {
            "absolute": str(secret),
            "beside": "secret.bin",
            "above": f"../../..{secret}",
            "descriptor": str(opened.fileno()),
        }
        model = onnx.load_from_string(classifier())
        weight = model.graph.initializer[0]
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        weight.external_data.add(key="location", value=places[where])
        with pytest.raises(IncompatibleError, match=r"[Ee]xternal"):
            Engine.load(store(tmp_path, model.SerializeToString()), threads=1)


def test_random_damage_to_a_model_gives_a_fault_of_ours_or_a_session_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    print("seed 11")
    good = bytearray(finder())
    for _ in range(150):
        bad = good.copy()
        for place in rng.integers(0, len(bad), rng.integers(1, 4)):
            bad[place] = rng.integers(0, 256)
        try:
            engine = Engine.load(store(tmp_path, bytes(bad), finder_facts()), threads=1)
            judged(engine, picture(1))
        except LenskeepError:
            continue


CYCLES = """
import sys
from pathlib import Path
import msgspec
from lenskeep.messages.runner import BundleRef
from lenskeep.runner.engine import Engine
from lenskeep.runner.libraries import settle_libraries, trim_memory

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4 // 1024

settle_libraries()
ref = msgspec.json.decode(sys.argv[1], type=BundleRef)
for cycle in range(25):
    engine = Engine.load(ref, threads=1)
    engine.warm(1)
    engine.close()
    trim_memory()
    if cycle == 4:
        before_mb = resident_mb()
print(resident_mb() - before_mb)
"""


def test_many_loads_and_trims_leave_no_memory_behind(tmp_path: Path) -> None:
    weights = {"w": np.random.default_rng(1).random((768, 4096), np.float32), "v": np.ones((4096, 3), np.float32)}
    nodes = [helper.make_node("Flatten", ["image"], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["wide"]),
             helper.make_node("MatMul", ["wide", "v"], ["scores"])]  # fmt: skip
    ref = msgspec.json.encode(store(tmp_path, models.build(nodes, weights=weights))).decode()
    done = subprocess.run([sys.executable, "-c", CYCLES, ref], capture_output=True, text=True, check=True, timeout=60)
    assert int(done.stdout) < 6  # the model has 12 MB
