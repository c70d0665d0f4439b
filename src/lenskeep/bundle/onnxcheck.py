"""What an ONNX file says about itself, found without loading it, and what makes a device refuse it unloaded.

Rules. The whole file is walked, message by message, and nothing is taken on trust: sizes agree with the
bytes that are there, every part stands in this one file, operators come from the sets that the runtime
ships, and what can repeat work without end (local functions, loops) is absent or, for control flow,
expressly allowed.
Not here: whether the graph computes anything sensible, how much memory it takes, whether it ends; a trial
run in a process of its own finds that out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lenskeep.bundle import onnxformat, onnxtensor
from lenskeep.bundle.protowire import DIMS_MAX, Message, Reader, Span, shown
from lenskeep.errors import ModelRefusedError

IR_VERSION_MAX = onnxformat.IR_VERSION
OPSETS_MAX = {
    "": 26,
    "ai.onnx.ml": 5,
    "com.microsoft": 1,
}  # allowed domain -> newest version; as onnxruntime 1.31 runs them
MODEL_BYTES_MAX = (1 << 31) - 1  # where protobuf ends
NODES_MAX = 100_000
GRAPH_DEPTH_MAX = 8
TYPE_DEPTH_MAX = 8
VALUES_MAX = 1_024  # inputs, or outputs, of one graph
NAME_LENGTH_MAX = 1_024
METADATA_LENGTH_MAX = 1 << 20  # keys and values together

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
OPAQUE = frozenset({"com.microsoft.EPContext", "com.microsoft.Snpe"})  # hold compiled code, or the path of a file

_ATTRIBUTE_LABELS = frozenset({"name", "doc_string", "type", "ref_attr_name"})

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """One input or output of the graph.

    `dtype` is numpy's name, or the kind of what is no tensor ("sequence"). In `shape`, a name or None stands
    for a size that is open; None instead of a shape says that even the rank is.
    """

    name: str
    dtype: str
    shape: Shape | None


@dataclass(frozen=True, slots=True)
class OnnxFacts:
    """What a model file says about itself.

    `inputs` are those that the caller has to feed; `opset` is the version of ONNX's own operators, 0 when the
    model uses none of them.
    """

    ir_version: int
    opset: int
    opsets: dict[str, int]
    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]
    nodes: int
    op_types: frozenset[str]
    parameters: int
    producer: str
    metadata: dict[str, str]


def scan(data: bytes | memoryview, *, control_flow_allowed: bool = False) -> OnnxFacts:
    """Walk through a serialised ONNX model and say what it is, or refuse it.

    Args:
        data: the very bytes that the session will be made from; a memoryview must be contiguous.
        control_flow_allowed: whether If, Loop, Scan and whatever else holds a graph of its own may pass.
    Returns: facts over the whole model, subgraphs included; operators of other sets carry their domain
        ("com.microsoft.FusedConv").
    Raises: ModelRefusedError with one sentence that names what is wrong.
    Cost: in proportion to nodes and attributes, whatever the weights weigh.
    """
    size = memoryview(data).nbytes
    if not size:
        raise ModelRefusedError("The model file is empty.")
    if size > MODEL_BYTES_MAX:
        raise ModelRefusedError(f"The model file has {size} bytes; at most {MODEL_BYTES_MAX} can be read.")
    return _Scan(data, control_flow_allowed).model((0, size))


class _Scan:
    """One walk through one file; each method is named after what it walks through."""

    def __init__(self, data: bytes | memoryview, control_flow_allowed: bool) -> None:
        self._reader = Reader(data)
        self._control_flow_allowed = control_flow_allowed
        self._opsets: dict[str, int] = {}
        self._op_types: set[str] = set()
        self._nodes = 0
        self._parameters = 0

    def model(self, span: Span) -> OnnxFacts:
        model = self._read("ModelProto", span)
        _check_model(model)
        self._opset_imports(model.each("opset_import"))
        metadata = self._metadata(model.each("metadata_props"))
        self._look_through("DeviceConfigurationProto", model.each("configuration"))
        inputs, outputs = self._graph(model.each("graph")[0], depth=1)
        return OnnxFacts(
            ir_version=model.integer("ir_version"),
            opset=self._opsets.get("", 0),
            opsets=self._opsets,
            inputs=inputs,
            outputs=outputs,
            nodes=self._nodes,
            op_types=frozenset(self._op_types),
            parameters=self._parameters,
            producer=_name(f"{model.text('producer_name')} {model.text('producer_version')}".strip()),
            metadata=metadata,
        )

    def _opset_imports(self, spans: Iterable[Span]) -> None:
        for span in spans:
            opset = self._read("OperatorSetIdProto", span)
            domain, version = _domain(opset), opset.integer("version")
            newest = OPSETS_MAX.get(domain, version)  # a foreign set does no harm until a node uses it
            if domain in self._opsets:
                raise ModelRefusedError(f"The model imports the operator set {shown(domain)} twice.")
            if not 1 <= version <= newest:
                raise ModelRefusedError(
                    f"The model needs version {version} of the operator set {shown(domain)}; "
                    f"this device supports 1 to {newest}."
                )
            self._opsets[domain] = version

    def _metadata(self, spans: Iterable[Span]) -> dict[str, str]:
        entries = [self._read("StringStringEntryProto", span) for span in spans]
        metadata = {entry.text("key"): entry.text("value") for entry in entries}
        if len(metadata) != len(entries):
            raise ModelRefusedError("The model gives one metadata key twice.")
        if sum(len(key) + len(value) for key, value in metadata.items()) > METADATA_LENGTH_MAX:
            raise ModelRefusedError(f"The model's metadata is longer than {METADATA_LENGTH_MAX} characters.")
        return metadata

    def _graph(self, span: Span, depth: int) -> tuple[tuple[TensorFacts, ...], tuple[TensorFacts, ...]]:
        if depth > GRAPH_DEPTH_MAX:
            raise ModelRefusedError(f"The model nests graphs deeper than {GRAPH_DEPTH_MAX} levels.")
        graph = self._read("GraphProto", span)
        for node in graph.each("node"):
            self._node(node, depth)
        constants = self._initializers(graph)
        inputs = self._values(graph.each("input"))
        outputs = self._values(graph.each("output"))
        for value in graph.each("value_info"):
            self._value(value)
        self._look_through("TensorAnnotation", graph.each("quantization_annotation"))
        self._look_through("StringStringEntryProto", graph.each("metadata_props"))
        if not outputs:
            raise ModelRefusedError("The model holds a graph without outputs.")
        return tuple(value for value in inputs if value.name not in constants), outputs

    def _node(self, span: Span, depth: int) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise ModelRefusedError(f"The model has more than {NODES_MAX} nodes.")
        node = self._read("NodeProto", span)
        self._operator(_domain(node), _name(node.text("op_type")))
        attributes = [self._attribute(attribute, depth) for attribute in node.each("attribute")]
        _refuse_twice("attribute", attributes)
        self._look_through("StringStringEntryProto", node.each("metadata_props"))
        self._look_through("NodeDeviceConfigurationProto", node.each("device_configurations"))

    def _operator(self, domain: str, op_type: str) -> None:
        operator = f"{domain}.{op_type}" if domain else op_type
        if domain not in OPSETS_MAX:
            raise ModelRefusedError(f"The model uses {shown(operator)}, an operator unknown to this device.")
        if domain not in self._opsets:
            raise ModelRefusedError(f"The model uses {shown(operator)} without importing its operator set.")
        if not op_type:
            raise ModelRefusedError("The model holds a node without an operator.")
        if operator in OPAQUE:
            raise ModelRefusedError(f"The model holds a compiled part ({operator}) that cannot be checked.")
        if operator in CONTROL_FLOW:
            self._control_flow(operator)
        self._op_types.add(operator)

    def _control_flow(self, what: str) -> None:
        if not self._control_flow_allowed:
            raise ModelRefusedError(f"The model uses control flow ({what}); its bundle does not declare any.")

    def _attribute(self, span: Span, depth: int) -> str:
        attribute = self._read("AttributeProto", span)
        name = attribute.text("name")
        field = _attribute_field(attribute)
        if field in ("g", "graphs"):
            self._control_flow(f"the graph {shown(name)}")
        for inner in attribute.each(field):
            if field in ("t", "tensors"):
                self._tensor(inner)
            elif field in ("g", "graphs"):
                self._graph(inner, depth + 1)
            elif field in ("sparse_tensor", "sparse_tensors"):
                self._sparse_tensor(inner)
            elif field in ("tp", "type_protos"):
                self._type(inner, depth=1)
        return name

    def _initializers(self, graph: Message) -> set[str]:
        """Check the constants of a graph, count their elements and return their names."""
        constants = [self._tensor(span) for span in graph.each("initializer")]
        constants += [self._sparse_tensor(span) for span in graph.each("sparse_initializer")]
        names = [name for name, _ in constants]
        _refuse_twice("initializer", names)
        self._parameters += sum(elements for _, elements in constants)
        return set(names)

    def _tensor(self, span: Span) -> tuple[str, int]:
        """Check one dense tensor; return its name and how many elements it has."""
        tensor = self._read("TensorProto", span)
        name = tensor.text("name")
        if tensor.integer("data_location") or tensor.has("external_data"):
            raise ModelRefusedError(f"The tensor {shown(name)} keeps its data outside the model file.")
        elements = onnxtensor.element_count(tensor.integers.get("dims", []))
        onnxtensor.check_data(tensor, elements)
        self._look_through("StringStringEntryProto", tensor.each("metadata_props"))
        return name, elements

    def _sparse_tensor(self, span: Span) -> tuple[str, int]:
        """Check one sparse tensor; return its name and how many elements it stores."""
        sparse = self._read("SparseTensorProto", span)
        if not sparse.has("values") or not sparse.has("indices"):
            raise ModelRefusedError("The model holds a sparse tensor without values or without indices.")
        name, stored = self._tensor(sparse.each("values")[0])
        self._tensor(sparse.each("indices")[0])
        if stored > onnxtensor.element_count(sparse.integers.get("dims", [])):
            raise ModelRefusedError(f"The sparse tensor {shown(name)} stores more than its shape asks for.")
        return name, stored

    def _values(self, spans: list[Span]) -> tuple[TensorFacts, ...]:
        if len(spans) > VALUES_MAX:
            raise ModelRefusedError(f"The model holds a graph with more than {VALUES_MAX} inputs or outputs.")
        values = tuple(self._value(span) for span in spans)
        _refuse_twice("input or output", [value.name for value in values])
        return values

    def _value(self, span: Span) -> TensorFacts:
        value = self._read("ValueInfoProto", span)
        self._look_through("StringStringEntryProto", value.each("metadata_props"))
        dtype, shape = "undefined", None
        for type_span in value.each("type"):
            dtype, shape = self._type(type_span, depth=1)
        return TensorFacts(_name(value.text("name")), dtype, shape)

    def _type(self, span: Span, depth: int) -> tuple[str, Shape | None]:
        if depth > TYPE_DEPTH_MAX:
            raise ModelRefusedError(f"The model nests types deeper than {TYPE_DEPTH_MAX} levels.")
        outer = self._read("TypeProto", span)
        if len(outer.spans) > 1:
            raise ModelRefusedError("The model gives one value two types.")
        for kind, (inner_span,) in outer.spans.items():
            inner = self._read(onnxformat.LAYOUTS["TypeProto"].messages[kind], inner_span)
            for field in ("elem_type", "value_type"):
                for nested in inner.each(field):
                    self._type(nested, depth + 1)
            shape = self._shape(inner)
            return _dtype(inner) if kind == "tensor_type" else kind.removesuffix("_type"), shape
        return "undefined", None

    def _shape(self, tensor_type: Message) -> Shape | None:
        for span in tensor_type.each("shape"):
            dims = self._read("TensorShapeProto", span).each("dim")
            if len(dims) > DIMS_MAX:
                raise ModelRefusedError(f"The model holds a value of more than {DIMS_MAX} dimensions.")
            shape = tuple(self._dimension(dim) for dim in dims)
            onnxtensor.element_count([size for size in shape if isinstance(size, int)])
            return shape
        return None

    def _dimension(self, span: Span) -> int | str | None:
        dimension = self._read("TensorShapeProto.Dimension", span)
        if dimension.has("dim_value") and dimension.has("dim_param"):
            raise ModelRefusedError("The model gives one dimension both a size and a name.")
        if dimension.has("dim_value"):
            return dimension.integer("dim_value")
        return _name(dimension.text("dim_param")) or None

    def _look_through(self, kind: str, spans: Iterable[Span]) -> None:
        """Read messages that a device has no use for, and all in them; none of their kinds nests itself."""
        for span in spans:
            message = self._read(kind, span)
            for field, inner_kind in onnxformat.LAYOUTS[kind].messages.items():
                self._look_through(inner_kind, message.each(field))

    def _read(self, kind: str, span: Span) -> Message:
        return self._reader.read(onnxformat.LAYOUTS[kind], span)


def _check_model(model: Message) -> None:
    ir_version = model.integer("ir_version")
    if not 1 <= ir_version <= IR_VERSION_MAX:
        raise ModelRefusedError(
            f"The model has ONNX IR version {ir_version}; this device supports 1 to {IR_VERSION_MAX}."
        )
    if model.has("functions"):
        raise ModelRefusedError("The model defines local functions; export it with its functions inlined.")
    if model.has("training_info"):
        raise ModelRefusedError("The model holds training information; export it for inference.")
    if not model.has("graph"):
        raise ModelRefusedError("The model holds no graph.")


def _attribute_field(attribute: Message) -> str:
    """Say which field holds an attribute's value; refuse an attribute whose type and fields disagree."""
    name, kind = attribute.text("name"), attribute.integer("type")
    if attribute.text("ref_attr_name"):
        raise ModelRefusedError(f"The attribute {shown(name)} refers to a function, and the model has none.")
    field = onnxformat.ATTRIBUTE_FIELDS.get(kind)
    if field is None or attribute.names() - _ATTRIBUTE_LABELS - {field}:
        raise ModelRefusedError(f"The attribute {shown(name)} has a value of another type than it says.")
    return field


def _dtype(tensor_type: Message) -> str:
    number = tensor_type.integer("elem_type")
    element = onnxtensor.ELEMENT_TYPES.get(number)
    return element.dtype if element else f"type {number}" if number else "undefined"


def _domain(message: Message) -> str:
    """Name an operator set; the default one has two names."""
    domain = _name(message.text("domain"))
    return "" if domain == "ai.onnx" else domain


def _name(text: str) -> str:
    """Pass a name that the facts repeat, unless it is too long to be one."""
    if len(text) > NAME_LENGTH_MAX:
        raise ModelRefusedError(f"The model holds a name of {len(text)} characters: {shown(text)}.")
    return text


def _refuse_twice(what: str, names: list[str]) -> None:
    if len(set(names)) != len(names):
        name = Counter(names).most_common(1)[0][0]
        raise ModelRefusedError(f"The model gives the {what} {shown(name)} twice.")
