"""From what a model says to what the line does: OK, NG or UNCERTAIN.

The rules stand in the manifest's verdict and are signed. Doubt is never OK: a label in neither list, a score between
the two thresholds and a part that may be one too few all give UNCERTAIN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lenskeep.bundle.manifest import Manifest
from lenskeep.messages.runner import Detection, Outcome
from lenskeep.runner.decode.answer import Answer, Numbers


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict on one frame.

    `label` and `score` are those that decided, or of the surest sound part when nothing spoke against it.
    `margin` is the smallest change of a score that would have changed the outcome.
    """

    outcome: Outcome
    label: str
    score: float
    margin: float
    detections: list[Detection]


class Judge:
    """Applies one manifest's verdict."""

    def __init__(self, manifest: Manifest) -> None:
        self._names = manifest.labels.names
        self._verdict = manifest.verdict
        self._ok = frozenset(manifest.verdict.ok)
        self._ng = frozenset(manifest.verdict.ng)

    def judge(self, answer: Answer) -> Judgement:
        """Return the verdict on one answer."""
        if answer.scores is not None:
            return self._best_label(answer.scores)
        return self._things(answer.detections)

    def _best_label(self, scores: Numbers) -> Judgement:
        best = int(scores.argmax())
        label, score = self._names[best], float(scores[best])
        margin = abs(score - self._verdict.certain_from)
        if score < self._verdict.certain_from or label not in self._ok | self._ng:
            return Judgement("UNCERTAIN", label, score, margin, [])
        return Judgement("OK" if label in self._ok else "NG", label, score, margin, [])

    def _things(self, detections: list[Detection]) -> Judgement:
        verdict = self._verdict
        fault = _surest([thing for thing in detections if thing.label in self._ng])
        sound = sorted((thing for thing in detections if thing.label in self._ok), key=lambda thing: -thing.score)
        needed = verdict.ok_count_min
        # the score of the part that completes the count; with too few parts, of one that was not seen at all
        complete = 1.0 if not needed else sound[needed - 1].score if len(sound) >= needed else 0.0
        label, score = (sound[0].label, sound[0].score) if sound else ("", 0.0)
        if fault.score >= verdict.certain_from and fault.label:
            return Judgement("NG", fault.label, fault.score, fault.score - verdict.certain_from, detections)
        if complete < verdict.uncertain_from:
            return Judgement("NG", label, score, verdict.uncertain_from - complete, detections)
        if fault.score >= verdict.uncertain_from and fault.label:
            return Judgement("UNCERTAIN", fault.label, fault.score, verdict.certain_from - fault.score, detections)
        if complete < verdict.certain_from:
            return Judgement("UNCERTAIN", label, score, verdict.certain_from - complete, detections)
        spare = [verdict.uncertain_from - fault.score] + ([complete - verdict.certain_from] if needed else [])
        return Judgement("OK", label, score, min(spare), detections)


_NOTHING = Detection("", 0.0, 0.0, 0.0, 0.0, 0.0)


def _surest(things: Sequence[Detection]) -> Detection:
    return max(things, key=lambda thing: thing.score, default=_NOTHING)
