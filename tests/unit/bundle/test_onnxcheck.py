"""What the static scan says about good models, and that it refuses hostile ones before a loader sees them."""

import mmap
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, ModelProto, TensorProto, helper

from lenskeep.bundle import onnxcheck
from lenskeep.bundle.onnxcheck import TensorFacts, scan
from lenskeep.errors import ModelRefusedError
from tests.unit.bundle.onnxmodels import (
    OPSETS,
    branch,
    by_hand,
    cnn,
    everything,
    external,
    facts_by_onnx,
    field,
    functions,
    loop,
    many_kinds,
    model,
    packed,
    refuse,
    sparse,
    value,
    weight,
    with_tensor,
)

SAMPLES = sorted((Path(__file__).parents[3] / "scripts/samples/models").glob("*.onnx"))


# --- good models -------------------------------------------------------------------------------------------


def test_small_cnn_is_described() -> None:
    facts = scan(cnn().SerializeToString())
    assert facts.inputs == (TensorFacts("images", "float32", ("batch", 3, 32, 32)),)
    assert facts.outputs[0] == TensorFacts("scores", "float32", ("batch", 5))
    assert (facts.ir_version, facts.opset, facts.opsets) == (8, 17, {"": 17})
    assert facts.nodes == 11
    assert {"Conv", "Gemm", "Constant"} <= facts.op_types
    assert facts.parameters == 8 * 27 + 8 + 1 + 16 * 72 + 5 * 16 + 5
    assert facts.producer == "tests 1.2"
    assert facts.metadata == {"classes": "good, scratch, dent", "author": "Zoë"}


@pytest.mark.parametrize(
    "build",
    [model, cnn, many_kinds, everything, lambda: branch(3), lambda: loop(growing=True)],
    ids=["relu", "cnn", "many kinds", "everything", "branches", "loop"],
)
@pytest.mark.parametrize("wrap", [bytes, memoryview])
def test_facts_are_those_of_the_onnx_package(build: Callable[[], ModelProto], wrap: type) -> None:
    data = build().SerializeToString()
    assert scan(wrap(data), control_flow_allowed=True) == facts_by_onnx(data)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_sample_models_are_described_as_the_onnx_package_does(path: Path) -> None:
    data = path.read_bytes()
    assert scan(data) == facts_by_onnx(data)


def test_model_of_a_foreign_set_that_no_node_uses_is_accepted() -> None:
    imports = OPSETS | {"com.microsoft.nchwc": 1, "ai.onnx.preview.training": 1, "org.pytorch.aten": 1}
    assert scan(model(opsets=imports).SerializeToString()).opsets == imports


def test_newest_supported_versions_are_accepted() -> None:
    built = model(opsets=dict(onnxcheck.OPSETS_MAX), ir_version=onnxcheck.IR_VERSION_MAX)
    assert scan(built.SerializeToString()).opset == onnxcheck.OPSETS_MAX[""]


def test_control_flow_passes_only_when_allowed() -> None:
    data = branch(onnxcheck.GRAPH_DEPTH_MAX - 1).SerializeToString()
    assert scan(data, control_flow_allowed=True).op_types == {"If", "Relu", "Abs"}
    refuse(data, "control flow")


# --- data outside the file ---------------------------------------------------------------------------------


@pytest.mark.attack(104)
def test_external_data_dotdot_is_refused() -> None:
    for location in ("../secret", "sub/../../secret"):
        refuse(with_tensor(external(weight(), location)), "outside the model file")


@pytest.mark.attack(105)
def test_external_data_absolute_is_refused() -> None:
    refuse(with_tensor(external(weight(), "/etc/shadow")), "outside the model file")


@pytest.mark.attack(106, 107)
def test_external_data_symlink_or_hardlink_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 24)
    (tmp_path / "soft.bin").symlink_to(tmp_path / "secret")
    (tmp_path / "hard.bin").hardlink_to(tmp_path / "secret")
    for location in ("soft.bin", "hard.bin"):
        refuse(with_tensor(external(weight(), location)), "outside the model file")


