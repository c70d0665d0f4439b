"""The latency sketch: time to add, bytes for 10,000 samples, error of its quantiles.

`python -m tests.bench.sketch_bench`
"""

from __future__ import annotations

import time

import numpy as np

from lenskeep.sketch import Sketch
from tests.bench import rig

SAMPLES = 10_000
ROUNDS = 9


def main() -> None:
    """Measure and print."""
    samples_us = np.random.default_rng(7).lognormal(2.3, 0.6, SAMPLES) * 1000
    values = samples_us.tolist()
    costs_ns, empty_ns = [], []
    for _ in range(ROUNDS):
        sketch = Sketch()
        add = sketch.add
        begun = time.perf_counter()
        for value in values:
            add(value)
        costs_ns.append((time.perf_counter() - begun) / SAMPLES * 1e9)
        begun = time.perf_counter()
        for _value in values:
            pass
        empty_ns.append((time.perf_counter() - begun) / SAMPLES * 1e9)
    errors = [
        abs(sketch.quantile_us(fraction) / float(np.quantile(samples_us, fraction, method="lower")) - 1)
        for fraction in (0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
    ]
    rig.print_table(
        f"The latency sketch, {SAMPLES} lognormal samples",
        ["figure", "measured", "must", "aim"],
        [
            ["add, ns", f"{rig.median(costs_ns) - rig.median(empty_ns):.0f}", "300", "130"],
            ["bytes", len(sketch.to_bytes()), "700", "250"],
            ["largest error of a quantile, %", f"{100 * max(errors):.2f}", "1", "1"],
        ],
    )


if __name__ == "__main__":
    main()
