"""Good and hostile ONNX models for the tests, and what the onnx package itself says about a model."""

from collections.abc import Iterable

import numpy as np
import onnx
import pytest
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    TypeProto,
    helper,
    numpy_helper,
)

from lenskeep.bundle import onnxtensor
from lenskeep.bundle.onnxcheck import OnnxFacts, TensorFacts, scan
from lenskeep.errors import ModelRefusedError

OPSETS = {"": 17}


def value(
    name: str, shape: Iterable[int | str | None] | None = (1, 4), dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, None if shape is None else list(shape))


def model(
    nodes: Iterable[NodeProto] = (),
    *,
    inputs: Iterable[onnx.ValueInfoProto] = (),
    outputs: Iterable[onnx.ValueInfoProto] = (),
    initializers: Iterable[TensorProto] = (),
    opsets: dict[str, int] | None = None,
    ir_version: int = 10,
) -> ModelProto:
    """Build a model; without anything said, one Relu from x to y."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("Relu", ["x"], ["y"])],
        "graph",
        list(inputs) or [value("x")],
        list(outputs) or [value("y")],
        list(initializers),
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in (opsets or OPSETS).items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir_version, producer_name="tests")


def with_tensor(tensor: TensorProto) -> ModelProto:
    return model(initializers=[tensor])


def cnn() -> ModelProto:
    """A small classifier as exporters write it: a named batch size, metadata, inferred shapes."""
    rng = np.random.default_rng(1)

    def weight(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["images", "w1", "b1"], ["c1"], kernel_shape=[3, 3], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("Clip", ["c1", "", "six"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], kernel_shape=[3, 3], auto_pad="SAME_UPPER"),
        helper.make_node("LeakyRelu", ["c2"], ["r2"], alpha=0.1),
        helper.make_node("GlobalAveragePool", ["r2"], ["g"]),
        helper.make_node("Flatten", ["g"], ["f"]),
        helper.make_node("Constant", [], ["scale"], value=helper.make_tensor("", TensorProto.FLOAT, [], [0.5])),
        helper.make_node("Mul", ["f", "scale"], ["m"]),
        helper.make_node("Gemm", ["m", "w3", "b3"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    built = model(
        nodes,
        inputs=[value("images", ("batch", 3, 32, 32)), value("w1", (8, 3, 3, 3))],
        outputs=[value("scores", ("batch", 5)), value("logits", None)],
        initializers=[
            weight("w1", 8, 3, 3, 3),
            weight("b1", 8),
            helper.make_tensor("six", TensorProto.FLOAT, [], [6.0]),
            weight("w2", 16, 8, 3, 3),
            weight("w3", 5, 16),
            weight("b3", 5),
        ],
        ir_version=8,
    )
    helper.set_model_props(built, {"classes": "good, scratch, dent", "author": "Zoë"})
    built.producer_version = "1.2"
    return onnx.shape_inference.infer_shapes(built)


def branch(depth: int = 1) -> ModelProto:
    """A model with `If` inside `If`, `depth` levels of them."""
    node = helper.make_node("Relu", ["x"], ["y0"])
    for level in range(1, depth + 1):
        graphs = [
            helper.make_graph([node], f"then{level}", [], [value(f"y{level - 1}")]),
            helper.make_graph([helper.make_node("Abs", ["x"], ["a"])], f"else{level}", [], [value("a")]),
        ]
        node = helper.make_node("If", ["c"], [f"y{level}"], then_branch=graphs[0], else_branch=graphs[1])
    inputs = [value("x"), value("c", (), TensorProto.BOOL)]
    return model([node], inputs=inputs, outputs=[value(f"y{depth}")])


def loop(*, growing: bool) -> ModelProto:
    """A `Loop` that never ends; a growing one also keeps every step's result."""
    body_nodes = [
        helper.make_node("Identity", ["go"], ["go_on"]),
        helper.make_node("Relu", ["state"], ["next"]),
    ]
    body_outputs = [value("go_on", (), TensorProto.BOOL), value("next")]
    outputs = ["y"]
    if growing:
        body_nodes.append(helper.make_node("Identity", ["state"], ["kept"]))
        body_outputs.append(value("kept"))
        outputs.append("all")
    body = helper.make_graph(
        body_nodes,
        "body",
        [value("step", (), TensorProto.INT64), value("go", (), TensorProto.BOOL), value("state")],
        body_outputs,
    )
    node = helper.make_node("Loop", ["", "go", "x"], outputs, body=body)
    go = helper.make_tensor("go", TensorProto.BOOL, [], [True])
    return model([node], outputs=[value(name, None) for name in outputs], initializers=[go])


