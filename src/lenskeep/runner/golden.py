"""Whether an answer is the golden one, how near it is, and in words what differs."""

from __future__ import annotations

from dataclasses import dataclass

from lenskeep.bundle.manifest import GoldenBox, GoldenCase, Manifest, Tolerance
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
        problem = _apart(box, mine, tolerance)
        if mine is not None and not problem:
            left.remove(mine)
            agreement += overlap(mine, box) * (1.0 - abs(mine.score - box.score))
        elif box.score > doubtful:
            problems.append(problem)
        else:
            agreement += 1.0
    surplus = [one for one in left if one.score > doubtful]
    if surplus and not problems:
        problems.append(f'nothing else, got "{surplus[0].label}" {surplus[0].score:.3f}')
    places = len(expected) + len(surplus)
    return Comparison(not problems, agreement / places if places else 1.0, _first(problems, expected, given))


def _apart(box: GoldenBox, mine: Detection | None, tolerance: Tolerance) -> str:
    """Say how the nearest box with the right label differs, or nothing when it is near enough."""
    near = overlap(mine, box) if mine is not None else 0.0
    if mine is None or near < 0.3:
        return f'"{box.label}" at {", ".join(f"{edge:.0f}" for edge in box.box)}, got none there'
    if near < tolerance.box_iou_min:
        return f'"{box.label}" at {", ".join(f"{edge:.0f}" for edge in box.box)}, got one that covers it by {near:.2f}'
    if abs(mine.score - box.score) > tolerance.score_abs:
        return f'"{box.label}" {box.score:.3f}, got {mine.score:.3f}'
    return ""


def _first(problems: list[str], expected: list[GoldenBox], given: list[Detection]) -> str:
    """Say what is wrong: the counts where they differ, else the first problem."""
    if not problems:
        return ""
    wanted, got = counted(expected), counted(given)
    return f"expected {wanted}, got {got}" if wanted != got else f"expected {problems[0]}"


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
