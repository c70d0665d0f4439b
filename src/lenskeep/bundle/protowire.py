"""Protocol Buffers' wire format, read one message at a time from bytes that nobody has checked yet.

Rules. A message is read by its layout, and whatever departs from it is refused, because two readers could
see two different things there: an unknown field, a field of the wrong wire type, a single field that comes
twice, a group, a number wider than its type, text that is not UTF-8, a length that leaves the message.
Nested messages and byte fields come back as spans, never copied; lists of numbers are counted, not kept
(only `dim` is kept).
Not here: what the fields mean, and depth: whoever follows a span into a nested message bounds it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from lenskeep.errors import ModelRefusedError

FIELDS_MAX = 2_000_000  # in one document; bounds time and memory where two bytes can stand for a field
TEXT_BYTES_MAX = 1 << 20
DIMS_MAX = 32

Span = tuple[int, int]
Known = tuple[str, str, bool]  # of a field: its name, its kind, whether it repeats

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
_GROUPS = (3, 4)
_WIRE_TYPES = {  # of the numbers; text, bytes and messages are LENGTH
    "int64": VARINT,
    "int32": VARINT,
    "uint64": VARINT,
    "enum": VARINT,
    "dim": VARINT,  # an int64 that is kept although it repeats
    "double": FIXED64,
    "float": FIXED32,
}
_FIXED_BYTES = {FIXED64: 8, FIXED32: 4}
_TAG_BYTES_MAX = 5  # of a tag or a length, which protobuf holds in 32 bits
_NUMBER_BYTES_MAX = 10
_CONTINUED = bytes(range(0x80, 0x100))  # the bytes of a number that are not its last
_OVERLONG = re.compile(rb"[\x80-\xff]{%d}" % _NUMBER_BYTES_MAX)
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Layout:
    """The fields of one message type: what each tag on the wire stands for."""

    name: str
    tags: dict[int, Known]
    messages: dict[str, str]  # field name -> type of the nested message


@dataclass(slots=True)
class Message:
    """The fields of one message, each kind under its names, in the order of the wire."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    integers: dict[str, list[int]] = field(default_factory=dict)
    spans: dict[str, list[Span]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)  # how many numbers, where they are only counted

    def text(self, name: str) -> str:
        return self.texts.get(name, [""])[0]

    def integer(self, name: str) -> int:
        return self.integers.get(name, [0])[0]

    def each(self, name: str) -> list[Span]:
        """List where the nested messages or byte strings of one field lie."""
        return self.spans.get(name, [])

    def has(self, name: str) -> bool:
        return name in self.spans or name in self.integers or name in self.texts or name in self.counts

    def names(self) -> set[str]:
        """Name every field that is there."""
        return {*self.texts, *self.integers, *self.spans, *self.counts}

    def amount(self, name: str) -> int:
        """Say how many numbers or byte strings a field that repeats holds."""
        return self.counts.get(name, 0) or len(self.each(name))


def layouts(table: Mapping[str, str]) -> dict[str, Layout]:
    """Build layouts from lines `number name kind`; a `*` behind the kind says that the field repeats.

    Args:
        table: message type -> its lines; a kind is `text`, `bytes`, a number's, or another type of the table.
    """
    return {name: _layout(name, lines, table) for name, lines in table.items()}


def _layout(name: str, lines: str, table: Mapping[str, str]) -> Layout:
    layout = Layout(name, {}, {})
    for line in lines.strip().splitlines():
        number, field_name, kind = line.split()
        known = (field_name, kind.removesuffix("*"), kind.endswith("*"))
        layout.tags[int(number) << 3 | _WIRE_TYPES.get(known[1], LENGTH)] = known
        if known[2]:  # numbers that repeat may come one by one or packed
            layout.tags[int(number) << 3 | LENGTH] = known
        if known[1] in table:
            layout.messages[field_name] = known[1]
    return layout


