"""The recipe of a bundle: every word that its maker can say, from flags or from a `pack.toml`.

Rules. A word is written once, here, with its meaning; the command line's options and the commented
`pack.toml` are made from it. A word that is left out is read from the model file or from a stated custom,
and the manifest's `provenance.inferred` says which. What decides results and can be read from nowhere has
to be said.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct

from lenskeep.bundle.manifest import ColourOrder, Kernel, ResizeMode
from lenskeep.errors import RequestError

RECIPE_NAME = "pack.toml"
PATHS = ("model", "golden", "license_file", "card", "facts")

Task = Literal["classify", "detect"]
DecodeKind = Literal["classify", "yolo-raw", "yolo-end2end", "boxes"]
BoxForm = Literal["xyxy_px", "xyxy_unit", "cxcywh_px", "cxcywh_unit"]


def _says(text: str) -> Meta:
    return Meta(description=text)


class Recipe(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the maker said; None and empty mean that nothing was said."""

    model: Annotated[str, _says("The ONNX file.")]
    name: Annotated[str, _says("Model name: a-z, 0-9 and '-'. Keys are trusted by this name.")]
    version: Annotated[str, _says("Version, such as 1.4.0. A released version never changes.")]
    title: Annotated[str, _says("One line for people.")] = ""
    description: Annotated[str, _says("Some more lines for people.")] = ""
    created: Annotated[str, _says("Time of making, 2026-11-01T00:00:00Z; else the ONNX file's own time.")] = ""

    task: Annotated[Task | None, _says("What the model does; else from the model's metadata.")] = None
    labels: Annotated[list[str], _says("Labels in the order of the outputs, or a file with one per line.")] = []
    ok: Annotated[list[str], _says("Labels that mean a sound part.")] = []
    ng: Annotated[list[str], _says("Labels that mean a defect.")] = []
    certain_from: Annotated[float | None, _says("Score from which a label decides (0.6).")] = None
    uncertain_from: Annotated[float | None, _says("Detection: score from which a defect is UNCERTAIN (0.4).")] = None
    ok_count_min: Annotated[int, _says("Detection: fewer sound parts than this are NG.")] = 0

    input_shape: Annotated[list[int], _says("Shape of the input when the model leaves it open.")] = []
    layout: Annotated[Literal["NCHW", "NHWC"] | None, _says("Order of the input's dimensions.")] = None
    color: Annotated[ColourOrder | None, _says("Colour order that the model was trained with (RGB).")] = None
    resize: Annotated[ResizeMode | None, _says("How a frame becomes the model's rectangle.")] = None
    kernel: Annotated[Kernel | None, _says("How pixels are mixed while resizing (linear).")] = None
    pad_value: Annotated[int, _says("Grey of the padding, 0 to 255.")] = 114
    anchor: Annotated[Literal["center", "top_left"], _says("Where the picture lies in the padding.")] = "center"
    scale: Annotated[float | None, _says("Factor on each pixel first (1/255 for float inputs, 1 for uint8).")] = None
    mean: Annotated[list[float], _says("Subtracted per channel after the factor.")] = []
    std: Annotated[list[float], _says("Divided by per channel after that.")] = []

    decode: Annotated[DecodeKind | None, _says("How outputs become results; else from the model's metadata.")] = None
    output: Annotated[str, _says("The output to use when the model has several.")] = ""
    output_shapes: Annotated[list[str], _says("Shapes that the model leaves open: name=1x300x6.")] = []
    softmax: Annotated[bool, _says("Classification: the outputs are logits; apply softmax.")] = False
    score_min: Annotated[float | None, _says("Detection: boxes below are dropped (0.25).")] = None
    iou_max: Annotated[float | None, _says("Detection: overlap from which two boxes are one (0.7).")] = None
    boxes_max: Annotated[int | None, _says("Detection: at most so many boxes (300).")] = None
    agnostic: Annotated[bool, _says("Detection: boxes of different labels suppress each other.")] = False
    box_form: Annotated[BoxForm, _says("Decode 'boxes': what the four numbers are.")] = "xyxy_px"
    first_label: Annotated[int, _says("Decode 'boxes': number of the first label (1 after a background).")] = 0

    latency_ms: Annotated[float | None, _says("Budget: 99th percentile for a whole frame on the device.")] = None
    memory_mb: Annotated[int | None, _says("Budget: memory on the device.")] = None
    providers: Annotated[list[str], _says("Execution providers, best first: CPU, CUDA, TensorRT, OpenVINO.")] = []
    control_flow: Annotated[bool, _says("Allow If, Loop and Scan in the model.")] = False

    golden: Annotated[str, _says("Folder with golden pictures (png or bmp).")] = ""
    expected: Annotated[str, _says("File in that folder with their answers (expected.json if it is there).")] = ""
    golden_by: Annotated[str, _says("Who gave the answers, such as 'torch 2.13'.")] = ""
    tolerance_score: Annotated[float | None, _says("How far a score may be off (0.01).")] = None
    tolerance_iou: Annotated[float | None, _says("How well a box must overlap (0.95).")] = None

    license: Annotated[str, _says("SPDX identifier of the model's licence.")] = ""
    license_file: Annotated[str, _says("The licence's text; else a file that names the identifier.")] = ""
    card: Annotated[str, _says("Model card in Markdown; else one is written from the manifest.")] = ""
    facts: Annotated[str, _says("JSON file with provenance: source, run_id, dataset, parameters, metrics, …")] = ""
    parent: Annotated[str, _says("The version that this one was made from: name@version.")] = ""


