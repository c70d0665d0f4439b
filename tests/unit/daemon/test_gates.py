"""The gates of probation: what sends a version back, and what must not."""

from __future__ import annotations

import pytest

from lenskeep.config import Probation
from lenskeep.daemon.gates import judge
from lenskeep.errors import ErrorRateGateError, LatencyGateError, OutcomeShiftGateError
from lenskeep.registry.windows import Span

LIMITS = Probation()


def span(*, ok: int = 0, ng: int = 0, error: int = 0, inference_ms: float = 5.0) -> Span:
    made = Span()
    made.outcomes = {"OK": ok, "NG": ng, "ERROR": error}
    made.frames = ok + ng + error
    for stage, duration_ms in (("preprocess", 0.5), ("inference", inference_ms), ("decode", 0.1)):
        for _ in range(made.frames):
            made.sketches[stage].add(duration_ms * 1000)
    return made


def verdict(new: Span, old: Span, accepted: list[str] | None = None, budget_ms: float = 40.0) -> type | None:
    fault = judge(new, old, budget_ms=budget_ms, limits=LIMITS, accepted=accepted or [])
    return type(fault) if fault else None


def test_too_few_frames_judge_nothing() -> None:
    assert verdict(span(error=LIMITS.frames_min - 1), span(ok=500)) is None


def test_a_version_that_does_as_the_previous_one_may_stay() -> None:
    assert verdict(span(ok=480, ng=20), span(ok=490, ng=10)) is None


def test_errors_above_the_allowed_share_send_it_back() -> None:
    assert verdict(span(ok=95, error=5), span(ok=500)) is ErrorRateGateError


def test_a_p99_above_the_budget_sends_it_back_even_without_a_previous_version() -> None:
    assert verdict(span(ok=100, inference_ms=41), Span()) is LatencyGateError


def test_a_p99_far_above_the_previous_version_sends_it_back() -> None:
    assert verdict(span(ok=100, inference_ms=30), span(ok=100, inference_ms=5)) is LatencyGateError


def test_a_tiny_model_may_double_when_it_stays_far_below_the_budget() -> None:
    assert verdict(span(ok=100, inference_ms=1.5), span(ok=100, inference_ms=0.2)) is None


def test_a_shift_of_the_ng_rate_sends_it_back() -> None:
    assert verdict(span(ok=40, ng=60), span(ok=480, ng=20)) is OutcomeShiftGateError


def test_a_shift_that_chance_explains_does_not() -> None:
    assert verdict(span(ok=20, ng=11), span(ok=490, ng=10)) is None


def test_a_shift_that_somebody_answers_for_does_not() -> None:
    assert verdict(span(ok=40, ng=60), span(ok=480, ng=20), ["outcome-shift"]) is None


@pytest.mark.parametrize("new", [Span(), span(ok=100)])
def test_nothing_to_compare_with_is_no_fault(new: Span) -> None:
    assert verdict(new, Span()) is None