def functions(bodies: dict[str, list[str]]) -> ModelProto:
    """A model with local functions by name, each calling those listed for it one after the other."""
    built = model([helper.make_node(next(iter(bodies)), ["x"], ["y"], domain="local")], opsets=OPSETS | {"local": 1})
    for name, calls in bodies.items():
        values = ["i", *[f"v{number}" for number in range(1, len(calls))], "o"]
        nodes = [
            helper.make_node(call, [values[at]], [values[at + 1]], domain="" if call == "Relu" else "local")
            for at, call in enumerate(calls)
        ]
        imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
        built.functions.append(helper.make_function("local", name, ["i"], ["o"], nodes, imports))
    return built


def sparse(name: str = "s") -> onnx.SparseTensorProto:
    values = helper.make_tensor(name, TensorProto.FLOAT, [2], [1.0, 2.0])
    indices = helper.make_tensor("", TensorProto.INT64, [2], [0, 3])
    return helper.make_sparse_tensor(values, indices, [1, 4])


def external(tensor: TensorProto, location: str, **entries: str) -> TensorProto:
    """Make a tensor say that its data lies in a file."""
    tensor.ClearField("raw_data")
    tensor.ClearField("float_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=text)
    return tensor


def refuse(data: bytes | memoryview | ModelProto, reason: str, *, control_flow_allowed: bool = False) -> None:
    """Expect a refusal in one plain sentence."""
    if isinstance(data, ModelProto):
        data = data.SerializeToString()
    with pytest.raises(ModelRefusedError, match=reason) as caught:
        scan(data, control_flow_allowed=control_flow_allowed)
    sentence = str(caught.value)
    assert sentence.isascii() and sentence.isprintable() and sentence.endswith(".") and len(sentence) < 400


def weight(shape: tuple[int, ...] = (2, 3), name: str = "w") -> TensorProto:
    count = 1
    for size in shape:
        count *= size
    return helper.make_tensor(name, TensorProto.FLOAT, shape, b"\0" * 4 * count, raw=True)


def many_kinds() -> ModelProto:
    """Inputs of every kind that ONNX knows, tensors or not."""
    inputs = [value(f"t{number}", ("n", number, None), number) for number in onnxtensor.ELEMENT_TYPES]
    inputs += [
        helper.make_tensor_sequence_value_info("sequence", TensorProto.FLOAT, ["n", 2]),
        helper.make_value_info("optional", helper.make_optional_type_proto(inputs[0].type)),
        helper.make_value_info("map", helper.make_map_type_proto(TensorProto.STRING, inputs[0].type)),
        helper.make_sparse_tensor_value_info("sparse", TensorProto.FLOAT, [3, 0]),
        helper.make_value_info("untyped", TypeProto()),
        value("scalar", ()),
        value("unknown", (1,), 27),
        value("x"),
    ]
    return model(inputs=inputs, outputs=[value("y", None)])


def everything() -> ModelProto:
    """Rare but legal parts: sparse constants, annotations, device configurations, metadata on every level."""
    built = model(
        [
            helper.make_node("Relu", ["x"], ["r"], domain="ai.onnx"),
            helper.make_node("FusedConv", ["r", "w"], ["f"], domain="com.microsoft", activation="Relu"),
            helper.make_node("LabelEncoder", ["k"], ["l"], domain="ai.onnx.ml", keys_strings=["a", "b"]),
            helper.make_node("Constant", [], ["k"], sparse_value=sparse("")),
            helper.make_node("Optional", [], ["o"], type=value("t").type),
            helper.make_node("Constant", [], ["floats"], value_floats=[1.0, 2.0, 3.0]),
        ],
        outputs=[value("f", None)],
        initializers=[weight()],
        opsets={"ai.onnx": 21, "com.microsoft": 1, "ai.onnx.ml": 3, "com.microsoft.nchwc": 1},
        ir_version=11,
    )
    graph = built.graph
    graph.sparse_initializer.append(sparse())
    for part in (built, graph, graph.node[0], graph.input[0], graph.initializer[0]):
        part.metadata_props.add(key="note", value="kept")
    annotation = graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="s")
    built.configuration.add(name="two", num_devices=2).device.extend(["a", "b"])
    sharding = graph.node[0].device_configurations.add(configuration_id="two").sharding_spec.add(tensor_name="x")
    sharding.device.extend([0, -1])
    sharding.sharded_dim.add(axis=-1).simple_sharding.add(dim_param="n", num_shards=2)
    return built