@pytest.mark.attack(108)
def test_external_data_device_is_refused() -> None:
    refuse(with_tensor(external(weight(), "/dev/zero")), "outside the model file")


@pytest.mark.attack(109)
def test_external_data_lying_offset_or_length_is_refused() -> None:
    for entries in ({"offset": "-1"}, {"length": "9" * 30}, {"offset": "0", "length": "24"}):
        refuse(with_tensor(external(weight(), "weights.bin", **entries)), "outside the model file")


def test_external_data_in_the_memory_of_the_process_is_refused() -> None:
    refuse(with_tensor(external(weight(), "*/_ORT_MEM_ADDR_/*", offset="4096", length="24")), "outside the model")


@pytest.mark.attack(109)
def test_external_data_without_its_flag_or_entries_is_refused() -> None:
    entries_only = external(weight(), "weights.bin")
    entries_only.ClearField("data_location")
    refuse(with_tensor(entries_only), "outside the model file")
    default = external(weight(), "weights.bin")
    default.data_location = TensorProto.DEFAULT
    default.raw_data = b"\0" * 24
    refuse(with_tensor(default), "outside the model file")
    flag_only = weight()
    flag_only.data_location = TensorProto.EXTERNAL
    refuse(with_tensor(flag_only), "outside the model file")


def test_external_data_anywhere_in_the_model_is_refused() -> None:
    hidden = external(weight(), "../secret")
    in_sparse = sparse()
    external(in_sparse.values, "../secret")
    in_indices = sparse()
    external(in_indices.indices, "../secret")
    attributes = {
        "value": hidden,
        "tensors": [hidden],
        "sparse_value": in_sparse,
        "sparse_indices": in_indices,
        "sparse_tensors": [in_sparse],
    }
    for name, hostile in attributes.items():
        refuse(model([helper.make_node("Constant", [], ["y"], **{name: hostile})]), "outside the model file")
    initializer = model()
    initializer.graph.sparse_initializer.append(in_sparse)
    refuse(initializer, "outside the model file")
    inside = branch()
    inside.graph.node[0].attribute[0].g.initializer.append(hidden)
    refuse(inside, "outside the model file", control_flow_allowed=True)
    training = model()
    training.training_info.add().algorithm.initializer.append(hidden)
    refuse(training, "training")


def test_compiled_part_is_refused() -> None:
    for operator in ("EPContext", "Snpe"):
        node = helper.make_node(operator, ["x"], ["y"], domain="com.microsoft", ep_cache_context="../x.engine")
        refuse(model([node], opsets=OPSETS | {"com.microsoft": 1}), "compiled part")


# --- work without end --------------------------------------------------------------------------------------


@pytest.mark.attack(113)
def test_endless_loop_is_refused() -> None:
    refuse(loop(growing=False), r"control flow \(Loop\)")


@pytest.mark.attack(114)
def test_loop_with_growing_memory_is_refused() -> None:
    refuse(loop(growing=True), r"control flow \(Loop\)")


def test_scan_operator_is_refused() -> None:
    body = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "body", [value("a")], [value("b")])
    refuse(
        model([helper.make_node("Scan", ["x"], ["y"], body=body, num_scan_inputs=1)]),
        r"control flow \(Scan\)",
    )


@pytest.mark.attack(115)
def test_if_nested_thirty_times_is_refused() -> None:
    refuse(branch(30), r"control flow \(If\)")
    refuse(branch(30), "nests graphs deeper than 8", control_flow_allowed=True)
    refuse(branch(onnxcheck.GRAPH_DEPTH_MAX), "nests graphs deeper than 8", control_flow_allowed=True)


