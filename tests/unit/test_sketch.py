"""The latency sketch: within 1 % of the exact quantile, small, mergeable, and unmoved by hostile bytes."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lenskeep.sketch import Sketch, SketchSum

durations = st.lists(st.floats(min_value=1.0, max_value=1e9), min_size=1, max_size=300)


def sketch_of(values: list[float]) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


@given(durations, st.floats(min_value=0.0, max_value=1.0))
def test_a_quantile_is_within_one_percent_of_the_exact_one(values: list[float], fraction: float) -> None:
    exact = sorted(values)[int(fraction * (len(values) - 1))]
    assert sketch_of(values).quantile_us(fraction) == pytest.approx(exact, rel=0.01)


@given(durations, durations)
def test_merging_two_sketches_is_counting_all_samples(first: list[float], second: list[float]) -> None:
    merged = sketch_of(first)
    merged.merge(sketch_of(second))
    assert merged.counts == sketch_of(first + second).counts
    assert merged.total == len(first) + len(second)


@given(durations)
def test_packing_and_unpacking_keeps_every_count(values: list[float]) -> None:
    sketch = sketch_of(values)
    again = Sketch.from_bytes(sketch.to_bytes())
    assert (again.counts, again.total) == (sketch.counts, sketch.total)
    assert again.sum_us == pytest.approx(sum(values), rel=0.0101)


@given(st.binary(max_size=200))
def test_strange_bytes_are_refused_or_read_and_nothing_else(data: bytes) -> None:
    try:
        Sketch.from_bytes(data)
    except ValueError:
        pass


def test_ten_thousand_samples_take_less_than_700_bytes() -> None:
    dice = random.Random(1)
    values = [dice.lognormvariate(2.3, 0.6) * 1000 for _ in range(10_000)]
    assert len(sketch_of(values).to_bytes()) <= 700


def test_an_empty_sketch_answers_zero() -> None:
    assert Sketch().quantile_us(0.99) == 0.0
    assert Sketch.from_bytes(Sketch().to_bytes()).total == 0


def test_over_counts_what_is_above_a_limit() -> None:
    sketch = sketch_of([1000.0] * 90 + [50_000.0] * 10)
    assert sketch.over(10_000) == 10


def test_many_sketches_added_at_once_are_the_same_as_one_after_the_other() -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    rng, slow, fast = random.Random(seed), Sketch(), SketchSum()
    for _ in range(700):  # more than lanes hold
        one = Sketch()
        middle, width = rng.uniform(0.0, 20.9), rng.choice([0.0, 0.01, 0.3, 2.0])
        for _ in range(rng.choice([1, 5, 300])):
            one.add(min(1.1e9, max(0.1, math.exp(rng.gauss(middle, width)))))
        slow.merge(one)
        fast.add(one.to_bytes())
    assert dict(fast.total().counts) == dict(slow.counts)


def test_bytes_that_are_no_sketch_are_refused_the_same_way_when_many_are_added() -> None:
    seed = random.randrange(1 << 31)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(3000):
        data = bytes(rng.choice([0, 0, 1, 5, 127, 128, 255, rng.randrange(256)]) for _ in range(rng.randrange(12)))
        slow, fast, refused = Sketch(), SketchSum(), [False, False]
        for number, add in enumerate((slow.merge_bytes, fast.add)):
            try:
                add(data)
            except ValueError:
                refused[number] = True
        if not refused[1]:
            assert not refused[0], data.hex()
            assert dict(fast.total().counts) == dict(slow.counts), data.hex()
