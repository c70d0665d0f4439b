"""Raw outputs into scores and boxes, against loops that follow the definitions."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from lenskeep.errors import ManifestError, UnusableOutputError
from lenskeep.messages.runner import Detection
from lenskeep.runner.decode.answer import Answer
from lenskeep.runner.decode.kinds import decoder
from lenskeep.runner.tensors import Placement
from tests.models import facts, manifest

NAMES = ["good", "scratched", "missing"]
AS_IT_IS = Placement(1.0, 1.0, 0, 0, 640, 640)
HALVED = Placement(0.5, 0.5, 0, 140, 1280, 720)  # 1280x720 letterboxed into 640x640


def contract(shape: list[int], decode: dict[str, Any], **changes: Any) -> Any:
    outputs = changes.pop("outputs", [{"name": "out", "shape": shape}])
    cases = [{"image": "golden/a.png", "boxes": []}]
    spec = facts()["input"] | {"shape": [1, 3, 640, 640]}
    return manifest(
        facts(
            task="detect",
            outputs=outputs,
            decode=decode,
            input=spec,
            golden={"cases": cases, "produced_by": "nobody"},
            **changes,
        )
    )


def decode(shape: list[int], kind: dict[str, Any], output: np.ndarray, placement: Placement = AS_IT_IS) -> Answer:
    return decoder(contract(shape, kind))([output], placement)


def iou(a: Any, b: Any) -> float:
    wide = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    tall = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide * tall
    return wide * tall / union if union else 0.0


def by_the_book(raw: np.ndarray, score_min: float, iou_max: float, boxes_max: int, agnostic: bool) -> list[Detection]:
    """Non-maximum suppression as it is defined, one box after the other."""
    rows = []
    for column in raw[0].T.astype(float):
        cx, cy, wide, tall, *scores = column
        label = int(np.argmax(scores))
        if scores[label] > score_min:
            rows.append((scores[label], label, (cx - wide / 2, cy - tall / 2, cx + wide / 2, cy + tall / 2)))
    kept: list[Any] = []
    for row in sorted(rows, key=lambda row: -row[0]):
        if all(iou(row[2], other[2]) <= iou_max for other in kept if agnostic or other[1] == row[1]):
            kept.append(row)
    return [Detection(NAMES[label], score, *box) for score, label, box in kept[:boxes_max]]


def raw_head(seed: int, things: int, boxes: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    print("seed", seed)
    centre = rng.uniform(100, 540, (things, 2))[rng.integers(0, things, boxes)] + rng.normal(0, 4, (boxes, 2))
    size = rng.uniform(30, 90, (boxes, 2))
    return np.concatenate([centre, size, rng.random((boxes, 3)) ** 3], axis=1).T[None].astype(np.float32)


def same(one: list[Detection], other: list[Detection]) -> None:
    assert [thing.label for thing in one] == [thing.label for thing in other]
    for mine, theirs in zip(one, other, strict=True):
        assert mine.score == pytest.approx(theirs.score, abs=1e-5)
        assert [mine.x1, mine.y1, mine.x2, mine.y2] == pytest.approx(
            [theirs.x1, theirs.y1, theirs.x2, theirs.y2], abs=1e-2
        )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("agnostic", [False, True])
def test_raw_yolo_is_suppressed_as_the_definition_says(seed: int, agnostic: bool) -> None:
    raw = raw_head(seed, 8, 400)
    kind = {"kind": "yolo-raw", "score_min": 0.3, "iou_max": 0.45, "boxes_max": 20, "agnostic": agnostic}
    same(decode([1, 7, 400], kind, raw).detections, by_the_book(raw, 0.3, 0.45, 20, agnostic))


def test_a_picture_full_of_things_is_decoded_in_bounded_time_and_exactly() -> None:
    raw = raw_head(7, 8400, 8400)
    raw[0, 2:4] = 4.0
    kind = {"kind": "yolo-raw", "score_min": 0.001, "boxes_max": 300}
    read = decoder(contract([1, 7, 8400], kind))
    begun = time.process_time()
    found = read([raw], AS_IT_IS).detections
    assert time.process_time() - begun < 0.15  # all candidates at once take a fifth of a second and more
    assert len(found) == 300
    same(found[:40], by_the_book(raw[:, :, np.argsort(-raw[0, 4:].max(axis=0))[:600]], 0.001, 0.7, 40, False))


def test_boxes_come_back_in_pixels_of_the_frame_and_are_cut_off_at_its_edges() -> None:
    raw = np.zeros((1, 7, 4), np.float32)
    raw[0, :, 0] = [320, 320, 100, 60, 0.9, 0.1, 0.1]
    raw[0, :, 1] = [0, 140, 40, 40, 0.1, 0.8, 0.1]
    raw[0, :, 2] = [320, 40, 100, 60, 0.1, 0.1, 0.95]  # wholly in the upper border
    found = decode([1, 7, 4], {"kind": "yolo-raw"}, raw, HALVED).detections
    same(
        found,
        [Detection("good", 0.9, 540.0, 300.0, 740.0, 420.0), Detection("scratched", 0.8, 0.0, 0.0, 40.0, 40.0)],
    )


def test_end_to_end_yolo_gives_its_rows_the_surest_first() -> None:
    raw = np.zeros((1, 6, 6), np.float32)
    raw[0, 0] = [10, 20, 30, 40, 0.5, 2]
    raw[0, 1] = [15, 25, 35, 45, 0.9, 0]
    raw[0, 2] = [15, 25, 35, 45, 0.2, 1]  # below the limit
    found = decode([1, 6, 6], {"kind": "yolo-end2end", "boxes_max": 5}, raw).detections
    same(found, [Detection("good", 0.9, 15, 25, 35, 45), Detection("missing", 0.5, 10, 20, 30, 40)])
    assert len(decode([1, 6, 6], {"kind": "yolo-end2end", "boxes_max": 1}, raw).detections) == 1


BOX_FORMS = {
    "xyxy_px": [64, 128, 192, 320],
    "xyxy_unit": [0.1, 0.2, 0.3, 0.5],
    "cxcywh_px": [128, 224, 128, 192],
    "cxcywh_unit": [0.2, 0.35, 0.2, 0.3],
}


@pytest.mark.parametrize("form", BOX_FORMS)
@pytest.mark.parametrize("leading", [True, False])
@pytest.mark.parametrize("first_label", [0, 1])
def test_boxes_in_every_form_mean_the_same_place(form: str, leading: bool, first_label: int) -> None:
    lead = [1] if leading else []
    outputs = [
        {"name": "labels", "shape": [*lead, 2], "dtype": "int64"},
        {"name": "scores", "shape": [*lead, 2]},
        {"name": "boxes", "shape": [*lead, 2, 4]},
    ]
    kind = {"kind": "boxes", "boxes": "boxes", "scores": "scores", "labels": "labels", "form": form}
    read = decoder(contract([], kind | {"first_label": first_label}, outputs=outputs))
    raw = [
        np.array([1 + first_label, first_label], np.int64).reshape(*lead, 2),
        np.array([0.8, 0.1], np.float32).reshape(*lead, 2),
        np.array([BOX_FORMS[form], [0, 0, 0, 0]], np.float32).reshape(*lead, 2, 4),
    ]
    same(read(raw, AS_IT_IS).detections, [Detection("scratched", 0.8, 64, 128, 192, 320)])


def test_boxes_whose_shapes_do_not_belong_together_are_refused_before_the_first_frame() -> None:
    outputs = [
        {"name": "boxes", "shape": [1, 5, 4]},
        {"name": "scores", "shape": [1, 6]},
        {"name": "labels", "shape": [1, 5], "dtype": "int64"},
    ]
    kind = {"kind": "boxes", "boxes": "boxes", "scores": "scores", "labels": "labels"}
    with pytest.raises(ManifestError, match="boxes, scores and labels"):
        decoder(contract([], kind, outputs=outputs))


def test_softmax_is_applied_when_the_manifest_says_so_and_cannot_overflow() -> None:
    logits = np.array([[1000.0, 999.0, -1000.0]], np.float32)
    applied = decoder(manifest(facts(decode={"kind": "classify", "softmax": True})))([logits], AS_IT_IS).scores
    assert applied is not None
    np.testing.assert_allclose(applied, [1 / (1 + np.exp(-1)), 1 / (1 + np.e), 0], atol=1e-6)
    plain = decoder(manifest(facts()))([logits / 1000], AS_IT_IS).scores
    np.testing.assert_allclose(plain, logits[0] / 1000)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_mean_nothing_are_refused_wherever_they_stand(bad: float) -> None:
    raw = raw_head(1, 8, 40)
    raw[0, 2, 39] = bad
    with pytest.raises(UnusableOutputError, match="NaN or infinity"):
        decode([1, 7, 40], {"kind": "yolo-raw"}, raw)


@pytest.mark.parametrize(
    "raw", [np.zeros((1, 7, 41), np.float32), np.zeros((7, 40), np.float32), np.zeros((1, 7, 40), np.float64)]
)
def test_another_shape_or_type_than_promised_is_refused(raw: np.ndarray) -> None:
    with pytest.raises(UnusableOutputError, match="the manifest says"):
        decode([1, 7, 40], {"kind": "yolo-raw"}, raw)


def test_a_label_that_the_model_does_not_have_is_refused() -> None:
    raw = np.array([[[10, 20, 30, 40, 0.9, 3]]], np.float32)
    with pytest.raises(UnusableOutputError, match="label number 3"):
        decode([1, 1, 6], {"kind": "yolo-end2end"}, raw)


def test_half_precision_outputs_are_read() -> None:
    halves = contract([], {"kind": "yolo-end2end"}, outputs=[{"name": "out", "shape": [1, 1, 6], "dtype": "float16"}])
    found = decoder(halves)([np.array([[[10, 20, 30, 40, 0.5, 0]]], np.float16)], AS_IT_IS).detections
    same(found, [Detection("good", 0.5, 10, 20, 30, 40)])