# --- models written by hand --------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    number &= (1 << 64) - 1
    encoded = b""
    while number > 0x7F:
        encoded += bytes([number & 0x7F | 0x80])
        number >>= 7
    return encoded + bytes([number])


def field(number: int, content: bytes | int) -> bytes:
    """Write one field by hand: a number as a varint, bytes with their length."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def by_hand(graph: bytes, *, tail: bytes = b"") -> bytes:
    """Write a whole model by hand around the fields of its graph that come before the nodes."""
    return field(1, 8) + field(8, field(2, 17)) + field(7, graph + model().graph.SerializeToString()) + tail


def packed() -> bytes:
    """A model whose lists of numbers are packed, as other writers than the onnx package do it."""
    dims = field(1, varint(2) + varint(150))
    floats = field(5, dims + field(2, 1) + field(8, b"f") + field(4, b"\0" * 1200))
    integers = field(5, dims + field(2, 7) + field(8, b"i") + field(7, varint(-1) * 3 + varint(7) * 297))
    return by_hand(floats + integers)


# --- what the onnx package says ----------------------------------------------------------------------------


def facts_by_onnx(data: bytes) -> OnnxFacts:
    """Say about a model what the scan should say, from the onnx package's own reading of it."""
    parsed = onnx.load_model_from_string(data)
    graphs = list(_graphs(parsed.graph))
    nodes = [node for graph in graphs for node in graph.node]
    opsets = {_domain(opset.domain): opset.version for opset in parsed.opset_import}
    constants = {tensor.name for tensor in parsed.graph.initializer}
    constants |= {tensor.values.name for tensor in parsed.graph.sparse_initializer}
    return OnnxFacts(
        ir_version=parsed.ir_version,
        opset=opsets.get("", 0),
        opsets=opsets,
        inputs=tuple(_value_facts(value) for value in parsed.graph.input if value.name not in constants),
        outputs=tuple(_value_facts(value) for value in parsed.graph.output),
        nodes=len(nodes),
        op_types=frozenset(f"{_domain(node.domain)}.{node.op_type}".removeprefix(".") for node in nodes),
        parameters=sum(_parameters(graph) for graph in graphs),
        producer=f"{parsed.producer_name} {parsed.producer_version}".strip(),
        metadata={entry.key: entry.value for entry in parsed.metadata_props},
    )


def _graphs(graph: GraphProto) -> Iterable[GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [
                *([attribute.g] if attribute.type == AttributeProto.GRAPH else []),
                *attribute.graphs,
            ]:
                yield from _graphs(inner)


def _parameters(graph: GraphProto) -> int:
    dense = sum(int(np.prod(tensor.dims, dtype=object)) for tensor in graph.initializer)
    return dense + sum(int(np.prod(tensor.values.dims, dtype=object)) for tensor in graph.sparse_initializer)


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _value_facts(value_info: onnx.ValueInfoProto) -> TensorFacts:
    kind = value_info.type.WhichOneof("value")
    if kind is None:
        return TensorFacts(value_info.name, "undefined", None)
    inner = getattr(value_info.type, kind)
    shape = None
    if kind in ("tensor_type", "sparse_tensor_type") and inner.HasField("shape"):
        shape = tuple(getattr(dim, dim.WhichOneof("value") or "dim_param") or _zero(dim) for dim in inner.shape.dim)
    dtype = _dtype(inner) if kind == "tensor_type" else kind.removesuffix("_type")
    return TensorFacts(value_info.name, dtype, shape)


def _zero(dim: onnx.TensorShapeProto.Dimension) -> int | None:
    return 0 if dim.WhichOneof("value") == "dim_value" else None


def _dtype(tensor: TypeProto.Tensor) -> str:
    if tensor.elem_type == TensorProto.STRING:
        return "string"
    if tensor.elem_type in range(1, TensorProto.FLOAT6E2M3):
        return str(helper.tensor_dtype_to_np_dtype(tensor.elem_type).name)
    return f"type {tensor.elem_type}" if tensor.elem_type else "undefined"
