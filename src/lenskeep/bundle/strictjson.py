"""JSON from strangers, read so that no two readers can understand it differently.

Rules. Plain UTF-8 without a byte order mark, at most 32 levels deep, each key once, numbers that every
language reads alike (integers of at most 16 digits, finite floats where floats are welcome at all), text
without NUL and without half a surrogate pair. Depth is counted before anything is parsed, so the parser
cannot run away.
Not here: what the values mean; `manifest` and `signing` say that.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter

from lenskeep.errors import BundleFormatError

DEPTH_MAX = 32
INTEGER_DIGITS_MAX = 16

# A string counts as one token so that brackets in it are no nesting. Everything behind the opening quote is
# optional and possessive: an unfinished string is one token too, and no input makes the search walk back.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]++|\\.?)*+"?|[\[\]{}]', re.DOTALL)
_HALF_PAIR = re.compile("[\ud800-\udfff]")


def loads(data: bytes, *, bytes_max: int, floats: bool) -> object:
    """Parse one strict JSON document.

    Args:
        floats: whether numbers with a fraction or an exponent are allowed; `1.0` and `1e5` count as such.
    Raises: BundleFormatError naming the first thing that is wrong.
    Cost: a few passes over `data`; memory in proportion to it.
    """
    text = _decode(data, bytes_max)
    _check_depth(text)
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_float if floats else _refuse_float,
            parse_constant=_refuse_constant,
        )
    except ValueError as error:
        raise BundleFormatError(f"The JSON text is malformed: {error}.") from error
    _check_texts(value)
    return value


def _decode(data: bytes, bytes_max: int) -> str:
    if len(data) > bytes_max:
        raise BundleFormatError(f"The JSON text is {len(data)} bytes long; at most {bytes_max} are allowed.")
    if data.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")):
        raise BundleFormatError("The JSON text starts with a byte order mark; plain UTF-8 is expected.")
    if b"\0" in data:
        raise BundleFormatError("The JSON text contains a NUL byte; plain UTF-8 is expected.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleFormatError(f"The JSON text is not UTF-8 at byte {error.start}.") from error
    if not text.strip(" \t\r\n"):
        raise BundleFormatError("The JSON text is empty.")
    return text


def _check_depth(text: str) -> None:
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        mark = text[token.start()]
        if mark in "[{":
            depth += 1
            if depth > DEPTH_MAX:
                raise BundleFormatError(f"The JSON text is nested deeper than {DEPTH_MAX} levels.")
        elif mark in "]}":
            depth -= 1


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise BundleFormatError(f"The JSON key {_quoted(twice)} appears twice in one object.")
    return members


def _integer(digits: str) -> int:
    if len(digits.removeprefix("-")) > INTEGER_DIGITS_MAX:
        raise BundleFormatError(
            f"The JSON number {_quoted(digits)} has more than {INTEGER_DIGITS_MAX} digits; some round it."
        )
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise BundleFormatError(f"The JSON number {_quoted(digits)} is too large.")
    return number


def _refuse_float(digits: str) -> float:
    raise BundleFormatError(f"The JSON number {_quoted(digits)} is a float; only integers are allowed here.")


def _refuse_constant(word: str) -> float:
    raise BundleFormatError(f"The JSON text contains {word}, which is not a JSON number.")


def _check_texts(value: object) -> None:
    """Refuse what an escape can smuggle into a string; recursion is bounded by `_check_depth`."""
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_text(key)
            _check_texts(item)


def _check_text(text: str) -> None:
    if "\0" in text:
        raise BundleFormatError(f"The JSON string {_quoted(text)} contains NUL.")
    if _HALF_PAIR.search(text):
        raise BundleFormatError(f"The JSON string {_quoted(text)} contains half of a surrogate pair.")


def _quoted(text: str, length_max: int = 60) -> str:
    """Show a stranger's text in a sentence: ASCII only, and not all of it."""
    return ascii(text if len(text) <= length_max else text[: length_max - 3] + "...")
