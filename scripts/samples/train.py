"""Train the sample models on generated scenes; write them, their facts and golden sets beside this file.

    pip install torch==2.13.0 onnx     # for this script alone; the project itself needs neither
    python scripts/samples/train.py    # everything, some minutes on two cores

What it makes: `models/<name>-<version>.onnx` with `<name>-<version>.json` (how it was made, how well it does) and
`golden/<name>/` with pictures and the answers that torch gives for them. The seeds are fixed.
`cap-inspect-slow` is cap-inspect 1.1.0 with useless work added: it gives that version's answers, so it has no
golden set of its own.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import time
import warnings
from pathlib import Path

import golden
import measure
import nets
import numpy as np
import scenes
import torch
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).parent
SEED = 20
SMALL_EPOCHS, LARGE_EPOCHS = 15, 15
CROWD_EPOCHS, SINGLE_EPOCHS = 18, 24
SLOW_ROUNDS = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE, help="where models/ and golden/ are written")
    parser.add_argument("--only", choices=("classifier", "detector"))
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(True)
    (arguments.out / "models").mkdir(parents=True, exist_ok=True)
    if arguments.only != "detector":
        make_classifiers(arguments.out)
    if arguments.only != "classifier":
        make_detectors(arguments.out)


def make_classifiers(out: Path) -> None:
    """Train cap-inspect 1.0.0 and 1.1.0, and derive the slow one from the latter."""
    training = scenes.station_set(scenes.STATION_TRAINING)
    held_out = scenes.station_set(scenes.STATION_HELD_OUT)
    small = train_classifier((8, 16, 24, 32), SMALL_EPOCHS, *training)
    large = train_classifier((16, 24, 32, 40, 48), LARGE_EPOCHS, *training)
    torch.manual_seed(SEED)
    made = {
        "cap-inspect-1.0.0": (nets.Scores(small), {"epochs": SMALL_EPOCHS}),
        "cap-inspect-1.1.0": (nets.Scores(large), {"epochs": LARGE_EPOCHS}),
        "cap-inspect-slow-1.0.0": (
            nets.SlowScores(large, SLOW_ROUNDS),
            {"epochs": LARGE_EPOCHS, "rounds": SLOW_ROUNDS},
        ),
    }
    for reference, (net, parameters) in made.items():
        few = slice(0, 100 if "slow" in reference else None)
        metrics = measure.classifier_metrics(measure.score_pictures(net, held_out[0][few]), held_out[1][few])
        export(net, out / "models" / f"{reference}.onnx", scenes.CLASSIFIER_PX, "scores")
        write_facts(out / "models" / f"{reference}.json", net, scenes.STATION_TRAINING, parameters, metrics)
    versions = {version: made[f"cap-inspect-{version}"][0] for version in ("1.0.0", "1.1.0")}
    golden.write_classifier(out / "golden" / "cap-inspect", versions)


def make_detectors(out: Path) -> None:
    """Train one detector: its crowd head becomes cap-detect 1.0.0 early on, its single head 1.1.0 later."""
    training = scenes.belt_set(scenes.BELT_TRAINING)
    held_out = scenes.belt_set(scenes.BELT_HELD_OUT)
    early, late = train_detector(*training)
    cells = scenes.DETECTOR_PX // nets.STRIDE_PX
    crowd, single = nets.CrowdLayout(early, cells), nets.SingleLayout(late, cells)
    for reference, net, read, epochs in (
        ("cap-detect-1.0.0", crowd, measure.read_crowd, CROWD_EPOCHS),
        ("cap-detect-1.1.0", single, measure.read_single, SINGLE_EPOCHS),
    ):
        found = [read(output, 0.05) for output in measure.score_pictures(net, held_out[0], 1)]
        metrics = measure.detector_metrics(found, held_out[1])
        export(net, out / "models" / f"{reference}.onnx", scenes.DETECTOR_PX, "output0")
        write_facts(out / "models" / f"{reference}.json", net, scenes.BELT_TRAINING, {"epochs": epochs}, metrics)
    lenient = functools.partial(measure.read_crowd, iou_max=0.7, agnostic=False)
    versions = {"1.0.0": (crowd, [measure.read_crowd, lenient]), "1.1.0": (single, [measure.read_single])}
    golden.write_detector(out / "golden" / "cap-detect", versions)


def train_classifier(widths: tuple[int, ...], epochs: int, images: scenes.Image, labels: np.ndarray) -> nets.Classifier:
    """Train on frames with a cap in place; between two caps no label is likelier than another."""
    torch.manual_seed(SEED)
    net, rng = nets.Classifier(widths), np.random.default_rng(SEED)
    wanted = np.where(labels[:, None] >= 0, np.eye(3)[labels], 1 / 3).astype(np.float32)

    def loss(rows: np.ndarray) -> Tensor:
        return functional.cross_entropy(net(_lit(images[rows], rng)), torch.from_numpy(wanted[rows]))

    for epoch in fit(net, loss, len(images), epochs, 64, 4e-3):
        print(f"classifier {widths}: {epoch}")
    return net.eval()


def train_detector(images: scenes.Image, truths: list[np.ndarray]) -> tuple[nets.Detector, nets.Detector]:
    """Train both heads together; hand out the net as it was after CROWD_EPOCHS, and as it is at the end."""
    torch.manual_seed(SEED)
    net, rng = nets.Detector(), np.random.default_rng(SEED)
    early = None

    def loss(rows: np.ndarray) -> Tensor:
        flipped = rng.random() < 0.5
        pictures = _lit(images[rows], rng)
        targets = [_cells(truths[row], flipped) for row in rows]
        crowd, single = net(pictures.flip(3) if flipped else pictures)
        return sum(_detector_loss(grid, *_stacked(targets, head)) for head, grid in enumerate((crowd, single)))

    for epoch, said in enumerate(fit(net, loss, len(images), SINGLE_EPOCHS, 16, 3e-3), 1):
        print(f"detector: {said}")
        if epoch == CROWD_EPOCHS:
            early = copy.deepcopy(net).eval()
    return early, net.eval()


def fit(net, loss, count, epochs, batch, rate):
    """Run AdamW on a one-cycle rate; yields a line per epoch."""
    optimizer = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-3)
    rng, steps = np.random.default_rng(SEED + 1), count // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * steps)
    for epoch in range(epochs):
        net.train()
        order, total, since = rng.permutation(count), 0.0, time.monotonic()
        for step in range(steps):
            optimizer.zero_grad()
            value = loss(order[step * batch : (step + 1) * batch])
            value.backward()
            optimizer.step()
            schedule.step()
            total += value.item()
        yield f"epoch {epoch + 1}/{epochs}, loss {total / steps:.4f}, {time.monotonic() - since:.1f} s"


def _lit(images: scenes.Image, rng: np.random.Generator) -> Tensor:
    """Vary contrast, brightness and tint, as another lamp and lens would."""
    size = (len(images), 3, 1, 1)
    gain = rng.uniform(0.8, 1.2, (len(images), 1, 1, 1)) * rng.uniform(0.95, 1.05, size)
    shift = rng.uniform(-0.06, 0.06, (len(images), 1, 1, 1))
    return (measure.tensor(images) * torch.from_numpy(gain).float() + torch.from_numpy(shift).float()).clamp(0, 1)


def _cells(truth: np.ndarray, flipped: bool) -> tuple[np.ndarray, ...]:
    """Say what each cell shall answer: a label per head (-1 belt, -2 whatever it likes), and a box."""
    cells = scenes.DETECTOR_PX // nets.STRIDE_PX
    labels = np.full((2, cells, cells), -1, np.int64)
    boxes = np.zeros((4, cells, cells), np.float32)
    at = (np.arange(cells) + 0.5) * nets.STRIDE_PX
    for label, x1, y1, x2, y2 in truth:
        left, right = (scenes.DETECTOR_PX - x2, scenes.DETECTOR_PX - x1) if flipped else (x1, x2)
        x, y, width, height = (left + right) / 2, (y1 + y2) / 2, right - left, y2 - y1
        off_x, off_y = np.abs(at - x)[None, :], np.abs(at - y)[:, None]
        near = (off_x < 1.5 * nets.STRIDE_PX) & (off_y < 1.5 * nets.STRIDE_PX)
        crowd = (off_x <= nets.STRIDE_PX) & (off_y <= nets.STRIDE_PX)
        single = (off_y == off_y.min()) & (off_x == off_x.min())
        labels[0][crowd] = label
        labels[1][near], labels[1][single] = -2, label
        box = (x - at[None, :], y - at[:, None], np.full((1, 1), width), np.full((1, 1), height))
        for channel, value in enumerate(box):
            boxes[channel][near] = np.broadcast_to(value, (cells, cells))[near]
    boxes[:2] /= nets.STRIDE_PX
    boxes[2:] = np.log(np.maximum(boxes[2:], 1) / nets.BOX_PX)
    return labels[0], labels[1], boxes


def _stacked(targets: list[tuple[np.ndarray, ...]], head: int) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(np.stack([t[head] for t in targets])), torch.from_numpy(np.stack([t[2] for t in targets]))


def _detector_loss(grid: Tensor, labels: Tensor, boxes: Tensor) -> Tensor:
    """Focal loss on the scores of the cells that matter, smooth L1 on the boxes of the cells that answer."""
    answers, matters = labels >= 0, (labels != -2).unsqueeze(1)
    wanted = functional.one_hot(labels.clamp(0), 3).permute(0, 3, 1, 2).float() * answers.unsqueeze(1)
    plain = functional.binary_cross_entropy_with_logits(grid[:, 4:], wanted, reduction="none")
    miss = (grid[:, 4:].sigmoid() - wanted).abs().detach()
    scores = (plain * miss.square() * matters).sum() / answers.sum()
    off = functional.smooth_l1_loss(grid[:, :4], boxes, reduction="none", beta=0.1).sum(1)
    return 4 * scores + (off * answers).sum() / answers.sum()


def export(net: nn.Module, path: Path, side_px: int, output: str) -> None:
    """Write one self-contained ONNX file with static shapes (opset 18)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the older exporter gives the plainer graph
        torch.onnx.export(
            net.eval(),
            (torch.zeros(1, 3, side_px, side_px),),
            str(path),
            dynamo=False,
            opset_version=18,
            input_names=["images"],
            output_names=[output],
        )


def write_facts(path: Path, net: nn.Module, recipe: scenes.Recipe, parameters: dict, metrics: dict) -> None:
    """Write where a model comes from, in the form of a manifest's provenance block."""
    facts = {
        "source": "scripts/samples/train.py",
        "dataset": f"generated {recipe.view} scenes: {recipe.belts} belts x {recipe.frames} frames from seed "
        f"{recipe.first_seed}; held-out scenes have other seeds",
        "dataset_sha256": recipe.digest(),
        "parameters": {
            **parameters,
            "seed": SEED,
            "training_frames": recipe.belts * recipe.frames,
            "weights": sum(weights.numel() for weights in net.parameters()),
            "torch": torch.__version__.partition("+")[0],
        },
        "metrics": metrics,
    }
    path.write_text(json.dumps(facts, indent=2) + "\n")
    print(path.stem, metrics)


if __name__ == "__main__":
    main()
