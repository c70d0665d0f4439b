"""A tensor is accepted when it holds just what its shape and its element type ask for."""

import pytest
from onnx import TensorProto, helper, numpy_helper

from lenskeep.bundle import onnxtensor, protowire
from lenskeep.bundle.onnxcheck import scan
from tests.unit.bundle.onnxmodels import by_hand, field, model, refuse, sparse, value, weight, with_tensor


@pytest.mark.parametrize("number", onnxtensor.ELEMENT_TYPES)
@pytest.mark.parametrize("count", [0, 1, 3, 8])
def test_tensor_of_every_element_type_holds_just_what_its_shape_asks_for(number: int, count: int) -> None:
    element = onnxtensor.ELEMENT_TYPES[number]
    zero = b"" if element.dtype == "string" else 0
    by_value = helper.make_tensor("w", number, [count], [zero] * count)
    assert scan(with_tensor(by_value).SerializeToString()).parameters == count
    getattr(by_value, element.field).append(zero)
    refuse(with_tensor(by_value), "its shape asks for")
    if element.dtype != "string":
        raw = numpy_helper.from_array(numpy_helper.to_array(helper.make_tensor("w", number, [count], [0] * count)), "w")
        assert raw.HasField("raw_data")
        assert scan(with_tensor(raw).SerializeToString()).parameters == count
        raw.raw_data += b"\0"
        refuse(with_tensor(raw), "its shape asks for")


@pytest.mark.attack(110)
@pytest.mark.parametrize("dims", [(2, 4), (2, 2), (), (0,), (2, 3, 2), (1, 1, 23)])
def test_dims_that_disagree_with_the_data_are_refused(dims: tuple[int, ...]) -> None:
    tensor = weight()
    del tensor.dims[:]
    tensor.dims.extend(dims)
    refuse(with_tensor(tensor), "holds 24 bytes; its shape asks for")


@pytest.mark.attack(110)
@pytest.mark.parametrize("dims", [(-1,), (-2, -3), (1 << 33,), (2, -(1 << 63)), ((1 << 31) + 1, 0)])
def test_negative_or_absurd_dim_is_refused(dims: tuple[int, ...]) -> None:
    tensor = weight()
    del tensor.dims[:]
    tensor.dims.extend(dims)
    refuse(with_tensor(tensor), "negative or absurd dimension")
    refuse(model(inputs=[value("x", dims)]), "negative or absurd dimension")
    refuse(model(outputs=[value("y", dims)]), "negative or absurd dimension")


@pytest.mark.attack(110)
def test_dims_whose_product_overflows_are_refused() -> None:
    tensor = weight()
    tensor.dims.extend([1 << 31, 1 << 31, 4])
    refuse(with_tensor(tensor), "absurd size")
    refuse(model(inputs=[value("x", (1 << 31, 1 << 31))]), "absurd size")


def test_too_many_dims_are_refused() -> None:
    tensor = weight((1,) * protowire.DIMS_MAX)
    assert scan(with_tensor(tensor).SerializeToString()).parameters == 1
    tensor.dims.append(1)
    refuse(with_tensor(tensor), "more than 32 dimensions")
    refuse(by_hand(field(5, field(1, b"\1" * 1_000_000))), "more than 32 dimensions")
    refuse(model(inputs=[value("x", (1,) * 33)]), "more than 32 dimensions")


def test_tensor_without_data_is_refused() -> None:
    tensor = weight()
    tensor.ClearField("raw_data")
    refuse(with_tensor(tensor), "holds 0 values; its shape asks for 6")


def test_tensor_with_two_sources_of_data_is_refused() -> None:
    tensor = weight()
    tensor.float_data.extend([1.0] * 6)
    refuse(with_tensor(tensor), "holds its data twice")


def test_tensor_in_segments_is_refused() -> None:
    tensor = weight()
    tensor.segment.begin = 0
    refuse(with_tensor(tensor), "in pieces")


def test_tensor_with_the_data_of_another_type_is_refused() -> None:
    numbers = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], int32_data=[1, 2])
    refuse(with_tensor(numbers), "keeps its data in int32_data")
    text = TensorProto(name="w", data_type=TensorProto.STRING, dims=[2], raw_data=b"ab")
    refuse(with_tensor(text), "keeps its data in raw_data")


@pytest.mark.parametrize("number", [0, 27, 28, 99, -1])
def test_unknown_element_type_is_refused(number: int) -> None:
    tensor = weight()
    tensor.data_type = number
    refuse(with_tensor(tensor), f"element type {number}, unknown")


def test_sparse_tensor_that_stores_more_than_it_has_is_refused() -> None:
    built = model()
    built.graph.sparse_initializer.append(sparse())
    built.graph.sparse_initializer[0].dims[:] = [1]
    refuse(built, "stores more than")
    built.graph.sparse_initializer[0].ClearField("indices")
    refuse(built, "without values or without indices")


def test_element_table_is_that_of_the_onnx_package() -> None:
    newer = {"FLOAT6E2M3", "FLOAT6E3M2"}  # of IR version 14
    numbers = {number for name, number in TensorProto.DataType.items() if number and name not in newer}
    assert set(onnxtensor.ELEMENT_TYPES) == numbers
    for number, element in onnxtensor.ELEMENT_TYPES.items():
        assert element.field == helper.tensor_dtype_to_field(number)
        if element.dtype != "string":
            assert element.dtype == helper.tensor_dtype_to_np_dtype(number).name