def test_graph_in_any_other_operator_is_refused() -> None:
    body = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "body", [value("a")], [value("b")])
    refuse(model([helper.make_node("SequenceMap", ["x"], ["y"], body=body)]), "the graph 'body'")
    refuse(model([helper.make_node("Relu", ["x"], ["y"], bodies=[body])]), "the graph 'bodies'")
    unsaid = model([helper.make_node("Relu", ["x"], ["y"], body=body)])
    unsaid.graph.node[0].attribute[0].type = AttributeProto.UNDEFINED
    refuse(unsaid, "another type than it says")
    empty = model([helper.make_node("Relu", ["x"], ["y"], body=1)])
    empty.graph.node[0].attribute[0].ClearField("i")
    empty.graph.node[0].attribute[0].type = AttributeProto.GRAPH
    refuse(empty, "the graph 'body'")


@pytest.mark.attack(116)
def test_function_recursion_is_refused() -> None:
    refuse(functions({"f": ["f"]}), "local functions")


@pytest.mark.attack(117)
def test_function_billion_laughs_is_refused() -> None:
    bodies = {f"f{level}": [f"f{level + 1}"] * 2 for level in range(28)} | {"f28": ["Relu"]}
    refuse(functions(bodies), "local functions")


@pytest.mark.attack(118)
def test_function_chain_three_thousand_deep_is_refused() -> None:
    bodies = {f"f{level}": [f"f{level + 1}"] for level in range(3000)} | {"f3000": ["Relu"]}
    refuse(functions(bodies), "local functions")


def test_function_that_nobody_calls_is_refused() -> None:
    built = functions({"f": ["Relu"]})
    built.graph.node[0].CopyFrom(helper.make_node("Relu", ["x"], ["y"]))
    refuse(built, "local functions")


def test_reference_to_a_function_attribute_is_refused() -> None:
    built = model([helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.1)])
    built.graph.node[0].attribute[0].ref_attr_name = "slope"
    refuse(built, "refers to a function")


@pytest.mark.parametrize("kind", ["cycle", "constant of 16 GiB", "resize bomb"])
def test_what_only_running_can_show_is_left_to_the_trial(kind: str) -> None:
    nodes = {
        "cycle": [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])],
        "constant of 16 GiB": [helper.make_node("ConstantOfShape", ["n"], ["y"])],
        "resize bomb": [helper.make_node("Resize", ["x", "", "by"], ["y"])],
    }[kind]
    constants = [
        helper.make_tensor("n", TensorProto.INT64, [1], [1 << 32]),
        helper.make_tensor("by", TensorProto.FLOAT, [2], [4000.0, 4000.0]),
    ]
    assert scan(model(nodes, initializers=constants).SerializeToString()).nodes == len(nodes)


# --- operators and versions --------------------------------------------------------------------------------


@pytest.mark.attack(119)
@pytest.mark.parametrize(
    "domain",
    [
        "my.company",
        "com.microsoft.nchwc",
        "com.ms.internal.nhwc",
        "ai.onnx.preview.training",
        "AI.ONNX",
        "a\0",
    ],
)
def test_operator_of_a_foreign_domain_is_refused(domain: str) -> None:
    node = helper.make_node("Conv", ["x"], ["y"], domain=domain)
    refuse(model([node], opsets=OPSETS | {domain: 1}), "an operator unknown to this device")


