"""How ONNX stores a tensor: its element types, and whether one holds just what its shape asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lenskeep.bundle.protowire import Message, shown
from lenskeep.errors import ModelRefusedError

DIM_MAX = 1 << 31
ELEMENTS_MAX = 1 << 40


@dataclass(frozen=True, slots=True)
class ElementType:
    """A tensor's element: numpy's or ml_dtypes' name, its width, and the field for it beside `raw_data`."""

    dtype: str
    bits: int
    field: str

    def values(self, elements: int) -> int:
        """Say how many entries of `field` hold that many elements."""
        if self.field == "float_data":  # a complex number takes two
            return elements * self.bits // 32
        if self.field == "double_data":
            return elements * self.bits // 64
        if self.field == "int32_data":  # what is smaller than a byte shares one, and an entry is a byte
            return (elements * min(self.bits, 8) + 7) // 8
        return elements

    def raw_bytes(self, elements: int) -> int:
        """Say how many bytes of `raw_data` hold that many elements."""
        return (elements * self.bits + 7) // 8


ELEMENT_TYPES = {  # TensorProto.data_type
    1: ElementType("float32", 32, "float_data"),
    2: ElementType("uint8", 8, "int32_data"),
    3: ElementType("int8", 8, "int32_data"),
    4: ElementType("uint16", 16, "int32_data"),
    5: ElementType("int16", 16, "int32_data"),
    6: ElementType("int32", 32, "int32_data"),
    7: ElementType("int64", 64, "int64_data"),
    8: ElementType("string", 0, "string_data"),
    9: ElementType("bool", 8, "int32_data"),
    10: ElementType("float16", 16, "int32_data"),
    11: ElementType("float64", 64, "double_data"),
    12: ElementType("uint32", 32, "uint64_data"),
    13: ElementType("uint64", 64, "uint64_data"),
    14: ElementType("complex64", 64, "float_data"),
    15: ElementType("complex128", 128, "double_data"),
    16: ElementType("bfloat16", 16, "int32_data"),
    17: ElementType("float8_e4m3fn", 8, "int32_data"),
    18: ElementType("float8_e4m3fnuz", 8, "int32_data"),
    19: ElementType("float8_e5m2", 8, "int32_data"),
    20: ElementType("float8_e5m2fnuz", 8, "int32_data"),
    21: ElementType("uint4", 4, "int32_data"),
    22: ElementType("int4", 4, "int32_data"),
    23: ElementType("float4_e2m1fn", 4, "int32_data"),
    24: ElementType("float8_e8m0fnu", 8, "int32_data"),
    25: ElementType("uint2", 2, "int32_data"),
    26: ElementType("int2", 2, "int32_data"),
}
_DATA_FIELDS = ("raw_data", *sorted({element.field for element in ELEMENT_TYPES.values()}))


def element_count(dims: list[int]) -> int:
    """Say how many elements a shape has."""
    if any(not 0 <= size <= DIM_MAX for size in dims):
        raise ModelRefusedError(f"The model holds a tensor with a negative or absurd dimension: {dims}.")
    elements = math.prod(dims)
    if elements > ELEMENTS_MAX:
        raise ModelRefusedError(f"The model holds a tensor of absurd size: {dims}.")
    return elements


def check_data(tensor: Message, elements: int) -> None:
    """Refuse a tensor whose data is not exactly what its shape and its element type ask for."""
    name, data_type = shown(tensor.text("name")), tensor.integer("data_type")
    element = ELEMENT_TYPES.get(data_type)
    if element is None:
        raise ModelRefusedError(f"The tensor {name} has the element type {data_type}, unknown to this device.")
    held = [field for field in _DATA_FIELDS if tensor.has(field)]
    if len(held) > 1 or tensor.has("segment"):
        raise ModelRefusedError(f"The tensor {name} is in pieces or holds its data twice.")
    field = held[0] if held else element.field
    if field not in (element.field, "raw_data") or (field == "raw_data" and not element.bits):
        raise ModelRefusedError(f"The tensor {name} of {element.dtype} keeps its data in {field}.")
    if field == "raw_data":
        unit, expected = "bytes", element.raw_bytes(elements)
        found = sum(stop - start for start, stop in tensor.each(field))
    else:
        unit, expected, found = "values", element.values(elements), tensor.amount(field)
    if found != expected:
        raise ModelRefusedError(f"The tensor {name} holds {found} {unit}; its shape asks for {expected}.")
