"""Why golden answers differ: the usual mistakes of an export, tried one by one until the answers fit.

A model that is right in its training framework and wrong here was nearly always fed differently: other colour order,
other resize, other range of numbers. Every such mistake is a small change of the contract; the one under which all
golden pictures pass is named. Nothing is ever run with a changed contract: the maker corrects it and signs anew.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, get_args

import msgspec
import numpy as np

from lenskeep.bundle.manifest import ClassifyDecode, GoldenCase, Kernel, Manifest, ResizeMode
from lenskeep.errors import LenskeepError
from lenskeep.runner.decode.answer import Answer
from lenskeep.runner.decode.kinds import decoder
from lenskeep.runner.engine import Engine
from lenskeep.runner.golden import compare, overlap
from lenskeep.runner.resize import Image
from lenskeep.runner.tensors import Preprocessor

SEARCH_S_MAX = 10.0
_PERMUTED_LABELS_MAX = 200

Show = Callable[[GoldenCase], Image]
Facts = TypeVar("Facts", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class Variant:
    """One change of the contract, and how it reads after "matches when"."""

    words: str
    change: Callable[[Manifest], Manifest]


def likely_cause(engine: Engine, show: Show, given: Sequence[Answer]) -> str:
    """Find what makes all golden pictures pass.

    Args:
        show: reads the picture of a golden case, uint8 BGR; many at a time would not fit into small devices.
        given: the answers as they are, in the order of the manifest's cases.
    Returns: the words after "matches when", or nothing when no single or double change is enough.
    Cost: at most about `SEARCH_S_MAX` seconds.
    """
    words = _other_labels(engine.manifest, given)
    if words:
        return words
    families = _families(engine.manifest)
    enough_at = time.monotonic() + SEARCH_S_MAX
    for variants in itertools.chain(_singles(families), _pairs(families)):
        if time.monotonic() > enough_at:
            return ""
        manifest = engine.manifest
        for variant in variants:
            manifest = variant.change(manifest)
        if _passes(engine, manifest, show):
            return " and ".join(variant.words for variant in variants)
    return ""


def _singles(families: list[list[Variant]]) -> Iterator[tuple[Variant, ...]]:
    return ((variant,) for family in families for variant in family)


def _pairs(families: list[list[Variant]]) -> Iterator[tuple[Variant, ...]]:
    for one, other in itertools.combinations(families, 2):
        yield from itertools.product(one, other)


def _passes(engine: Engine, manifest: Manifest, show: Show) -> bool:
    try:
        preprocessor, decode = Preprocessor(manifest.input), decoder(manifest)
        for case in manifest.golden.cases:
            prepared = preprocessor.prepare(show(case))
            if not compare(case, decode(engine.infer(prepared), prepared.placement), manifest).passed:
                return False
    except LenskeepError:
        return False  # a contract that cannot even be carried out is not the cause
    return True


def _families(manifest: Manifest) -> list[list[Variant]]:
    """Return the changes that make sense for this contract, the commonest mistakes first."""
    spec, resize = manifest.input, manifest.input.resize
    other_order = {"RGB": "BGR", "BGR": "RGB"}.get(spec.color)
    colour = [_input(f"colour order is {other_order}", color=other_order)] if other_order else []
    modes = [
        _resize(f"the resize mode is {mode}", mode=mode)
        for mode in get_args(ResizeMode)
        if mode not in {resize.mode, "none"}
    ]
    anchor = "top_left" if resize.anchor == "center" else "center"
    if resize.mode not in {"stretch", "none"}:
        modes += [_resize(f"the resize anchor is {anchor}", anchor=anchor)]
        modes += [_resize(f"the border is {pad}", pad_value=pad) for pad in (0, 114, 128) if pad != resize.pad_value]
    kernels = [
        _resize(f"the resize kernel is {kernel}", kernel=kernel)
        for kernel in get_args(Kernel)
        if kernel != resize.kernel
    ]
    softmax: list[Variant] = []
    if isinstance(manifest.decode, ClassifyDecode):
        applied = not manifest.decode.softmax
        words = "softmax is applied" if applied else "softmax is not applied again"
        softmax = [Variant(words, lambda old: _with(old, decode=ClassifyDecode(softmax=applied)))]
    return [colour, modes, _ranges(manifest), softmax, kernels]


def _ranges(manifest: Manifest) -> list[Variant]:
    spec = manifest.input
    channels = spec.channels
    imagenet: dict[str, list[float]] = (
        {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]} if channels == 3 else {}
    )
    plain: dict[str, list[float]] = {"mean": [], "std": []}
    halves = {"mean": [0.5] * channels, "std": [0.5] * channels}
    ranges: dict[str, dict[str, Any]] = {
        "pixels are not scaled": plain | {"scale": 1.0},
        "pixels are divided by 255": plain | {"scale": 1 / 255},
        "pixels are divided by 255 and normalised as for ImageNet": imagenet | {"scale": 1 / 255},
        "pixels are brought to -1..1": halves | {"scale": 1 / 255},
        "mean and std are left out": plain,
    }
    now: dict[str, Any] = {"scale": spec.scale, "mean": spec.mean, "std": spec.std}
    return [_input(words, **change) for words, change in ranges.items() if now | change != now]


def _input(words: str, **change: object) -> Variant:
    return Variant(words, lambda old: _with(old, input=_with(old.input, **change)))


def _resize(words: str, **change: object) -> Variant:
    return Variant(words, lambda old: _with(old, input=_with(old.input, resize=_with(old.input.resize, **change))))


def _with(facts: Facts, **change: object) -> Facts:
    return msgspec.structs.replace(facts, **change)


def _other_labels(manifest: Manifest, given: Sequence[Answer]) -> str:
    """Say how the labels must be re-ordered, if every answer is right but for the labels' places."""
    names = manifest.labels.names
    if len(names) > _PERMUTED_LABELS_MAX:
        return ""
    places = _places_of_scores(manifest, given) if manifest.task == "classify" else _places_of_boxes(manifest, given)
    if places is None or places == list(range(len(names))):
        return ""
    order = [names[places.index(place)] for place in range(len(names))]
    return f"the labels are in the order {', '.join(order[:8])}{', …' if len(order) > 8 else ''}"


