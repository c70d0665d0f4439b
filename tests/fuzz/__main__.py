"""Fuzz for as long as you like: `python -m tests.fuzz manifest --seconds 600 --seed 7`; `all` takes each in turn.

With `atheris` installed (x86-64) the fuzzing is guided by the coverage of our own modules; without it, or with
`--plain`, inputs are spoiled by `mutate` alone. A crash is written to `tests/fuzz/kept/`, where the tests find it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.watch import SCRATCH


def main() -> int:
    """Parse the words and fuzz."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", help="a target, or `all`")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 31))
    parser.add_argument("--plain", action="store_true", help="without coverage, even if atheris is there")
    asked = parser.parse_args()
    guided = importlib.util.find_spec("atheris") is not None and not asked.plain
    if asked.name == "all":
        return _all(asked)
    if guided and SCRATCH not in os.environ:  # the engine leaves without a word, and somebody has to tidy up
        with tempfile.TemporaryDirectory(prefix="lk-fuzz-") as folder:
            command = [sys.executable, "-m", "tests.fuzz", *sys.argv[1:], "--seed", str(asked.seed)]
            return subprocess.run(command, env=os.environ | {SCRATCH: folder}, check=False).returncode
    print(f"{asked.name}: seed {asked.seed}, {'guided by coverage' if guided else 'mutations alone'}", flush=True)
    return _guided(asked) if guided else _plain(asked)


def _all(asked: argparse.Namespace) -> int:
    from tests.fuzz.targets import TARGETS

    words = ["--seconds", str(asked.seconds), "--seed", str(asked.seed), *(["--plain"] if asked.plain else [])]
    codes = [
        subprocess.run([sys.executable, "-m", "tests.fuzz", name, *words], check=False).returncode for name in TARGETS
    ]
    print(f"{len(codes)} targets, {sum(map(bool, codes))} with crashes")
    return int(any(codes))


def _plain(asked: argparse.Namespace) -> int:
    from tests.fuzz.run import run
    from tests.fuzz.targets import TARGETS

    target = TARGETS[asked.name]
    done = run(target, seconds=asked.seconds, seed=asked.seed)
    print(f"{asked.name}: {done.cases} cases in {done.seconds:.0f} s, {len(done.crashes)} crashes")
    for crash in done.crashes:
        print(f"  {crash.keep(target)}\n{crash.what}")
    return int(bool(done.crashes))


def _guided(asked: argparse.Namespace) -> int:
    import atheris

    with atheris.instrument_imports(include=["lenskeep"]):
        from tests.fuzz.targets import TARGETS
    from tests.fuzz import mutate
    from tests.fuzz.watch import tried

    target = TARGETS[asked.name]
    seeds = [*target.seeds(), *target.kept()]
    counted = [0, time.monotonic()]

    def feed(data: bytes) -> None:
        counted[0] += 1
        crash = tried(target, data)
        if crash is not None:
            print(f"{asked.name}: CRASH {crash.keep(target)}\n{crash.what}", flush=True)
            raise SystemExit(1)

    def spoil(data: bytes, size_max: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if dice.random() < 0.5:
            return bytes(atheris.Mutate(data, size_max))
        return mutate.spoiled(dice, data, seeds)[:size_max]

    with tempfile.TemporaryDirectory() as folder:
        for number, seed in enumerate(seeds):
            (Path(folder) / f"{number}").write_bytes(seed)
        words = [f"-max_total_time={asked.seconds:.0f}", f"-seed={asked.seed}", "-verbosity=0", "-print_final_stats=1"]
        atheris.Setup(
            [sys.argv[0], *words, f"-max_len={max(map(len, seeds)) * 2 + 4096}", folder], feed, custom_mutator=spoil
        )
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
