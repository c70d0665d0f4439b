"""Verdicts: what is OK, what is NG, and that doubt is never OK."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lenskeep.messages.runner import Detection
from lenskeep.runner.decode.answer import Answer
from lenskeep.runner.judge import Judge, Judgement
from tests.models import facts, finder_facts, manifest


def classified(*scores: float, **verdict: Any) -> Judgement:
    rules = facts()["verdict"] | {"certain_from": 0.6, "uncertain_from": 0.4} | verdict
    return Judge(manifest(facts(verdict=rules))).judge(Answer(scores=np.array(scores, np.float32)))


def found(*things: tuple[str, float], **verdict: Any) -> Judgement:
    rules = {"ok": ["blue"], "ng": ["red"], "certain_from": 0.6, "uncertain_from": 0.4} | verdict
    boxes = [Detection(label, score, 0, 0, 9, 9) for label, score in things]
    return Judge(manifest(finder_facts(verdict=rules))).judge(Answer(detections=boxes))


def test_the_best_label_decides() -> None:
    seen = classified(0.1, 0.8, 0.1)
    assert (seen.outcome, seen.label, round(seen.score, 3), round(seen.margin, 3)) == ("NG", "scratched", 0.8, 0.2)
    assert classified(0.8, 0.1, 0.1).outcome == "OK"


def test_a_best_label_below_the_threshold_is_uncertain() -> None:
    seen = classified(0.55, 0.45, 0.0)
    assert (seen.outcome, seen.label, round(seen.margin, 3)) == ("UNCERTAIN", "good", 0.05)


def test_a_label_in_neither_list_is_uncertain_however_sure() -> None:
    assert classified(0.0, 0.0, 1.0, ng=["scratched"]).outcome == "UNCERTAIN"


def test_an_empty_picture_is_ok_when_no_part_is_required() -> None:
    assert found() == Judgement("OK", "", 0.0, 0.4, [])


@pytest.mark.parametrize(
    ("score", "outcome", "margin"), [(0.9, "NG", 0.3), (0.6, "NG", 0.0), (0.5, "UNCERTAIN", 0.1), (0.3, "OK", 0.1)]
)
def test_a_fault_decides_by_its_score(score: float, outcome: str, margin: float) -> None:
    seen = found(("red", score), ("blue", 0.95))
    assert (seen.outcome, round(seen.margin, 6)) == (outcome, margin)
    assert (seen.label, seen.score) == (("red", score) if outcome != "OK" else ("blue", 0.95))
    assert len(seen.detections) == 2


@pytest.mark.parametrize(
    ("scores", "outcome", "margin"),
    [
        ([0.9, 0.8], "OK", 0.2),
        ([0.9, 0.5], "UNCERTAIN", 0.1),
        ([0.9, 0.3], "NG", 0.1),
        ([0.9], "NG", 0.4),
        ([], "NG", 0.4),
        ([0.5, 0.9, 0.7], "OK", 0.1),
    ],
)
def test_too_few_sound_parts_are_ng_and_perhaps_too_few_are_uncertain(
    scores: list[float], outcome: str, margin: float
) -> None:
    seen = found(*(("blue", score) for score in scores), ok_count_min=2)
    assert (seen.outcome, round(seen.margin, 6)) == (outcome, margin)


def test_a_fault_outweighs_the_count() -> None:
    assert found(("blue", 0.9), ("red", 0.9), ok_count_min=1).label == "red"
    assert found(("blue", 0.5), ("red", 0.5), ok_count_min=1).outcome == "UNCERTAIN"
    assert found(("red", 0.5), ok_count_min=1).outcome == "NG"
