"""A model that is not what its manifest says is refused before it is loaded."""

from typing import Any

import onnx
import pytest

from lenskeep.bundle import disk, manifest
from lenskeep.bundle.modelcheck import check_model
from lenskeep.errors import ManifestError, ModelRefusedError
from tests import tinybundle


def parsed(**changes: Any) -> manifest.Manifest:
    facts = tinybundle.facts()
    for name, value in changes.items():
        facts[name] = {**facts[name], **value} if isinstance(value, dict) else value
    return manifest.parse(tinybundle.parts(facts)["model.json"])


def model() -> onnx.ModelProto:
    return onnx.load_model_from_string(tinybundle.model_bytes())


def test_a_model_that_keeps_its_promises_is_described() -> None:
    facts = check_model(parsed(), tinybundle.model_bytes())
    assert (facts.opset, facts.nodes) == (17, 3)


@pytest.mark.attack(125, 128)
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"input": {"name": "picture"}}, "no input 'picture'"),
        ({"input": {"dtype": "uint8"}}, "is uint8"),
        ({"input": {"shape": [1, 3, 8, 8]}}, r"shape \[1, 3, 8, 8\]"),
        ({"outputs": [{"name": "boxes", "shape": [1, 3]}]}, "no output 'boxes'"),
        ({"outputs": [{"name": "scores", "dtype": "int64", "shape": [1, 3]}]}, "is int64"),
        ({"requires": {"opset": 18}}, "opset is 18"),
    ],
)
def test_125_128_a_manifest_that_says_something_else_is_refused(changes: dict[str, Any], what: str) -> None:
    with pytest.raises(ManifestError, match=what):
        check_model(parsed(**changes), tinybundle.model_bytes())


def test_open_sizes_in_the_model_are_no_contradiction() -> None:
    open_model = model()
    for dim in open_model.graph.input[0].type.tensor_type.shape.dim:
        dim.dim_param = "any"
    open_model.graph.output[0].type.tensor_type.ClearField("shape")
    check_model(parsed(), open_model.SerializeToString())


@pytest.mark.attack(125)
def test_125_another_rank_is_a_contradiction() -> None:
    flat = model()
    flat.graph.input[0].type.tensor_type.shape.dim.pop()
    with pytest.raises(ManifestError, match="shape"):
        check_model(parsed(), flat.SerializeToString())


def test_a_second_input_is_refused() -> None:
    two = model()
    two.graph.input.add().CopyFrom(two.graph.input[0])
    two.graph.input[1].name = "other"
    with pytest.raises(ManifestError, match="one input"):
        check_model(parsed(), two.SerializeToString())


def test_further_outputs_may_be_there() -> None:
    more = model()
    more.graph.output.add().CopyFrom(more.graph.output[0])
    more.graph.output[1].name = "flat"
    check_model(parsed(), more.SerializeToString())


def test_a_mapped_model_is_refused_by_its_own_fault(tmp_path) -> None:
    """A mapping cannot be closed while the refusal's traceback looks at it; that must not hide the refusal."""
    (tmp_path / "model.onnx").write_bytes(b"no model at all")
    with pytest.raises(ModelRefusedError), disk.mapped(tmp_path / "model.onnx") as data:
        check_model(parsed(), data)