def fields() -> dict[str, tuple[Any, str]]:
    """Return every word with its type (without None) and its meaning, in order."""
    hints = get_type_hints(Recipe, include_extras=True)
    return {name: (_kind(get_args(hint)[0]), get_args(hint)[1].description) for name, hint in hints.items()}


def compose(said: dict[str, Any], toml: Path | None) -> Recipe:
    """Put flags over a `pack.toml` and check every word.

    Args:
        said: what the command line gave; its paths are as they stand. Paths in the file are relative to it.
    Raises: RequestError naming the word.
    """
    words = _from_toml(toml) if toml else {}
    words |= said
    if isinstance(words.get("labels"), str):
        words["labels"] = _labels(words["labels"])
    for required in ("model", "name", "version"):
        if required not in words:
            raise RequestError(f"Say --{required}: {fields()[required][1]}")
    try:
        return msgspec.convert(words, Recipe, strict=True)
    except msgspec.ValidationError as error:
        raise RequestError(f"The recipe is wrong: {error}.") from error


def template(said: dict[str, Any]) -> str:
    """Write a `pack.toml` with every word, its meaning, and what is known already."""
    lines = ["# Recipe for `lenskeep bundle pack`. A flag of the same name on the command line goes before."]
    for name, (kind, text) in fields().items():
        value = said.get(name)
        shown = f"{name} = {_toml(value)}" if value is not None else f"# {name} = {_example(kind)}"
        lines += ["", f"# {text}{_choices(kind)}", shown]
    return "\n".join(lines) + "\n"


def _kind(hint: Any) -> Any:
    options = [option for option in get_args(hint) if option is not type(None)]
    return options[0] if type(None) in get_args(hint) and len(options) == 1 else hint


def _from_toml(path: Path) -> dict[str, Any]:
    try:
        words = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}.") from error
    for name in PATHS:
        if isinstance(words.get(name), str) and words[name]:
            words[name] = str(path.parent / words[name])
    if isinstance(words.get("labels"), str):
        words["labels"] = _labels(str(path.parent / words["labels"]))
    return words


def _labels(text: str) -> list[str]:
    """Read labels from a file with one per line, or take the text as a list with commas."""
    path = Path(text)
    if path.is_file():
        return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [label.strip() for label in text.split(",") if label.strip()]


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)  # text, numbers, booleans and lists are written alike in TOML


def _example(kind: Any) -> str:
    if get_origin(kind) is list:
        return "[]"
    return {bool: "false", int: "0", float: "0.0"}.get(kind, '""')


def _choices(kind: Any) -> str:
    return f" One of: {', '.join(get_args(kind))}." if get_origin(kind) is Literal else ""
