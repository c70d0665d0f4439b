"""What the strict reader refuses, and that it agrees with the ordinary reader on everything else."""

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lenskeep.bundle import strictjson
from lenskeep.errors import BundleFormatError


def read(data: bytes, *, bytes_max: int = 1 << 20, floats: bool = False) -> object:
    return strictjson.loads(data, bytes_max=bytes_max, floats=floats)


def nested(depth: int) -> bytes:
    return b"[" * depth + b"]" * depth


REFUSED = {
    "empty": (b"", "is empty"),
    "only spaces": (b" \r\n\t ", "is empty"),
    "duplicate key": (b'{"a": 1, "a": 2}', "'a' appears twice"),
    "duplicate key deep inside": (b'[{"x": {"k": 1, "l": 2, "k": 1}}]', "'k' appears twice"),
    "duplicate key hidden by an escape": (b'{"a": 1, "\\u0061": 2}', "'a' appears twice"),
    "NaN": (b"[NaN]", "NaN"),
    "Infinity": (b'{"a": Infinity}', "Infinity"),
    "minus Infinity": (b"-Infinity", "-Infinity"),
    "whole float": (b"1.0", "is a float"),
    "exponent": (b"1e5", "is a float"),
    "17 digits": (b"12345678901234567", "16 digits"),
    "minus 17 digits": (b"-12345678901234567", "16 digits"),
    "30 digits": (b'{"size": 123456789012345678901234567890}', "16 digits"),
    "33 levels": (nested(33), "deeper than 32"),
    "200,000 levels": (nested(200_000), "deeper than 32"),
    "200,000 levels of objects": (b'{"a":' * 200_000, "deeper than 32"),
    "lone high surrogate": (b'"\\ud800"', "surrogate"),
    "lone low surrogate in a key": (b'{"\\udc00": 1}', "surrogate"),
    "surrogates in the wrong order": (b'["\\udc00\\ud800"]', "surrogate"),
    "encoded surrogate": (b'"\xed\xa0\x80"', "not UTF-8"),
    "escaped NUL in a string": (b'["a\\u0000b"]', "contains NUL"),
    "escaped NUL in a key": (b'{"\\u0000": 1}', "contains NUL"),
    "raw NUL": (b'"a\0"', "NUL byte"),
    "UTF-8 byte order mark": (b"\xef\xbb\xbf{}", "byte order mark"),
    "UTF-16": ("{}".encode("utf-16"), "byte order mark"),
    "UTF-16 without a mark": ("{}".encode("utf-16-le"), "NUL byte"),
    "UTF-32": ("{}".encode("utf-32"), "byte order mark"),
    "UTF-32 big end first": ("\ufeff{}".encode("utf-32-be"), "byte order mark"),
    "Latin-1": ('"é"'.encode("latin-1"), "not UTF-8"),
    "overlong UTF-8": (b'"\xc0\xaf"', "not UTF-8"),
    "trailing data": (b"{} {}", "malformed"),
    "trailing comma": (b"[1,]", "malformed"),
    "raw newline in a string": (b'"a\nb"', "malformed"),
    "unfinished string": (b'["a', "malformed"),
    "unfinished object": (b'{"a": 1', "malformed"),
    "single quotes": (b"{'a': 1}", "malformed"),
    "comment": (b"{} // really", "malformed"),
    "leading zero": (b"01", "malformed"),
    "plus sign": (b"+1", "malformed"),
    "form feed as space": (b"\x0c{}", "malformed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_text_that_two_readers_could_read_differently_is_refused(name: str) -> None:
    data, reason = REFUSED[name]
    with pytest.raises(BundleFormatError, match=reason):
        read(data)


def test_longer_than_allowed_is_refused_before_it_is_read() -> None:
    assert read(b"[1]", bytes_max=3) == [1]
    with pytest.raises(BundleFormatError, match="4 bytes long; at most 3"):
        read(b"\xff\xff\xff\xff", bytes_max=3)


def test_float_where_welcome_is_read_and_overflow_is_refused() -> None:
    assert read(b"[1.0, -2.5e-3, 0.1, 3]", floats=True) == [1.0, -0.0025, 0.1, 3]
    for data in (b"1e400", b"-1e400", b"[1e999999999]"):
        with pytest.raises(BundleFormatError, match="too large"):
            read(data, floats=True)
    with pytest.raises(BundleFormatError, match="NaN"):
        read(b"NaN", floats=True)


def test_limits_themselves_are_accepted() -> None:
    assert read(b"-9999999999999999") == -9999999999999999
    assert read(nested(32)) == json.loads(nested(32))


def test_brackets_in_strings_are_no_nesting() -> None:
    text = json.dumps(["[" * 100, '{"\\' * 50, "]" * 100])
    assert read(text.encode()) == json.loads(text)
    with pytest.raises(BundleFormatError, match="deeper than 32"):
        read(b'["\\\\",' * 33 + b'"' + b"]" * 33)


def test_surrogate_pair_is_one_character() -> None:
    assert read(b'"\\ud83d\\ude00"') == "\N{GRINNING FACE}"
    assert read('"\N{GRINNING FACE}"'.encode()) == "\N{GRINNING FACE}"


def test_foreign_text_in_the_message_is_ascii_and_short() -> None:
    with pytest.raises(BundleFormatError) as caught:
        key = json.dumps("\x1b[2J\u202e" + "x" * 10_000)
        read(f"{{{key}: 1, {key}: 2}}".encode())
    assert len(str(caught.value)) < 200
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("data", [b'"\\"' * 300_000, b'\\"' * 400_000, b"[" * 900_000, b"1." + b"1" * 900_000])
def test_a_megabyte_of_spite_is_answered_at_once(data: bytes) -> None:
    start = time.perf_counter()
    with contextlib.suppress(BundleFormatError):
        read(data, floats=True)
    assert time.perf_counter() - start < 1


TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"))
INTEGERS = st.integers(-(10**16) + 1, 10**16 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)


def documents(leaves: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(TEXTS, inner), max_leaves=20)


@settings(deadline=None)
@given(documents(st.none() | st.booleans() | INTEGERS | TEXTS), st.booleans())
def test_document_without_floats_reads_as_the_ordinary_reader_reads_it(value: object, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert read(text.encode()) == json.loads(text) == value


@settings(deadline=None)
@given(documents(st.none() | st.booleans() | INTEGERS | FLOATS | TEXTS))
def test_document_with_floats_reads_as_the_ordinary_reader_reads_it(value: object) -> None:
    text = json.dumps(value, indent=1)
    assert read(text.encode(), floats=True) == json.loads(text) == value


@settings(deadline=None)
@given(st.binary() | st.text('[]{}",:\\u0dD8cnulltrfasEe+-.19 ').map(str.encode), st.booleans())
def test_any_bytes_are_read_or_refused_and_never_anything_else(data: bytes, floats: bool) -> None:
    try:
        value = read(data, floats=floats)
    except BundleFormatError:
        return
    assert value == json.loads(data)
