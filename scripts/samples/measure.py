"""How good a sample model is: accuracy of a classifier; precision, recall and mAP50 of a detector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from lenskeep.runner.belt import LABELS

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """What a detector says about one picture, best first, in its input's pixels."""

    labels: NDArray[np.int64]
    scores: Floats
    boxes: Floats

    def only(self, keep: NDArray[np.generic]) -> Found:
        """Take some of the rows, by mask or by index."""
        return Found(self.labels[keep], self.scores[keep], self.boxes[keep])


def tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """Turn RGB pictures (n, h, w, 3) into what the nets take: (n, 3, h, w) in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255


def score_pictures(net: nn.Module, images: NDArray[np.uint8], at_once: int = 64) -> NDArray[np.float32]:
    """Run a net over many pictures, without gradients."""
    net.eval()
    with torch.no_grad():
        return torch.cat([net(tensor(images[at : at + at_once])) for at in range(0, len(images), at_once)]).numpy()


def classifier_metrics(scores: Floats, labels: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy over the frames that show a cap, per label too; and how sure it is when none is in place."""
    best, still = scores.argmax(1), labels >= 0
    metrics = {
        "held_out_frames": float(still.sum()),
        "accuracy": float((best == labels)[still].mean()),
        "sure_and_wrong": float(((best != labels) & (scores.max(1) >= 0.6))[still].mean()),
        "unsure": float((scores.max(1) < 0.6)[still].mean()),
        "unsure_between_caps": float((scores.max(1) < 0.6)[~still].mean()),
    }
    for number, name in enumerate(LABELS):
        metrics[f"recall_{name}"] = float((best == number)[labels == number].mean())
    return {key: round(value, 4) for key, value in metrics.items()}


def read_crowd(output: Floats, score_min: float, iou_max: float = 0.5, *, agnostic: bool = True) -> Found:
    """Read one picture's raw layout (7, n), leaving out what overlaps a better box (of its label, or of any)."""
    scores, labels = output[4:].max(0), output[4:].argmax(0)
    centres, halves = output[:2].T, output[2:4].T / 2
    found = Found(labels, scores, np.concatenate((centres - halves, centres + halves), 1))
    found = found.only(np.flatnonzero(scores > score_min))
    found = found.only(np.argsort(-found.scores, kind="stable"))
    kept: list[int] = []
    for row in range(len(found.scores)):
        rivals = [better for better in kept if agnostic or found.labels[better] == found.labels[row]]
        if not rivals or overlap(found.boxes[row], found.boxes[rivals]).max() <= iou_max:
            kept.append(row)
    return found.only(np.array(kept, np.int64))


def read_single(output: Floats, score_min: float) -> Found:
    """Read one picture's end-to-end layout (300, 6)."""
    found = Found(output[:, 5].astype(np.int64), output[:, 4], output[:, :4])
    return found.only(found.scores > score_min)


def overlap(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one x1, y1, x2, y2 box with each of the others."""
    near = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = near.clip(0).prod(1)
    return shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(1) - shared)


def detector_metrics(found: list[Found], truths: list[Floats]) -> dict[str, float]:
    """Precision and recall at score 0.5, and mAP50: a hit has the right label and overlaps its cap by 0.5."""
    hits = [_hits(picture, truth) for picture, truth in zip(found, truths, strict=True)]
    scores = np.concatenate([picture.scores for picture in found])
    labels = np.concatenate([picture.labels for picture in found])
    hit, truth_labels = np.concatenate(hits), np.concatenate(truths)[:, 0]
    sure = scores >= 0.5
    precisions = [
        _average_precision(scores[labels == label], hit[labels == label], int((truth_labels == label).sum()))
        for label in range(len(LABELS))
    ]
    metrics = {
        "held_out_frames": float(len(truths)),
        "held_out_caps": float(len(truth_labels)),
        "precision": float(hit[sure].mean()),
        "recall": float(hit[sure].sum() / len(truth_labels)),
        "map50": float(np.mean(precisions)),
    }
    metrics |= {f"ap50_{name}": value for name, value in zip(LABELS, precisions, strict=True)}
    return {key: round(value, 4) for key, value in metrics.items()}


def _hits(found: Found, truth: Floats) -> NDArray[np.bool_]:
    """Match boxes to caps, best first, each cap once."""
    free, hits = np.ones(len(truth), bool), np.zeros(len(found.scores), bool)
    for row in range(len(hits)) if len(truth) else ():
        shared = np.where(free & (truth[:, 0] == found.labels[row]), overlap(found.boxes[row], truth[:, 1:]), 0)
        best = int(shared.argmax())
        if shared[best] >= 0.5:
            hits[row], free[best] = True, False
    return hits


def _average_precision(scores: Floats, hits: NDArray[np.bool_], caps: int) -> float:
    ordered = hits[np.argsort(-scores, kind="stable")]
    precision = ordered.cumsum() / (np.arange(len(ordered)) + 1)
    best_after = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best_after * ordered).sum() / caps)