class Reader:
    """Reads the messages of one document of bytes."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._view = memoryview(data).cast("B")
        self._data = data if isinstance(data, bytes) else self._view  # indexing bytes is faster
        self._fields_left = FIELDS_MAX

    def read(self, layout: Layout, span: Span) -> Message:
        """Read the fields of the message at `span`, but not what lies inside its nested messages.

        Raises: ModelRefusedError.
        Cost: in proportion to the number of fields; bytes are skipped, packed varints are looked through.
        """
        message = Message()
        texts, integers, spans = message.texts, message.integers, message.spans
        for known, wire_type, value, stop in self._fields(layout, span):
            name, kind, repeated = known
            if repeated and kind in _WIRE_TYPES:
                self._add_numbers(message, known, wire_type, value, stop)
                continue
            if kind == "text":
                texts.setdefault(name, []).append(self._text(layout, value, stop))
                held = len(texts[name])
            elif wire_type == LENGTH:
                spans.setdefault(name, []).append((value, stop))
                held = len(spans[name])
            else:
                integers.setdefault(name, []).append(_integer(kind, value))
                held = len(integers[name])
            if held > 1 and not repeated:
                raise ModelRefusedError(f"The model gives the field {name} of {layout.name} twice.")
        return message

    def _fields(self, layout: Layout, span: Span) -> Iterator[tuple[Known, int, int, int]]:
        """Yield each field, its wire type, and either its number and 0 or where its bytes start and stop."""
        data, tags = self._data, layout.tags
        at, end = span
        try:
            while at < end:
                tag = data[at]
                at += 1
                if tag > 0x7F:
                    tag, at = _varint(data, at - 1, _TAG_BYTES_MAX)
                known = tags.get(tag)
                self._fields_left -= 1
                if known is None or self._fields_left < 0:
                    raise _unreadable(layout, tag, known)
                wire_type = tag & 7
                if wire_type > VARINT:
                    size = _FIXED_BYTES.get(wire_type)
                    if size is None:
                        size = data[at]
                        at += 1
                        if size > 0x7F:
                            size, at = _varint(data, at - 1, _TAG_BYTES_MAX)
                    value, at = at, at + size
                    if at > end:
                        break
                    yield known, wire_type, value, at
                    continue
                value = data[at]
                at += 1
                if value > 0x7F:
                    value, at = _varint(data, at - 1, _NUMBER_BYTES_MAX)
                yield known, wire_type, value, 0
        except IndexError:
            at = -1
        if at != end:
            raise ModelRefusedError(f"The model is cut short or its lengths lie, in {layout.name}.")

    def _text(self, layout: Layout, start: int, stop: int) -> str:
        if stop - start > TEXT_BYTES_MAX:
            raise ModelRefusedError(f"The model holds a text of {stop - start} bytes, in {layout.name}.")
        try:
            return str(self._data[start:stop], "utf-8")
        except UnicodeDecodeError as error:
            raise ModelRefusedError(f"The model holds text that is not UTF-8, in {layout.name}.") from error

    def _add_numbers(self, message: Message, known: Known, wire_type: int, value: int, stop: int) -> None:
        """Take one number of a list, or a packed run of them: keep dims, count everything else."""
        name, kind, _ = known
        if wire_type == LENGTH:
            _check_packed(kind, self._view[value:stop])
        if kind == "dim":
            dims = message.integers.setdefault(name, [])
            dims.extend(self._packed_dims(value, stop) if wire_type == LENGTH else [_integer(kind, value)])
            if len(dims) > DIMS_MAX:
                raise ModelRefusedError(f"The model holds a tensor of more than {DIMS_MAX} dimensions.")
        else:
            count = _packed_count(kind, self._view[value:stop]) if wire_type == LENGTH else 1
            message.counts[name] = message.counts.get(name, 0) + count

    def _packed_dims(self, at: int, stop: int) -> list[int]:
        """Read a packed run of dims, and hardly more of them than a tensor can have."""
        dims: list[int] = []
        while at < stop and len(dims) <= DIMS_MAX:
            dim, at = _varint(self._data, at, _NUMBER_BYTES_MAX)
            dims.append(_integer("dim", dim))
        return dims


def _check_packed(kind: str, run: memoryview) -> None:
    """Refuse a packed run of numbers that does not end where a number ends, or holds an overlong one."""
    size = _FIXED_BYTES.get(_WIRE_TYPES[kind])
    if size is not None:
        broken = len(run) % size > 0
    else:
        broken = len(run) > 0 and (run[-1] > 0x7F or _OVERLONG.search(run) is not None)
    if broken:
        raise ModelRefusedError("The model holds a list of numbers with a broken number in it.")


def _packed_count(kind: str, run: memoryview) -> int:
    """Count the numbers of a packed run without reading them: each varint has one last byte."""
    size = _FIXED_BYTES.get(_WIRE_TYPES[kind])
    if size is not None:
        return len(run) // size
    chunks = (bytes(run[at : at + _CHUNK_BYTES]) for at in range(0, len(run), _CHUNK_BYTES))
    return sum(len(chunk.translate(None, _CONTINUED)) for chunk in chunks)


def _varint(data: bytes | memoryview, at: int, bytes_max: int) -> tuple[int, int]:
    """Read one varint; return it and where it ends. Raises IndexError where the data ends first."""
    value = 0
    for place in range(bytes_max):
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte <= 0x7F:
            if value >> 64:
                break
            return value, at + place + 1
    raise ModelRefusedError(f"The model holds a number that does not fit into {bytes_max} bytes or 64 bits.")


def _integer(kind: str, value: int) -> int:
    """Give a varint the sign and the width of its kind; what is unsigned is only ever counted."""
    if value >> 63:
        value -= 1 << 64
    if kind in ("int32", "enum") and not -(1 << 31) <= value < 1 << 31:
        raise ModelRefusedError(f"The model holds the number {value} where 32 bits are expected.")
    return value


def _unreadable(layout: Layout, tag: int, known: Known | None) -> ModelRefusedError:
    number, wire_type = tag >> 3, tag & 7
    if known is not None:
        return ModelRefusedError(f"The model has more than {FIELDS_MAX} fields.")
    if wire_type in _GROUPS:
        return ModelRefusedError(f"The model holds a protobuf group in {layout.name}; ONNX has none.")
    if any(number == other >> 3 for other in layout.tags):
        return ModelRefusedError(f"The model gives field {number} of {layout.name} a wrong wire type.")
    return ModelRefusedError(f"The model holds field {number} in {layout.name}, which ONNX does not define.")


def shown(text: str) -> str:
    """Show a stranger's text in a sentence: ASCII only, and not all of it."""
    return ascii(text[:80])
