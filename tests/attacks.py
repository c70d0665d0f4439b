"""The attack list: every number, what it is, and the way to hang it on a test.

A test that proves a case carries `@pytest.mark.attack(N)`; a table of cases whose names begin with their numbers is
parametrised with `named(TABLE)`. `scripts/attack-table` prints which number is proven where.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

GROUPS = {
    "A archive": range(1, 37),
    "B manifest and JSON": range(37, 53),
    "C signature": range(53, 76),
    "D repository and fleet": range(76, 104),
    "E model and runtime": range(104, 131),
}

CASES = {
    1: "`../x`",
    2: "absolute path",
    3: "symbolic link",
    4: "hard link",
    5: "character device",
    6: "pipe",
    7: "setuid mode",
    8: "duplicate member",
    9: "extra member",
    10: "missing member",
    11: "members in another order",
    12: "signature not first",
    13: "trailing byte",
    14: "trailing zero block",
    15: "cut short by one byte",
    16: "cut short in the middle",
    17: "empty file",
    18: "flipped bit",
    19: "padding that is not zero",
    20: "pax path override",
    21: "GNU long name",
    22: "sparse file",
    23: "size in base 256",
    24: "octal size of 8 GiB",
    25: "negative size",
    26: "bad checksum",
    27: "names that differ in case",
    28: "gzip, zip, or anything else",
    29: "size one short",
    30: "members over 2 and 4 GiB",
    31: "100,000 members",
    32: "disk full",
    33: "power cut at each step of an import",
    34: "two imports of one bundle at once",
    35: "rebuilt file not the same bytes",
    36: "names with NUL, newline, dot, 101 bytes …",
    37: "duplicate key",
    38: "NaN and Infinity",
    39: "float for an integer",
    40: "integer of 30 digits",
    41: "200,000 levels",
    42: "half a surrogate pair",
    43: "byte order mark, UTF-16",
    44: "unknown field",
    45: "wrong type in any field",
    46: "truth value for an integer",
    47: "Cyrillic letter in a name",
    48: "bidirectional override in a label",
    49: "terminal escape in a text",
    50: "name inside differs from the name outside",
    51: "upper-case digest",
    52: "base64 in another spelling",
    53: "wrong key",
    54: "removed key",
    55: "no signature in the list",
    56: "empty signature",
    57: "two signatures with one key id",
    58: "one key under two ids",
    59: "key id of one, signature of another",
    60: "payload type changed",
    61: "report replayed as a bundle's signature, and back",
    62: "scheme named in the document",
    63: "P-384 key for a P-256 one",
    64: "malleated signature",
    65: "r or s out of range",
    66: "DER with more or in another spelling",
    67: "unsigned file added",
    68: "signed file missing",
    69: "digest mismatch",
    70: "shards, symbolic links, the older predicate",
    71: "key of another model name",
    72: "right target, signed by another role's key",
    73: "right signature, not the listed digest",
    74: "installed file changed",
    75: "file exchanged between hash and load",
    76: "whole repository rolled back",
    77: "one role rolled back",
    78: "expired role",
    79: "mix and match",
    80: "endless data",
    81: "slow drip",
    82: "fast-forward and its recovery",
    83: "root skips a version",
    84: "root with too few signatures",
    85: "role gone from the snapshot",
    86: "delegations in a circle or too deep",
    87: "hostile role name",
    88: "terminating passed over",
    89: "wildcard across `/`",
    90: "diamond of delegations",
    91: "clock at 1970, at 2099, going back",
    92: "state deleted, cut, restored from an old copy",
    93: "assignment of another device",
    94: "unlisted or withdrawn version assigned",
    95: "director lists models, publisher lists devices",
    96: "captive portal",
    97: "404 for a named file",
    98: "redirect elsewhere",
    99: "stick expired, with links, pulled out",
    100: "report's counter replayed",
    101: "certificate of an unlisted device",
    102: "enrolment token used again",
    103: "certificate request for another device",
    104: "external data with `..`",
    105: "external data, absolute",
    106: "external data through a symbolic link",
    107: "external data through a hard link",
    108: "external data from a device",
    109: "offset and length that lie",
    110: "dims that lie",
    111: "constant of 16 GiB",
    112: "resize bomb",
    113: "endless loop",
    114: "loop that grows memory",
    115: "nested If",
    116: "function recursion",
    117: "function billion laughs",
    118: "function chain 3,000 deep",
    119: "operator of a foreign domain",
    120: "cycle in the graph",
    121: "future opset or IR",
    122: "garbage, cut, trailing, empty model",
    123: "protobuf over 2 GiB",
    124: "frame without a pixel",
    125: "input other than in the manifest",
    126: "frame of 20,000 pixels",
    127: "NaN, infinite or constant output",
    128: "output shape other than in the manifest",
    129: "ten times over the latency budget",
    130: "crash at load, at the first run, later",
}

# A number that has no test says why; a test sees to it that each has one or the other.
NOT_APPLICABLE: dict[int, str] = {}


def numbers_in(name: str) -> tuple[int, ...]:
    """Return the numbers that a case's name begins with: `125 128 another shape` gives both."""
    found = re.match(r"(?:\d+ )*", name)
    return tuple(int(word) for word in found[0].split()) if found else ()


def named(table: Iterable[str]) -> list[Any]:
    """Turn the names of a table of attacks into parameters that carry their numbers."""
    params = []
    for name in table:
        numbers = [number for number in numbers_in(name) if number in CASES]
        params.append(pytest.param(name, marks=pytest.mark.attack(*numbers) if numbers else ()))
    return params
