"""Spoiled copies of good inputs: bytes flipped, cut, doubled and crossed, JSON and protobuf changed where it means something.

Everything comes from one `random.Random`, so that a seed gives the same inputs again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

EDGES = (
    0,
    1,
    2,
    7,
    8,
    9,
    31,
    32,
    127,
    128,
    255,
    256,
    511,
    512,
    65535,
    1 << 31,
    (1 << 31) - 1,
    1 << 32,
    1 << 62,
    (1 << 64) - 1,
)
WORDS = (
    b"\0", b"\xff\xff\xff\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"\\u0000", b"\\ud800", b"{", b"[" * 40, b"}", b"]" * 40,
    b"null", b"true", b"NaN", b"Infinity", b"-0", b"1e999", b"1" * 30, b"1.5", b"../", b"/etc/passwd", b"\xe2\x80\xae", b"\x1b[2J",
    b"__proto__", b"-----BEGIN PUBLIC KEY-----", b"\n", b"\r\n", b"77777777777\0", b"\x80" * 9 + b"\x01",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1.5, 10**15, 10**16, -(10**18), 10**30, "", "0", "x" * 300, "a\nb", "\u202e", "\0", "ä", "../x", [], {},
    [[]], [None], {"": None}, {"a": {"a": {"a": 1}}}, [[[[[[[[]]]]]]]], float("nan"), float("inf"), "2026-01-01T00:00:00Z", "f" * 64, "F" * 64,
)  # fmt: skip


def spoiled(dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Return a copy with one to eight changes, at any level that the data has."""
    for _ in range(1 << dice.randrange(4)):
        data = dice.choice(_CHANGES)(dice, data, others)
    return data[: 4 << 20]


Change = Callable[[random.Random, bytes, Sequence[bytes]], bytes]


def _flip(dice: random.Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    if not data:
        return bytes([dice.randrange(256)])
    at = dice.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << dice.randrange(8))]) + data[at + 1 :]


def _byte(dice: random.Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + bytes([dice.randrange(256)]) + data[at + dice.randrange(2) :]


def _cut(dice: random.Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    at = dice.randrange(len(data) + 1)
    return data[:at] + data[at + dice.choice((1, 2, 4, 16, 512, len(data))) :]


def _double(dice: random.Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    at, size = dice.randrange(len(data) + 1), dice.choice((1, 4, 32, 512, 4096))
    return data[: at + size] + data[at : at + size] * dice.choice((1, 2, 20)) + data[at + size :]


def _word(dice: random.Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    at, word = dice.randrange(len(data) + 1), dice.choice(WORDS)
    return data[:at] + word + data[at + dice.choice((0, len(word))) :]


def _number(dice: random.Random, data: bytes, _others: Sequence[bytes]) -> bytes:
    at, size = dice.randrange(len(data) + 1), dice.choice((1, 2, 4, 8))
    number = (dice.choice(EDGES) % (1 << (8 * size))).to_bytes(size, dice.choice(("big", "little")))
    return data[:at] + number + data[at + size :]


def _cross(dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    other = dice.choice(others)
    return data[: dice.randrange(len(data) + 1)] + other[dice.randrange(len(other) + 1) :]


# --- JSON -------------------------------------------------------------------------------------------------------------


def _json(dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return _flip(dice, data, others)
    try:
        return json.dumps(_changed(dice, value)).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return data


def _changed(dice: random.Random, value: Any) -> Any:
    """Walk down to a random place and change what is there."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        key = dice.choice(list(value))
        return _changed_object(dice, dict(value), key)
    if isinstance(value, list) and value and dice.random() < 0.8:
        at = dice.randrange(len(value))
        kept = list(value)
        how = dice.randrange(4)
        if how == 0:
            del kept[at]
        elif how == 1:
            kept.insert(at, kept[dice.randrange(len(kept))])
        else:
            kept[at] = _changed(dice, kept[at])
        return kept
    if isinstance(value, int) and dice.random() < 0.5:
        return dice.choice((value + 1, value - 1, -value, value * 2, *EDGES))
    if isinstance(value, str) and dice.random() < 0.5:
        at = dice.randrange(len(value) + 1)
        return (
            value[:at]
            + dice.choice(("", "A", "/", "..", "*", "\u202e", "\n", "=", " ", "\ud800"))
            + value[at + dice.randrange(2) :]
        )
    return dice.choice(ODD_VALUES)


def _changed_object(dice: random.Random, value: dict[str, Any], key: str) -> dict[str, Any]:
    how = dice.randrange(6)
    if how == 0:
        del value[key]
    elif how == 1:
        value[key + dice.choice(("", "x", "\0", "A"))] = dice.choice(ODD_VALUES)
    elif how == 2:
        value[dice.choice(list(value))] = value[key]
    else:
        value[key] = _changed(dice, value[key])
    return value


# --- protobuf ---------------------------------------------------------------------------------------------------------


def _protobuf(dice: random.Random, data: bytes, others: Sequence[bytes]) -> bytes:
    """Change one field at any depth and mend the lengths around it."""
    fields = _fields(data)
    if not fields:
        return _flip(dice, data, others)
    at = dice.randrange(len(fields))
    head, body, nested = fields[at]
    how = dice.randrange(8)
    if how == 0:
        del fields[at]
    elif how == 1:
        fields.insert(dice.randrange(len(fields)), fields[at])
    elif nested:
        content = _protobuf(dice, body, others) if how < 6 else spoiled(dice, body, others)
        fields[at] = head, content, True
    else:
        fields[at] = head, _varint(dice.choice(EDGES)) if body else _flip(dice, body, others), False
    return b"".join(head + (_varint(len(body)) + body if nested else body) for head, body, nested in fields)


def _fields(data: bytes) -> list[tuple[bytes, bytes, bool]]:
    """Take a message apart: (tag, content, whether a length belongs before it); empty when it is none."""
    found, at = [], 0
    while at < len(data):
        tag, start = _read_varint(data, at)
        kind = tag & 7
        if kind == 0:
            stop = _read_varint(data, start)[1]
        elif kind in (1, 5):
            stop = start + (8 if kind == 1 else 4)
        elif kind == 2:
            size, begin = _read_varint(data, start)
            stop = begin + size
        else:
            return []
        if start == at or stop > len(data):
            return []
        found.append((data[at:start], data[begin:stop] if kind == 2 else data[start:stop], kind == 2))
        at = stop
    return found


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
    return 1 << 62, at


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


_CHANGES: tuple[Change, ...] = (
    _flip,
    _byte,
    _cut,
    _double,
    _word,
    _number,
    _cross,
    _json,
    _json,
    _json,
    _protobuf,
    _protobuf,
)
