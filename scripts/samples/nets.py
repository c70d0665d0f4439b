"""The nets of the sample models, small enough to be trained on two processor cores within minutes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE_PX = 16
BOX_PX = 48.0  # a usual cap in the detector's input; widths and heights are learned relative to it
TOP_BOXES = 300


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Classifier(nn.Module):
    """Logits (n, 3) from frames (n, 3, 96, 96) in [0, 1]."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        steps = [_block(inputs, outputs, 2) for inputs, outputs in zip((3, *widths), widths, strict=False)]
        self.body = nn.Sequential(*steps, _block(widths[-1], widths[-1]))
        self.head = nn.Linear(widths[-1], 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


class Scores(nn.Module):
    """A classifier as it is shipped: scores that sum to one."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(images).softmax(1)


class SlowScores(nn.Module):
    """The same answers at many times the cost: wide convolutions at full size that weigh next to nothing."""

    def __init__(self, classifier: Classifier, rounds: int, width: int = 64) -> None:
        super().__init__()
        self.classifier = classifier
        self.rounds = rounds
        self.widen = nn.Conv2d(3, width, 3, 1, 1)
        self.churn = nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        wide = self.widen(images)
        for _ in range(self.rounds):
            wide = self.churn(wide).tanh()
        return (self.classifier(images) + 1e-6 * wide.mean((1, 2, 3)).unsqueeze(1)).softmax(1)


class Detector(nn.Module):
    """One grid of cells, 16 pixels each, with two heads over one body.

    The crowd head lets every cell near a cap's centre answer, and needs suppression afterwards. The single head
    is trained to let one cell answer for one cap. Each gives (n, 7, 20, 20): centre offset, log size, and a logit
    per label.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _block(3, 12, 2),
            _block(12, 24, 2),
            _block(24, 48, 2),
            _block(48, 48),
            _block(48, 64, 2),
            _block(64, 64),
        )
        self.crowd = nn.Sequential(_block(64, 48), nn.Conv2d(48, 7, 1))
        self.single = nn.Sequential(_block(64, 48), nn.Conv2d(48, 7, 1))
        for head in (self.crowd, self.single):
            nn.init.constant_(head[-1].bias[4:], -4.0)  # most cells are belt

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(images)
        return self.crowd(features), self.single(features)


def cell_centres(rows: int, columns: int) -> Tensor:
    """Centres of the grid's cells in input pixels, (2, rows, columns), x first."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return (torch.stack((x, y)).float() + 0.5) * STRIDE_PX


class CrowdLayout(nn.Module):
    """The raw YOLO layout (1, 7, 400): cx, cy, w, h in input pixels, then a score per label."""

    def __init__(self, detector: Detector, cells: int) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("centres", cell_centres(cells, cells).unsqueeze(0))

    def forward(self, images: Tensor) -> Tensor:
        grid = self.detector.crowd(self.detector.body(images))
        centre = self.centres + grid[:, :2] * STRIDE_PX
        size = grid[:, 2:4].exp() * BOX_PX
        return torch.cat((centre, size, grid[:, 4:].sigmoid()), 1).flatten(2)


class SingleLayout(nn.Module):
    """The end-to-end layout (1, 300, 6): x1, y1, x2, y2 in input pixels, score, label; best first."""

    def __init__(self, detector: Detector, cells: int) -> None:
        super().__init__()
        self.detector = detector
        self.register_buffer("centres", cell_centres(cells, cells).unsqueeze(0))

    def forward(self, images: Tensor) -> Tensor:
        grid = self.detector.single(self.detector.body(images))
        centre = self.centres + grid[:, :2] * STRIDE_PX
        half = grid[:, 2:4].exp() * (BOX_PX / 2)
        score, label = grid[:, 4:].sigmoid().max(1, keepdim=True)
        peak = functional.max_pool2d(score, 3, 1, 1)
        score = torch.where(score == peak, score, torch.zeros_like(score))
        rows = torch.cat((centre - half, centre + half, score, label.float()), 1).flatten(2).transpose(1, 2)
        best = score.flatten(1).topk(TOP_BOXES, 1).indices
        return rows.gather(1, best.unsqueeze(2).expand(-1, -1, 6))
