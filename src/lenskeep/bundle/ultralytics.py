"""What Ultralytics' exporter writes into an ONNX file about it, and the customs of its models.

The exporter writes `str(value)` under each key, so most values are Python literals, not JSON. Older exports
lack head, end2end and args. Source: exporter 8.4.190 and its exports.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import Any

from lenskeep.bundle.manifest import Kernel, ResizeMode
from lenskeep.errors import RequestError

LITERAL_LENGTH_MAX = 256_000  # thousands of class names


@dataclass(frozen=True, slots=True)
class Metadata:
    """What Ultralytics' exporter says; None where it says nothing."""

    task: str | None = None
    labels: list[str] | None = None
    size: tuple[int, int] | None = None
    head: str | None = None
    end_to_end: bool | None = None
    license: str = ""


def read_metadata(metadata: dict[str, str]) -> Metadata:
    """Read what Ultralytics' exporter left in a model; empty when it was another. Raises: RequestError."""
    if not {"stride", "names", "task"} <= metadata.keys():
        return Metadata()
    arguments = _literal(metadata, "args", dict) or {}
    end_to_end = _literal(metadata, "end2end", bool)
    if arguments.get("nms") is True:
        end_to_end = True
    size = _literal(metadata, "imgsz", list)
    return Metadata(
        task=metadata["task"],
        labels=_names(_literal(metadata, "names", dict)),
        size=(int(size[0]), int(size[1])) if size and len(size) == 2 else None,
        head=metadata.get("head"),
        end_to_end=end_to_end,
        license=metadata.get("license", "")[:200],
    )


def _literal(metadata: dict[str, str], key: str, kind: type) -> Any:
    """Read one Python literal as the exporter wrote it; its length is bounded before it is parsed."""
    text = metadata.get(key)
    if text is None:
        return None
    try:
        if len(text) > LITERAL_LENGTH_MAX:
            raise ValueError("too long")
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
        raise RequestError(f"The model's metadata {key} cannot be read.") from error
    if not isinstance(value, kind):
        raise RequestError(f"The model's metadata {key} is not a {kind.__name__}.")
    return value


def _names(names: Any) -> list[str] | None:
    if not names:
        return None
    if sorted(names) != list(range(len(names))) or not all(isinstance(name, str) for name in names.values()):
        raise RequestError("The model's metadata names are not numbered from 0 without a gap.")
    return [names[number] for number in range(len(names))]


def resize_of(task: str, *, square: bool) -> tuple[ResizeMode, Kernel]:
    """Say how these models see a frame."""
    if task == "detect":
        return "letterbox", "linear"
    return ("shortest_crop" if square else "stretch"), "linear_antialias"
