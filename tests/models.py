"""Tiny ONNX models for tests, each made to show one thing, and the facts of the bundles around them.

A model is a function from nothing to bytes. `facts` makes a manifest that fits the classifier; `store` writes a model
where a device would keep it and says where.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from lenskeep.bundle import manifest as manifests
from lenskeep.bundle.manifest import Manifest
from lenskeep.messages.runner import BundleRef

LABELS = ["good", "scratched", "missing"]
SIDE_PX = 16
FINDER_LABELS = ["red", "blue"]
FINDER_SIDE_PX = 64
OPSET = 18


def build(
    nodes: list[onnx.NodeProto],
    *,
    inputs: dict[str, tuple[int, list[Any]]] | None = None,
    outputs: dict[str, tuple[int, list[Any]]] | None = None,
    weights: dict[str, np.ndarray] | None = None,
    opset: int = OPSET,
) -> bytes:
    """Put a graph together; inputs and outputs are name -> (element type, shape), the classifier's by default."""
    inputs = inputs or {"image": (TensorProto.FLOAT, [1, 3, SIDE_PX, SIDE_PX])}
    outputs = outputs or {"scores": (TensorProto.FLOAT, [1, len(LABELS)])}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return model.SerializeToString()


def classifier(seed: int = 1, *, softmax: bool = True, side_px: int = SIDE_PX) -> bytes:
    """Three labels from the mean colours of a 4 x 4 grid: colour order, position and brightness all matter."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node(
            "AveragePool", ["image"], ["cells"], kernel_shape=[side_px // 4] * 2, strides=[side_px // 4] * 2
        ),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("Gemm", ["flat", "mix", "bias"], ["logits" if softmax else "scores"]),
    ]
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=-1))
    weights = {"mix": rng.normal(0, 1.0, (48, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    return build(nodes, weights=weights, inputs={"image": (TensorProto.FLOAT, [1, 3, side_px, side_px])})


def finder() -> bytes:
    """Find red and blue things on an 8 x 8 grid of a 64 x 64 picture, as a raw YOLO head: (1, 6, 64)."""
    side = FINDER_SIDE_PX // 8
    centres = (np.arange(8) + 0.5) * side
    x, y = np.meshgrid(centres, centres)
    boxes = np.stack([x.ravel(), y.ravel(), np.full(64, 10.0), np.full(64, 12.0)])[None]
    taste = np.array([[1, -0.5, -0.5], [-0.5, -0.5, 1]], np.float32).reshape(2, 3, 1, 1) * 20
    nodes = [
        helper.make_node("Conv", ["image", "taste", "doubt"], ["liked"]),
        helper.make_node("AveragePool", ["liked"], ["cells"], kernel_shape=[side, side], strides=[side, side]),
        helper.make_node("Sigmoid", ["cells"], ["sure"]),
        helper.make_node("Reshape", ["sure", "rows"], ["flat"]),
        helper.make_node("Concat", ["boxes", "flat"], ["found"], axis=1),
    ]
    weights = {
        "taste": taste,
        "doubt": np.full(2, -10.0, np.float32),
        "rows": np.array([1, 2, 64], np.int64),
        "boxes": boxes.astype(np.float32),
    }
    return build(
        nodes,
        weights=weights,
        inputs={"image": (TensorProto.FLOAT, [1, 3, FINDER_SIDE_PX, FINDER_SIDE_PX])},
        outputs={"found": (TensorProto.FLOAT, [1, 6, 64])},
    )


def slow_classifier(layers: int, channels: int = 64, side_px: int = 64) -> bytes:
    """A classifier that spends its time in `layers` convolutions; about 2 ms each on one core as it comes."""
    rng = np.random.default_rng(3)
    weights = {"first": rng.normal(0, 0.1, (channels, 3, 1, 1)).astype(np.float32)}
    nodes = [helper.make_node("Conv", ["image", "first"], ["x0"])]
    for number in range(layers):
        weights[f"w{number}"] = rng.normal(0, 0.04, (channels, channels, 3, 3)).astype(np.float32)
        nodes.append(helper.make_node("Conv", [f"x{number}", f"w{number}"], [f"x{number + 1}"], pads=[1, 1, 1, 1]))
    weights["mix"] = rng.normal(0, 0.2, (channels, 3)).astype(np.float32)
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{layers}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "mix"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=-1),
    ]
    return build(nodes, weights=weights, inputs={"image": (TensorProto.FLOAT, [1, 3, side_px, side_px])})


def facts(**changes: Any) -> dict[str, Any]:
    """Return the facts of a bundle around `classifier`; `changes` replace top-level fields."""
    names = changes.pop("names", LABELS)
    plain: dict[str, Any] = {
        "schema": "lenskeep.model/1",
        "name": "cap-inspect",
        "version": "1.0.0",
        "created": "2026-01-01T00:00:00Z",
        "task": "classify",
        "input": {
            "name": "image",
            "shape": [1, 3, SIDE_PX, SIDE_PX],
            "color": "RGB",
            "resize": {"mode": "stretch", "kernel": "linear"},
            "scale": 1 / 255,
        },
        "outputs": [{"name": "scores", "shape": [1, len(names)]}],
        "decode": {"kind": "classify"},
        "labels": {"names": names, "sha256": manifests.labels_digest(names)},
        "verdict": {"ok": names[:1], "ng": names[1:], "certain_from": 0.5, "uncertain_from": 0.3},
        "budget": {"latency_p99_ms": 1000.0, "memory_mb": 500},
        "requires": {"opset": OPSET},
        "golden": {
            "cases": [{"image": "golden/none.png", "scores": dict.fromkeys(names, 0.0)}],
            "produced_by": "a reference computation",
        },
        "license": "MIT",
    }
    return plain | changes


def finder_facts(**changes: Any) -> dict[str, Any]:
    """Return the facts of a bundle around `finder`."""
    side = FINDER_SIDE_PX
    plain = facts(names=FINDER_LABELS) | {
        "name": "cap-detect",
        "task": "detect",
        "input": facts()["input"] | {"shape": [1, 3, side, side], "resize": {"mode": "letterbox"}},
        "outputs": [{"name": "found", "shape": [1, 6, 64]}],
        "decode": {"kind": "yolo-raw", "iou_max": 0.5},
        "golden": {
            "cases": [{"image": "golden/none.png", "boxes": []}],
            "produced_by": "a reference computation",
        },
    }
    return plain | changes


def manifest(plain: dict[str, Any]) -> Manifest:
    """Read facts as a device would."""
    return manifests.parse(encoded(plain))


def encoded(plain: dict[str, Any]) -> bytes:
    """Write facts as the bytes of a `model.json`."""
    return msgspec.json.encode(plain)


def store(folder: Path, model: bytes, plain: dict[str, Any] | None = None) -> BundleRef:
    """Write a model into a folder and return the reference that a daemon would give."""
    plain = plain or facts()
    path = folder / f"{plain['name']}-{plain['version']}.onnx"
    path.write_bytes(model)
    return BundleRef(
        name=plain["name"],
        version=plain["version"],
        digest=hashlib.sha256(b"bundle" + model).hexdigest(),
        manifest_json=encoded(plain),
        model_path=str(path),
        model_sha256=hashlib.sha256(model).hexdigest(),
    )


def picture(seed: int, width_px: int = 60, height_px: int = 40) -> np.ndarray:
    """Return a colourful picture of soft blobs, uint8 BGR, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width_px, height_px), interpolation=cv2.INTER_CUBIC)
