"""Models of the sizes that devices run, with random weights, made once into a cache folder.

`mnv2`: MobileNetV2, 3.5 M parameters, 14 MB. `rn50`: ResNet-50, 25.6 M parameters, 102 MB. Batch normalisation is left
unfused, as training frameworks export it. `tiny`: a few kilobytes, for what must not depend on the model.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASSES = 10


def cache_dir() -> Path:
    """Return the folder that generated models and clips are kept in."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lenskeep-bench"
    base.mkdir(parents=True, exist_ok=True)
    return base


class Graph:
    """Collects nodes and weights; every method appends one layer and returns its output's name."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, kind: str, *inputs: str, **attributes: object) -> str:
        name = f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def conv(self, x: str, into: int, out: int, kernel: int = 1, stride: int = 1, group: int = 1, act: str = "") -> str:
        fan = into // group * kernel * kernel
        filters = self.rng.normal(0, (2 / fan) ** 0.5, (out, into // group, kernel, kernel))
        pad = [kernel // 2] * 4
        x = self.node("Conv", x, self.weight(filters), strides=[stride] * 2, pads=pad, group=group)
        ones, zeros = np.ones(out), np.zeros(out)
        x = self.node("BatchNormalization", x, *(self.weight(w) for w in (ones, zeros, zeros, ones)))
        if act == "relu6":
            return self.node("Clip", x, self.weight(np.array(0.0)), self.weight(np.array(6.0)))
        return self.node("Relu", x) if act == "relu" else x

    def head(self, x: str, into: int, classes: int) -> str:
        x = self.node("Flatten", self.node("GlobalAveragePool", x))
        x = self.node("Gemm", x, self.weight(self.rng.normal(0, 0.01, (into, classes))), self.weight(np.zeros(classes)))
        x = self.node("Gemm", x, self.weight(self.rng.normal(0, 1, (classes, CLASSES))), self.weight(np.zeros(CLASSES)))
        return self.node("Softmax", x, axis=1)

    def save(self, path: Path, output: str, size: int) -> None:
        self.nodes.append(helper.make_node("Identity", [output], ["scores"]))
        graph = helper.make_graph(
            self.nodes, path.stem,
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, size, size])],
            [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, CLASSES])],
            self.weights,
        )  # fmt: skip
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_bytes(model.SerializeToString())
        part.rename(path)


def mobilenet_v2(path: Path, seed: int) -> None:
    """Write MobileNetV2 at 224 pixels."""
    g = Graph(seed)
    x, into = g.conv("images", 3, 32, 3, 2, act="relu6"), 32
    for expand, out, repeat, stride in (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    ):  # fmt: skip
        for block in range(repeat):
            wide, step, y = into * expand, stride if block == 0 else 1, x
            if expand > 1:
                y = g.conv(y, into, wide, act="relu6")
            y = g.conv(y, wide, wide, 3, step, group=wide, act="relu6")
            y = g.conv(y, wide, out)
            x, into = (g.node("Add", x, y) if step == 1 and into == out else y), out
    g.save(path, g.head(g.conv(x, into, 1280, act="relu6"), 1280, 1000), 224)


def resnet_50(path: Path, seed: int) -> None:
    """Write ResNet-50 at 224 pixels."""
    g = Graph(seed)
    x = g.conv("images", 3, 64, 7, 2, act="relu")
    x, into = g.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), 64
    for width, repeat, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(repeat):
            step = stride if block == 0 else 1
            y = g.conv(x, into, width, act="relu")
            y = g.conv(y, width, width, 3, step, act="relu")
            y = g.conv(y, width, 4 * width)
            shortcut = g.conv(x, into, 4 * width, 1, step) if block == 0 else x
            x, into = g.node("Relu", g.node("Add", y, shortcut)), 4 * width
    g.save(path, g.head(x, into, 1000), 224)


def tiny(path: Path, seed: int) -> None:
    """Write a network of one layer at 32 pixels."""
    g = Graph(seed)
    g.save(path, g.head(g.conv("images", 3, 8, 3, 2, act="relu"), 8, 16), 32)


BUILDERS = {"mnv2": mobilenet_v2, "rn50": resnet_50, "tiny": tiny}
INPUT_PX = {"mnv2": 224, "rn50": 224, "tiny": 32}


def model(kind: str, seed: int = 1) -> Path:
    """Return a model's file, made now if it is not in the cache."""
    path = cache_dir() / f"{kind}-{seed}.onnx"
    if not path.exists():
        BUILDERS[kind](path, seed)
    return path
