"""Bytes that two protobuf readers could read differently are refused; those that all read alike are read."""

import mmap
import time

import pytest

from lenskeep.bundle import protowire
from lenskeep.bundle.onnxcheck import scan
from tests.unit.bundle.onnxmodels import by_hand, facts_by_onnx, field, model, refuse, varint


def test_packed_and_single_dims_are_the_same_shape() -> None:
    content = field(2, 1) + field(8, b"w") + field(9, b"\0" * 24)
    for dims in (
        field(1, 2) + field(1, 3),
        field(1, varint(2) + varint(3)),
        field(1, varint(2)) + field(1, 3),
    ):
        data = by_hand(field(5, dims + content))
        assert scan(data).parameters == 6
        assert scan(data) == facts_by_onnx(data)
    refuse(by_hand(field(5, field(1, varint(2) + b"\x83") + content)), "list of numbers")


def test_packed_and_single_attribute_numbers_are_both_read() -> None:
    node = model().graph.node[0].SerializeToString()
    for ints in (field(8, 1) + field(8, -1), field(8, varint(1) + varint(-1)), field(8, b"")):
        attribute = field(1, b"axes") + field(20, 7) + ints
        assert scan(by_hand(field(1, node + field(5, attribute)))).nodes == 2


def test_weights_are_skipped_and_not_read() -> None:
    """Half a gigabyte of weights that no memory holds yet: reading them would take much longer."""
    raw_bytes = 1 << 29
    tensor = field(1, raw_bytes // 4) + field(2, 1) + field(8, b"w") + varint(9 << 3 | 2) + varint(raw_bytes)
    rest = model().graph.SerializeToString()
    graph = varint(5 << 3 | 2) + varint(len(tensor) + raw_bytes) + tensor
    head = (
        field(1, 8) + field(8, field(2, 17)) + varint(7 << 3 | 2) + varint(len(graph) + raw_bytes + len(rest)) + graph
    )
    with mmap.mmap(-1, len(head) + raw_bytes + len(rest)) as memory:
        memory[: len(head)] = head
        memory[len(head) + raw_bytes :] = rest
        start = time.process_time()
        with memoryview(memory) as view:
            assert scan(view).parameters == raw_bytes // 4
        assert time.process_time() - start < 0.2


def test_second_graph_is_refused_where_readers_would_merge_or_choose() -> None:
    data = model().SerializeToString()
    refuse(data + field(7, model().graph.SerializeToString()), "field graph of ModelProto twice")
    refuse(data + field(1, 8), "field ir_version of ModelProto twice")
    refuse(
        by_hand(field(5, field(2, 1) + field(2, 7) + field(9, b"\0" * 4))),
        "field data_type of TensorProto twice",
    )


def test_group_is_refused() -> None:
    refuse(model().SerializeToString() + b"\x83\x01\x84\x01", "protobuf group")


def test_unknown_field_is_refused() -> None:
    refuse(
        model().SerializeToString() + field(99, b"later"),
        "field 99 in ModelProto, which ONNX does not define",
    )
    refuse(model().SerializeToString() + b"\0\0", "field 0 in ModelProto")


def test_wrong_wire_type_is_refused() -> None:
    refuse(field(1, b"\x08") + model().SerializeToString(), "field 1 of ModelProto a wrong wire type")
    refuse(model().SerializeToString() + field(7, 1), "field 7 of ModelProto a wrong wire type")
    refuse(b"\x0d\0\0\0\0" + model().SerializeToString(), "field 1 of ModelProto a wrong wire type")


def test_overlong_number_is_refused() -> None:
    tail = model().SerializeToString()[2:]
    assert scan(b"\x08\x88\x80\0" + tail).ir_version == 8
    refuse(b"\x08\x88" + b"\x80" * 9 + b"\0" + tail, "does not fit")
    refuse(b"\x08" + b"\xff" * 9 + b"\x02" + tail, "does not fit")
    refuse(b"\x88\x80\x80\x80\x80\0\x08" + tail, "does not fit")
    tensor = field(1, 1) + field(2, 7) + field(8, b"w")
    assert scan(by_hand(field(5, tensor + field(7, varint(-1))))).parameters == 1
    refuse(by_hand(field(5, tensor + field(7, b"\x80" * 10 + b"\0"))), "list of numbers")
    refuse(by_hand(field(5, tensor + field(7, b"\x80"))), "list of numbers")
    floats = field(1, 1) + field(2, 1) + field(8, b"w") + field(4, b"\0" * 5)
    refuse(by_hand(field(5, floats)), "list of numbers")


def test_number_wider_than_its_type_is_refused() -> None:
    tensor = field(1, 1) + field(2, 1 << 32 | 1) + field(8, b"w") + field(9, b"\0" * 4)
    refuse(by_hand(field(5, tensor)), "where 32 bits are expected")


def test_text_that_is_not_utf8_is_refused() -> None:
    refuse(model().SerializeToString() + field(6, b"\xff\xfe"), "not UTF-8, in ModelProto")
    refuse(by_hand(field(1, field(4, b"\xed\xa0\x80"))), "not UTF-8, in NodeProto")


def test_too_many_fields_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protowire, "FIELDS_MAX", 1_000)
    refuse(by_hand(field(1, field(4, b"Relu") + field(1, b"") * 2_000)), "more than 1000 fields")
    refuse(
        by_hand(field(1, field(4, b"Relu") + field(5, field(20, 7) + field(8, 1) * 2_000))),
        "more than 1000 fields",
    )
