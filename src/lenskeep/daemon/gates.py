"""The gates of probation: may the new version stay? Pure: counts in, a fault or nothing out."""

from __future__ import annotations

from math import sqrt

from lenskeep.config import Probation
from lenskeep.errors import ErrorRateGateError, LatencyGateError, OutcomeShiftGateError, SlotError
from lenskeep.registry.windows import Span


def judge(new: Span, old: Span, *, budget_ms: float, limits: Probation, accepted: list[str]) -> SlotError | None:
    """Return why the new version must go back, or None.

    Args:
        new: what it did since the swap. old: what the version before did; empty when there was none.
        accepted: risks that the person who activated it took knowingly.
    """
    if new.frames < limits.frames_min:
        return None
    if (errors := new.share("ERROR")) > limits.error_ratio_max:
        return ErrorRateGateError(
            f"{errors:.1%} of its frames ended in an error (allowed {limits.error_ratio_max:.1%})."
        )
    if slow := _latency(new, old, budget_ms, limits):
        return LatencyGateError(slow)
    if "outcome-shift" not in accepted and (shift := _shift(new, old, limits)):
        return OutcomeShiftGateError(shift)
    return None


def _work_p99_ms(span: Span) -> float:
    """Sum of the stages' p99: what the version costs, without the time a frame waits for its turn."""
    return sum(span.sketches[stage].quantile_us(0.99) for stage in ("preprocess", "inference", "decode")) / 1000


def _latency(new: Span, old: Span, budget_ms: float, limits: Probation) -> str:
    p99_ms = _work_p99_ms(new)
    if p99_ms > budget_ms:
        return f"Its p99 on the line is {p99_ms:.1f} ms (budget {budget_ms:.1f} ms)."
    before_ms = _work_p99_ms(old)
    # far below its budget a version may double without harm, and a busy moment doubles any: it counts from half of it
    if old.frames >= limits.frames_min and p99_ms > max(before_ms * limits.p99_ratio_max, budget_ms / 2):
        return f"Its p99 on the line is {p99_ms:.1f} ms, the previous version's was {before_ms:.1f} ms."
    return ""


def _shift(new: Span, old: Span, limits: Probation) -> str:
    """A shift counts when it is larger than allowed and larger than chance explains (two standard errors)."""
    if old.frames < limits.frames_min:
        return ""
    for outcome in ("NG", "UNCERTAIN"):
        now, before = new.share(outcome), old.share(outcome)
        chance = 2 * sqrt(now * (1 - now) / new.frames + before * (1 - before) / old.frames)
        if abs(now - before) > limits.outcome_shift_max + chance:
            return f"{now:.0%} of its results are {outcome}, with the previous version it was {before:.0%}."
    return ""
