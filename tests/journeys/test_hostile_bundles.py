"""Hostile bundles at the real door of a running device: each is refused with its code, nothing visible changes, the line
goes on. The archives are the ones that `tests/unit/bundle` holds against the reader alone."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from lenskeep.errors import BundleError, LenskeepError
from lenskeep.messages.control import Operation
from tests import runnerchild, tinybundle
from tests.device import SIZE_PX, Device, bundle_bytes
from tests.unit.bundle.test_attacks_archive import ATTACKS


@pytest.fixture(scope="module")
def line() -> Iterator[Device]:
    """One device on which a good version runs; a trial may take 700 MB and 5 s."""
    device = Device(Path(tempfile.mkdtemp(prefix="lk-")), more="[limits]\nbundle_mb_max = 64")
    text = device.config.read_text()
    device.config.write_text(
        text.replace("frames = 10", "frames = 10\nmemory_mb_max = 700\ncpu_s_max = 5\nwall_s_max = 20")
    )
    device.start()
    device.trust()
    device.settle("1.0.0")
    yield device
    device.close()
    shutil.rmtree(device.folder, ignore_errors=True)


def sent(device: Device, data: bytes) -> Operation:
    path = device.folder / "hostile.lkb"
    path.write_bytes(data)
    return device.finished(device.client.upload(path, lambda _done, _total: None))


def assert_untouched(device: Device) -> None:
    """Only the good version is there, nothing lies in staging, and the line judges frames with it."""
    assert [bundle.version for bundle in device.client.bundles() if bundle.state == "qualified"] == ["1.0.0"]
    assert list((device.folder / "state" / "staging").iterdir()) == []
    before = device.results()[-1].sequence
    device.until(lambda: device.results()[-1].sequence > before, "the line goes on")
    assert device.results()[-1].bundle == "cap-inspect@1.0.0"


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_hostile_archive_is_refused_at_the_door(line: Device, attack: str) -> None:
    with pytest.raises(BundleError) as caught:
        sent(line, ATTACKS[attack])
    assert caught.value.code in {"LK-4002", "LK-4004", "LK-4010", "LK-4011"}
    assert_untouched(line)


def model(*nodes: Any, weights: dict[str, np.ndarray] | None = None, opset: int = 17, **changes: Any) -> bytes:
    """A model between `images` and `scores`, with whatever nodes."""
    names = changes.pop("outputs", [1, 2])
    graph = helper.make_graph(
        list(nodes), "hostile",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, changes.pop("inputs", [1, 3, SIZE_PX, SIZE_PX]))],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, names)],
        [onnx.numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=changes.pop("ir", 9))
    return bytes(made.SerializeToString())


def mean_of(source: str) -> list[Any]:
    """Two scores from the mean of a tensor of any size."""
    return [
        helper.make_node("ReduceMean", [source], ["mean"], keepdims=0),
        helper.make_node("Mul", ["pair", "mean"], ["scores"]),
    ]


PAIR = {"pair": np.array([[0.5, 0.5]], np.float32)}
GOLDEN = {"cases": [{"image": "golden/a.png", "scores": {"good": 0.5, "bad": 0.5}}], "produced_by": "nobody"}


def external() -> bytes:
    """Weights that lie in a file outside the bundle."""
    made = onnx.load_model_from_string(runnerchild.constant_model("1.0.0", SIZE_PX))
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../../etc/passwd")
    return bytes(made.SerializeToString())


def with_function() -> bytes:
    """A model with a local function."""
    made = onnx.load_model_from_string(runnerchild.constant_model("1.0.0", SIZE_PX))
    node = helper.make_node("Identity", ["x"], ["y"])
    made.functions.append(helper.make_function("evil", "f", ["x"], ["y"], [node], [helper.make_opsetid("", 17)]))
    return bytes(made.SerializeToString())


REFUSED_AT_THE_DOOR: dict[str, tuple[str, bytes]] = {
    "104 external data": ("LK-4020", bundle_bytes("2.0.0", model=external())),
    "116 local functions": ("LK-4020", bundle_bytes("2.0.1", model=with_function())),
    "121 future opset": ("LK-4020", bundle_bytes("2.0.2", model=model(*mean_of("images"), weights=PAIR, opset=99))),
    "121 future ir": ("LK-4020", bundle_bytes("2.0.3", model=model(*mean_of("images"), weights=PAIR, ir=99))),
    "122 garbage model": ("LK-4020", bundle_bytes("2.0.4", model=b"\x08\x07garbage" * 50)),
    "125 input differs from the manifest": (
        "LK-4012", bundle_bytes("2.0.5", model=model(*mean_of("images"), weights=PAIR, inputs=[1, 3, 8, 8]))
    ),
    "44 unknown field": ("LK-4012", bundle_bytes("2.0.6", surprise=1)),
    "47 Cyrillic letter in the name": ("LK-4012", bundle_bytes("2.0.7", name="c\u0430p-inspect")),
    "48 bidirectional override in a title": ("LK-4012", bundle_bytes("2.0.8", title="\u202egood")),
    "50 wrong kind of version": ("LK-4012", bundle_bytes("2.0.9-")),
    "53 a stranger's key": (
        "LK-4001",
        tinybundle.pack(sig=tinybundle.signature(tinybundle.parts(), tinybundle.other_key())),
    ),
    "too large": ("LK-4011", bytes(65 << 20)),
}  # fmt: skip


@pytest.mark.parametrize("attack", REFUSED_AT_THE_DOOR)
def test_a_hostile_content_is_refused_at_the_door(line: Device, attack: str) -> None:
    code, data = REFUSED_AT_THE_DOOR[attack]
    with pytest.raises(LenskeepError) as caught:
        sent(line, data)
    assert caught.value.code == code, caught.value
    assert_untouched(line)


HUGE = [
    helper.make_node("ConstantOfShape", ["size"], ["huge"]),
    helper.make_node("ReduceMean", ["huge"], ["nothing"], keepdims=0),
    helper.make_node("Add", ["images", "nothing"], ["sum"]),
]
NOT_A_NUMBER = [
    helper.make_node("Sub", ["images", "images"], ["zero"]),
    helper.make_node("Div", ["zero", "zero"], ["nan"]),
]
REFUSED_BY_THE_TRIAL: dict[str, tuple[str, bytes]] = {
    "111 a constant of 16 GiB": (
        "LK-8003",
        bundle_bytes(
            "3.0.0", golden=GOLDEN,
            model=model(*HUGE, *mean_of("sum"), weights=PAIR | {"size": np.array([16 << 28], np.int64)}),
        ),
    ),
    "127 NaN": ("LK-8007", bundle_bytes("3.0.1", golden=GOLDEN, model=model(*NOT_A_NUMBER, *mean_of("nan"), weights=PAIR))),
    "128 another output shape": (
        "LK-8007",
        bundle_bytes(
            "3.0.2", golden=GOLDEN,
            model=model(*mean_of("images"), weights={"pair": np.array([[0.5, 0.5, 0.5]], np.float32)}),
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", REFUSED_BY_THE_TRIAL)
def test_a_hostile_model_is_refused_by_its_trial(line: Device, attack: str) -> None:
    code, data = REFUSED_BY_THE_TRIAL[attack]
    operation = sent(line, data)
    assert operation.state == "failed" and operation.error is not None
    assert operation.error.code == code, operation.error
    assert_untouched(line)
