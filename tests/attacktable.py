"""The attack table: every number of the attack list, the doors it was tried at, the tests, and how they ended."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.attacks import CASES, GROUPS, NOT_APPLICABLE

DOORS = {
    "tests/journeys": "device",
    "tests/process/test_fleet": "fleet",
    "tests/process": "trial and runner",
    "tests/unit/trust": "repository",
    "tests/unit": "reader",
}


@dataclass
class Proof:
    """One test that carries a number."""

    node: str
    outcome: str = ""  # passed, failed, skipped; empty when it was not run

    @property
    def test(self) -> str:
        """The test without its parameter."""
        return self.node.partition("[")[0]

    @property
    def doors(self) -> set[str]:
        """Where the attack came in."""
        named = {word for word in ("stick", "network") if word in self.node}
        return named | {next((door for path, door in DOORS.items() if self.node.startswith(path)), "tests")}


@dataclass(eq=False)  # a plugin is known by itself
class Ledger:
    """A plugin that notes the marked tests and how they end."""

    proofs: dict[int, list[Proof]] = field(default_factory=lambda: defaultdict(list))
    _by_node: dict[str, Proof] = field(default_factory=dict)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note the marked tests; leave only them when they are to be run."""
        marked = []
        for item in items:
            numbers = sorted(
                {number for mark in item.iter_markers("attack") for number in mark.args if isinstance(number, int)}
            )
            if numbers:
                marked.append(item)
                proof = self._by_node[item.nodeid] = Proof(item.nodeid)
                for number in numbers:
                    self.proofs[number].append(proof)
        items[:] = marked

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the worst that happened to a test."""
        proof = self._by_node[report.nodeid]
        if report.failed or (report.skipped and proof.outcome != "failed") or not proof.outcome:
            proof.outcome = report.outcome


def missing(ledger: Ledger) -> list[str]:
    """Say what has neither a test nor a reason, or both, or a number that is none."""
    wrong = [f"{number} {CASES[number]}: no test and no reason" for number in CASES
             if not ledger.proofs.get(number) and number not in NOT_APPLICABLE]  # fmt: skip
    wrong += [
        f"{number}: has tests and yet a reason to have none" for number in NOT_APPLICABLE if ledger.proofs.get(number)
    ]
    wrong += [f"{number}: is no number of the list" for number in ledger.proofs if number not in CASES]
    return wrong


def full_table(ledger: Ledger) -> Iterator[str]:
    """Yield the table of all numbers, as Markdown."""
    yield "| | attack | doors | tests | refused |"
    yield "|---|---|---|---|---|"
    for number, attack in CASES.items():
        proofs = ledger.proofs.get(number, [])
        if not proofs:
            yield f"| {number} | {attack} | — | {NOT_APPLICABLE.get(number, 'MISSING')} | |"
            continue
        doors = ", ".join(sorted(set().union(*(proof.doors for proof in proofs))))
        tests = sorted({proof.test.removeprefix("tests/") for proof in proofs})
        shown = "<br>".join(f"`{test}`" for test in tests)
        yield f"| {number} | {attack} | {doors} | {shown} | {_refused(proofs)} |"


def short_table(ledger: Ledger) -> Iterator[str]:
    """Yield one line for each group, as Markdown."""
    yield "| group | attacks | with tests | tests | refused | not applicable |"
    yield "|---|---|---|---|---|---|"
    for group, numbers in GROUPS.items():
        proofs = {proof.node: proof for number in numbers for proof in ledger.proofs.get(number, [])}
        proven = sum(bool(ledger.proofs.get(number)) for number in numbers)
        without = [f"{number}: {NOT_APPLICABLE[number]}" for number in numbers if number in NOT_APPLICABLE]
        left = "; ".join(without) or "0"
        yield f"| {group} | {len(numbers)} | {proven} | {len(proofs)} | {_refused(list(proofs.values()))} | {left} |"


def _refused(proofs: list[Proof]) -> str:
    if not any(proof.outcome for proof in proofs):
        return "not run"
    passed = sum(proof.outcome == "passed" for proof in proofs)
    skipped = sum(proof.outcome == "skipped" for proof in proofs)
    return f"{passed} of {len(proofs)}" + (f" ({skipped} skipped here)" if skipped else "")


def collect(*, run: bool) -> Ledger:
    """Collect the marked tests of the whole tree, and run them when asked to."""
    ledger = Ledger()
    arguments = ["tests", "-p", "no:cacheprovider", *([] if run else ["--collect-only"])]
    said = io.StringIO()
    with contextlib.redirect_stdout(sys.stderr if run else said):
        code = pytest.main(arguments, plugins=[ledger])
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise SystemExit(f"the tests cannot be collected\n{said.getvalue()[-3000:]}")
    return ledger


def main() -> int:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(prog="scripts/attack-table", description=__doc__)
    parser.add_argument("--run", action="store_true", help="run the tests and count what was refused")
    parser.add_argument("--short", action="store_true", help="one line for each group")
    parser.add_argument("--check", action="store_true", help="only say what has neither a test nor a reason")
    asked = parser.parse_args()
    ledger = collect(run=asked.run)
    wrong = missing(ledger)
    if not asked.check:
        print("\n".join(short_table(ledger) if asked.short else full_table(ledger)))
    for line in wrong:
        print(line, file=sys.stderr)
    failed = any(proof.outcome == "failed" for proofs in ledger.proofs.values() for proof in proofs)
    return 1 if wrong or failed else 0


if __name__ == "__main__":
    sys.exit(main())
