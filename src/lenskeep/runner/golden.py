"""Whether an answer is the golden one, how near it is, and in words what differs."""

from __future__ import annotations

from dataclasses import dataclass

from lenskeep.bundle.manifest import GoldenBox, GoldenCase, Manifest
from lenskeep.messages.runner import Detection
from lenskeep.runner.decode.answer import Answer


@dataclass(frozen=True, slots=True)
class Comparison:
    """One golden picture's answer beside the expected one; `agreement` is 1.0 when they are equal."""

    passed: bool
    agreement: float
    difference: str = ""


def compare(case: GoldenCase, answer: Answer, manifest: Manifest) -> Comparison:
    """Compare within the manifest's tolerance."""
    if case.scores is not None:
        return _scores(case.scores, answer, manifest)
    return _boxes(case.boxes or [], answer.detections, manifest)


def _scores(expected: dict[str, float], answer: Answer, manifest: Manifest) -> Comparison:
    assert answer.scores is not None
    given = dict(zip(manifest.labels.names, answer.scores.tolist(), strict=True))
    worst = max(expected, key=lambda label: abs(given[label] - expected[label]), default="")
    apart = abs(given[worst] - expected[worst]) if worst else 0.0
    if apart <= manifest.golden.tolerance.score_abs:
        return Comparison(True, 1.0 - apart)
    difference = f'expected "{worst}" {expected[worst]:.3f}, got {given[worst]:.3f}'
    return Comparison(False, max(0.0, 1.0 - apart), difference)


def _boxes(expected: list[GoldenBox], given: list[Detection], manifest: Manifest) -> Comparison:
    tolerance = manifest.golden.tolerance
    # a box this close to the limit may be on either side of it
    doubtful = getattr(manifest.decode, "score_min", 0.0) + tolerance.score_abs
    left, agreement, problems = list(given), 0.0, []
    for box in sorted(expected, key=lambda box: -box.score):
        mine = max((one for one in left if one.label == box.label), key=lambda one: overlap(one, box), default=None)
        near = overlap(mine, box) if mine is not None else 0.0
        if mine is None or near < tolerance.box_iou_min or abs(mine.score - box.score) > tolerance.score_abs:
            if box.score > doubtful:
                problems.append(_missing(box, mine, near))
            continue
        left.remove(mine)
        agreement += near * (1.0 - abs(mine.score - box.score))
    surplus = [one for one in left if one.score > doubtful]
    if surplus and not problems:
        problems.append(f'expected no more, got "{surplus[0].label}" {surplus[0].score:.3f}')
    if problems:
        problems[0] = f"expected {counted(expected)}, got {counted(given)}; {problems[0]}"
    sure = max(len(expected), len(expected) + len(surplus))
    return Comparison(not problems, agreement / sure if sure else 1.0, problems[0] if problems else "")


def _missing(box: GoldenBox, mine: Detection | None, near: float) -> str:
    if mine is None or near < 0.3:
        return f'no "{box.label}" at {", ".join(f"{edge:.0f}" for edge in box.box)}'
    return f'"{box.label}" lies off (IoU {near:.2f}) or scores {mine.score:.3f} instead of {box.score:.3f}'


def counted(things: list[GoldenBox] | list[Detection]) -> str:
    """Say how many of each label: `2 "good", 1 "missing"`."""
    labels = [thing.label for thing in things]
    return ", ".join(f'{labels.count(label)} "{label}"' for label in sorted(set(labels))) or "nothing"


def overlap(mine: Detection, box: GoldenBox) -> float:
    """Return the area that both cover over the area that either covers (IoU)."""
    x1, y1, x2, y2 = box.box
    wide = max(0.0, min(mine.x2, x2) - max(mine.x1, x1))
    tall = max(0.0, min(mine.y2, y2) - max(mine.y1, y1))
    both = wide * tall
    either = (mine.x2 - mine.x1) * (mine.y2 - mine.y1) + (x2 - x1) * (y2 - y1) - both
    return both / either if either > 0 else 0.0