def test_operator_whose_set_is_not_imported_is_refused() -> None:
    refuse(model([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")]), "without importing")
    refuse(model(opsets={"com.microsoft": 1}), "without importing")


def test_operator_without_a_name_is_refused() -> None:
    refuse(model([helper.make_node("", ["x"], ["y"])]), "without an operator")


@pytest.mark.attack(121)
@pytest.mark.parametrize("ir_version", [14, 15, 1 << 40, 0, -1])
def test_future_or_absent_ir_version_is_refused_and_says_what_is_supported(ir_version: int) -> None:
    refuse(model(ir_version=ir_version), f"IR version {ir_version}; this device supports 1 to 13")


@pytest.mark.attack(121)
@pytest.mark.parametrize("version", [27, 1000, 1 << 62, 0, -7])
def test_future_opset_is_refused_and_says_what_is_supported(version: int) -> None:
    refuse(model(opsets={"": version}), f"version {version} of the operator set ''; this device supports 1 to 26")


@pytest.mark.attack(121)
def test_future_opset_of_another_set_is_refused() -> None:
    refuse(model(opsets=OPSETS | {"com.microsoft": 2}), "this device supports 1 to 1")
    refuse(model(opsets=OPSETS | {"ai.onnx.ml": 6}), "this device supports 1 to 5")


def test_two_versions_of_one_operator_set_are_refused() -> None:
    refuse(model(opsets={"": 17, "ai.onnx": 3}), "imports the operator set '' twice")


# --- files that are no model -------------------------------------------------------------------------------


@pytest.mark.attack(122)
def test_empty_file_is_refused() -> None:
    refuse(b"", "is empty")


@pytest.mark.attack(122)
@pytest.mark.parametrize("data", [b"\0", b"garbage", b"PK\3\4", b"\x7fELF", b"\xff" * 64, b"{}", b"\n", b"<html>"])
def test_garbage_is_refused(data: bytes) -> None:
    refuse(data, "The model")


@pytest.mark.attack(122)
def test_truncated_file_is_refused_at_every_byte() -> None:
    data = cnn().SerializeToString()
    whole = scan(data)
    for length in {*range(1, 400), *range(400, len(data), 97), len(data) - 1}:
        try:
            assert scan(data[:length]) != whole
        except ModelRefusedError:
            continue
        ModelProto.FromString(data[:length])  # what is left is a whole model, only of fewer fields


@pytest.mark.attack(122)
@pytest.mark.parametrize("tail", [b"\0", b"\n", b"\xff\xff", b"garbage", b"\0" * 512])
def test_trailing_garbage_is_refused(tail: bytes) -> None:
    refuse(cnn().SerializeToString() + tail, "The model")


@pytest.mark.attack(123)
def test_file_of_more_than_two_gibibytes_is_refused() -> None:
    with mmap.mmap(-1, 1 << 31) as memory, memoryview(memory) as view:
        refuse(view, "2147483648 bytes; at most 2147483647")


def test_model_without_graph_or_outputs_is_refused() -> None:
    built = model()
    built.ClearField("graph")
    refuse(built, "holds no graph")
    built = model()
    del built.graph.output[:]
    refuse(built, "without outputs")


def test_value_with_two_types_is_refused() -> None:
    tensor, sequence = value("x").type, helper.make_sequence_type_proto(value("x").type)
    both = field(11, field(1, b"z") + field(2, tensor.SerializeToString() + sequence.SerializeToString()))
    refuse(by_hand(both), "two types")
    dimension = field(1, field(1, 4) + field(2, b"n"))
    refuse(
        by_hand(field(11, field(1, b"z") + field(2, field(1, field(1, 1) + field(2, dimension))))),
        "a size and a name",
    )


def test_attribute_whose_type_and_value_disagree_is_refused() -> None:
    node = model().graph.node[0].SerializeToString()
    for attribute in (
        field(20, 2) + field(4, b"text"),  # said to be an integer
        field(20, 2) + field(3, 1) + field(4, b"text"),  # an integer and a text
        field(3, 1),  # said to be nothing
        field(20, 15),  # no such type
        field(20, -1),
    ):
        refuse(by_hand(field(1, node + field(5, field(1, b"a") + attribute))), "another type than it says")


def test_names_given_twice_are_refused() -> None:
    refuse(model(initializers=[weight(), weight()]), "initializer 'w' twice")
    both = model(initializers=[weight(name="s")])
    both.graph.sparse_initializer.append(sparse("s"))
    refuse(both, "initializer 's' twice")
    refuse(model(inputs=[value("x"), value("x")]), "input or output 'x' twice")
    node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.1)
    node.attribute.append(helper.make_attribute("alpha", 0.2))
    refuse(model([node]), "attribute 'alpha' twice")
    data = model().SerializeToString()
    entry = field(14, field(1, b"k") + field(2, b"v"))
    assert scan(data + entry).metadata == {"k": "v"}
    refuse(data + entry + entry, "one metadata key twice")


# --- files that are too much -------------------------------------------------------------------------------


def test_too_many_nodes_are_refused() -> None:
    node = field(1, field(4, b"Relu"))
    refuse(by_hand(node * (onnxcheck.NODES_MAX + 1)), "more than 100000 nodes")


def test_types_nested_too_deep_are_refused() -> None:
    inner = value("z").type
    for _ in range(onnxcheck.TYPE_DEPTH_MAX - 1):
        inner = helper.make_sequence_type_proto(inner)
    assert scan(model(inputs=[helper.make_value_info("z", inner)]).SerializeToString()).inputs[0].dtype == "sequence"
    for _ in range(20):
        inner = helper.make_sequence_type_proto(inner)
        refuse(model(inputs=[helper.make_value_info("z", inner)]), "nests types deeper than 8")


def test_long_names_texts_and_lists_are_refused() -> None:
    refuse(model(inputs=[value("x" * 1025)]), "a name of 1025 characters")
    refuse(model(inputs=[value("x", ("n" * 1025,))]), "a name of 1025 characters")
    refuse(model([helper.make_node("R" * 1025, ["x"], ["y"])]), "a name of 1025 characters")
    refuse(model().SerializeToString() + field(6, b"d" * ((1 << 20) + 1)), "a text of 1048577 bytes")
    many = [value(f"x{number}") for number in range(1025)]
    refuse(model(inputs=many), "more than 1024 inputs or outputs")
    refuse(model(outputs=many), "more than 1024 inputs or outputs")
    entries = b"".join(field(14, field(1, bytes([65 + at])) + field(2, b"v" * 600_000)) for at in range(2))
    refuse(model().SerializeToString() + entries, "metadata is longer")


def test_foreign_text_in_the_message_is_ascii_and_short() -> None:
    name = "\x1b[2J\u202e" + "n" * 500
    refuse(with_tensor(external(weight(name=name), "../secret")), "outside the model file")


# --- chance ------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(changed))
        match rng.randrange(6):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)])
            case 2:
                del changed[at : at + rng.choice([1, 2, 8, 100])]
            case 3:
                changed[at:at] = rng.randbytes(rng.choice([1, 2, 8]))
            case 4:
                changed[at:at] = changed[max(0, at - rng.randrange(1, 40)) : at]
            case 5:
                changed[at : at + 10] = b"\xff" * 9 + b"\x01"
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.parametrize("control_flow_allowed", [False, True])
def test_mutated_model_is_refused_or_says_what_the_onnx_package_says(control_flow_allowed: bool) -> None:
    seed = 20_261
    print(f"seed {seed}")
    rng = random.Random(seed)
    sources = [built.SerializeToString() for built in (model(), everything(), many_kinds(), branch(2))]
    sources += [packed()]
    accepted = 0
    for _ in range(1_500):
        data = mutated(rng.choice(sources), rng)
        start = time.perf_counter()
        try:
            facts = scan(data, control_flow_allowed=control_flow_allowed)
        except ModelRefusedError:
            continue
        finally:
            assert time.perf_counter() - start < 1
        accepted += 1
        assert facts == facts_by_onnx(data)
    assert accepted > 50  # else this test would compare nothing


@settings(deadline=None)
@given(
    st.binary(max_size=400)
    | st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=20) | st.integers())).map(
        lambda fields: b"".join(field(number, content) for number, content in fields)
    )
)
def test_any_bytes_are_refused_and_nothing_else_happens(data: bytes) -> None:
    with pytest.raises(ModelRefusedError):
        scan(data, control_flow_allowed=True)