def _places_of_scores(manifest: Manifest, given: Sequence[Answer]) -> list[int] | None:
    """Return for each label the output whose scores fit it in all pictures, if that is a re-ordering."""
    names = manifest.labels.names
    expected = np.array([[(case.scores or {}).get(name, np.nan) for name in names] for case in manifest.golden.cases])
    scores = np.array([answer.scores for answer in given])
    apart = np.abs(expected[:, :, None] - scores[:, None, :]).max(axis=0)  # NaN where a score is not told: no proof
    if np.isnan(apart).any() or (apart.min(axis=1) > manifest.golden.tolerance.score_abs).any():
        return None
    places: list[int] = apart.argmin(axis=1).tolist()
    return places if len(set(places)) == len(places) else None


def _places_of_boxes(manifest: Manifest, given: Sequence[Answer]) -> list[int] | None:
    """Return for each label the one that the model gives in its place, if the boxes all lie right."""
    names, tolerance = manifest.labels.names, manifest.golden.tolerance
    called: dict[str, str] = {}
    for case, answer in zip(manifest.golden.cases, given, strict=True):
        for box in case.boxes or []:
            mine = max(answer.detections, key=lambda one: overlap(one, box), default=None)
            if mine is None or overlap(mine, box) < tolerance.box_iou_min:
                return None
            if (
                abs(mine.score - box.score) > tolerance.score_abs
                or called.setdefault(box.label, mine.label) != mine.label
            ):
                return None
    if len(set(called.values())) != len(called):
        return None
    # labels that no picture shows stay where they are, if nothing else was found there
    unused = [name for name in names if name not in called.values()]
    kept = [name for name in unused if name not in called]
    moved = iter([name for name in unused if name in called])
    return [names.index(called.get(name) or (name if name in kept else next(moved))) for name in names]
