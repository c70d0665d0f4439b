"""The tables of the format are those of the onnx package."""

import onnx
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from onnx import AttributeProto

from lenskeep.bundle import onnxformat

KINDS = {
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_INT32: "int32",
    FieldDescriptor.TYPE_UINT64: "uint64",
    FieldDescriptor.TYPE_ENUM: "enum",
    FieldDescriptor.TYPE_FLOAT: "float",
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BYTES: "bytes",
}


def descriptors(messages: dict[str, Descriptor]) -> dict[str, Descriptor]:
    found = {}
    for descriptor in messages.values():
        found[descriptor.full_name.removeprefix("onnx.")] = descriptor
        found |= descriptors(descriptor.nested_types_by_name)
    return found


def test_message_tables_are_those_of_the_onnx_schema() -> None:
    schema = descriptors(onnx.onnx_ml_pb2.DESCRIPTOR.message_types_by_name)
    assert set(schema) - set(onnxformat.LAYOUTS) == {
        "FunctionProto",
        "TrainingInfoProto",
        "TensorProto.Segment",
    }
    for name, layout in onnxformat.LAYOUTS.items():
        ours = {(tag >> 3, known[0], known[1].replace("dim", "int64"), known[2]) for tag, known in layout.tags.items()}
        theirs = {
            (
                each.number,
                each.name,
                each.message_type.full_name.removeprefix("onnx.") if each.message_type else KINDS[each.type],
                each.is_repeated,
            )
            for each in schema[name].fields
        }
        assert ours == theirs, name


def test_attribute_table_is_that_of_the_onnx_schema() -> None:
    short = {"FLOAT": "f", "INT": "i", "STRING": "s", "TENSOR": "t", "GRAPH": "g", "TYPE_PROTO": "tp"}
    expected = {
        number: short.get(name, name.lower()) for name, number in AttributeProto.AttributeType.items() if number
    }
    assert expected == onnxformat.ATTRIBUTE_FIELDS
