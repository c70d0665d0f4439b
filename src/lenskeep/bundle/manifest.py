"""`model.json`: the signed facts of a bundle, and the whole contract between a camera frame and a result.

Rules. Every number that changes what a result means stands here and is signed: the resize kernel, colour order, scale,
how outputs become boxes, the thresholds that make an OK. The device adds nothing and guesses nothing. Unknown fields
are refused, because a field that one version understands and another ignores would be two different models.
Not here: bytes (archive), who signed (signing), whether it runs here (the trial on the device).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from lenskeep.bundle import strictjson
from lenskeep.errors import ManifestError

SCHEMA = "lenskeep.model/1"
MANIFEST_NAME = "model.json"
MANIFEST_BYTES_MAX = 1 << 20

# `\Z` and `[0-9]`, because in Python `$` lets a newline follow and `\d` means the digits of every script.
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}\Z")]
_COUNT = "(0|[1-9][0-9]{0,5})"
Version = Annotated[str, Meta(pattern=rf"^{_COUNT}\.{_COUNT}\.{_COUNT}(-[a-z0-9.]{{1,32}})?\Z")]
Digest = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]
Member = Annotated[str, Meta(pattern=r"^[a-z0-9_][a-z0-9._/-]{0,99}\Z")]
Text = Annotated[str, Meta(max_length=4000)]
Short = Annotated[str, Meta(max_length=200)]
Unit = Annotated[float, Meta(ge=0.0, le=1.0)]
Pixels = Annotated[int, Meta(ge=1, le=16384)]
Dim = Annotated[int, Meta(ge=1, le=1 << 20)]

ColourOrder = Literal["RGB", "BGR", "GRAY"]
Kernel = Literal["linear", "linear_antialias", "area", "cubic", "cubic_antialias", "nearest"]
ResizeMode = Literal["letterbox", "stretch", "shortest_crop", "longest_pad", "none"]


class _Facts(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Resize(_Facts, frozen=True, kw_only=True):
    """How a frame of any size becomes the model's rectangle."""

    mode: ResizeMode
    kernel: Kernel = "linear"
    pad_value: Annotated[int, Meta(ge=0, le=255)] = 114
    anchor: Literal["center", "top_left"] = "center"


class Input(_Facts, frozen=True, kw_only=True):
    """What the model's one image input expects, after `(pixel * scale - mean) / std` per channel.

    `frame_px_max` is width, height: larger frames are refused before anything is computed from them.
    """

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    dtype: Literal["float32", "float16", "uint8"] = "float32"
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    shape: Annotated[list[Dim], Meta(min_length=4, max_length=4)]
    color: ColourOrder = "RGB"
    resize: Resize
    scale: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    mean: Annotated[list[float], Meta(max_length=3)] = []
    std: Annotated[list[Annotated[float, Meta(gt=0.0)]], Meta(max_length=3)] = []
    frame_px_max: Annotated[list[Pixels], Meta(min_length=2, max_length=2)] = msgspec.field(
        default_factory=lambda: [8192, 8192]
    )

    @property
    def height_px(self) -> int:
        """Rows of the model's rectangle."""
        return self.shape[2] if self.layout == "NCHW" else self.shape[1]

    @property
    def width_px(self) -> int:
        """Columns of the model's rectangle."""
        return self.shape[3] if self.layout == "NCHW" else self.shape[2]

    @property
    def channels(self) -> int:
        """Colour channels of the model's rectangle."""
        return self.shape[1] if self.layout == "NCHW" else self.shape[3]


class Output(_Facts, frozen=True, kw_only=True):
    """One output tensor by name, with its exact shape."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    dtype: Literal["float32", "float16", "int64", "int32"] = "float32"
    shape: Annotated[list[Dim], Meta(min_length=1, max_length=6)]


class ClassifyDecode(_Facts, tag_field="kind", tag="classify", frozen=True, kw_only=True):
    """One score per label, shape (1, labels); `softmax` says whether it still has to be applied."""

    softmax: bool = False


class YoloRawDecode(_Facts, tag_field="kind", tag="yolo-raw", frozen=True, kw_only=True):
    """Shape (1, 4 + labels, N): cx, cy, w, h in input pixels, then class scores; needs non-maximum suppression."""

    score_min: Unit = 0.25
    iou_max: Unit = 0.7
    boxes_max: Annotated[int, Meta(ge=1, le=10000)] = 300
    agnostic: bool = False


class YoloEndToEndDecode(_Facts, tag_field="kind", tag="yolo-end2end", frozen=True, kw_only=True):
    """Shape (1, K, 6): x1, y1, x2, y2 in input pixels, score, class; nothing left to suppress."""

    score_min: Unit = 0.25
    boxes_max: Annotated[int, Meta(ge=1, le=10000)] = 300


class BoxesDecode(_Facts, tag_field="kind", tag="boxes", frozen=True, kw_only=True):
    """Three outputs: boxes (K, 4), scores (K), labels (K), in the named box form; a leading 1 is allowed."""

    boxes: str
    scores: str
    labels: str
    form: Literal["xyxy_px", "xyxy_unit", "cxcywh_px", "cxcywh_unit"] = "xyxy_px"
    first_label: Annotated[int, Meta(ge=0, le=1)] = 0
    score_min: Unit = 0.25
    boxes_max: Annotated[int, Meta(ge=1, le=10000)] = 300


Decode = ClassifyDecode | YoloRawDecode | YoloEndToEndDecode | BoxesDecode


class Labels(_Facts, frozen=True, kw_only=True):
    """What the model can say, in the order of its outputs; the hash makes a silent re-ordering impossible."""

    names: Annotated[list[Annotated[str, Meta(min_length=1, max_length=100)]], Meta(min_length=1, max_length=10000)]
    sha256: Digest


class Verdict(_Facts, frozen=True, kw_only=True):
    """How labels and scores become OK, NG or UNCERTAIN.

    Classification: the best label decides; below `certain_from` it is UNCERTAIN.
    Detection: an NG label from `certain_from` is NG, from `uncertain_from` is UNCERTAIN; fewer than `ok_count_min`
    sound parts is NG.
    """

    ok: list[str] = []
    ng: list[str] = []
    certain_from: Unit = 0.6
    uncertain_from: Unit = 0.4
    ok_count_min: Annotated[int, Meta(ge=0, le=10000)] = 0


class Budget(_Facts, frozen=True, kw_only=True):
    """What the model may cost on the device, whole frame (preprocess, inference, decode)."""

    latency_p99_ms: Annotated[float, Meta(gt=0.0, le=600000.0)]
    memory_mb: Annotated[int, Meta(ge=1, le=1 << 20)]


class Requires(_Facts, frozen=True, kw_only=True):
    """What the device must have. `providers`: any one of them is enough, best first."""

    opset: Annotated[int, Meta(ge=1, le=1000)]
    onnxruntime: Annotated[str, Meta(pattern=r"^>=[0-9]+\.[0-9]+(\.[0-9]+)?\Z")] = ">=1.31"
    providers: Annotated[list[Literal["CPU", "CUDA", "TensorRT", "OpenVINO"]], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["CPU"]
    )
    control_flow: bool = False


class Tolerance(_Facts, frozen=True, kw_only=True):
    """How far a device may differ from the golden outputs."""

    score_abs: Unit = 0.01
    box_iou_min: Unit = 0.95


class GoldenBox(_Facts, frozen=True, kw_only=True):
    """One expected box, in pixels of the golden picture: x1, y1, x2, y2."""

    label: str
    score: Unit
    box: Annotated[list[float], Meta(min_length=4, max_length=4)]


class GoldenCase(_Facts, frozen=True, kw_only=True):
    """One picture and the answer that the training framework gave for it."""

    image: Member
    scores: dict[str, Unit] | None = None
    boxes: list[GoldenBox] | None = None


class Golden(_Facts, frozen=True, kw_only=True):
    """The proof that a device reproduces what was trained."""

    cases: Annotated[list[GoldenCase], Meta(min_length=1, max_length=56)]
    produced_by: Short
    tolerance: Tolerance = Tolerance()


class Provenance(_Facts, frozen=True, kw_only=True):
    """Where the model comes from; `inferred` says where each contract field was read from at pack time."""

    source: Short = ""
    run_id: Short = ""
    commit: Short = ""
    dataset: Short = ""
    dataset_sha256: Annotated[str, Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    parameters: dict[str, str | int | float | bool] = {}
    metrics: dict[str, float] = {}
    parent: Short = ""
    inferred: dict[str, str] = {}


class Manifest(_Facts, frozen=True, kw_only=True):
    """Everything a device must know about a bundle before it runs one frame through it."""

    schema: Literal["lenskeep.model/1"]
    name: Name
    version: Version
    title: Short = ""
    description: Text = ""
    created: Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")]
    task: Literal["classify", "detect"]
    model: Member = "model.onnx"
    input: Input
    outputs: Annotated[list[Output], Meta(min_length=1, max_length=8)]
    decode: Decode
    labels: Labels
    verdict: Verdict
    budget: Budget
    requires: Requires
    golden: Golden
    provenance: Provenance = Provenance()
    license: Short
    card: Member = "readme.md"
    license_file: Member = "license.txt"

    @property
    def ref(self) -> str:
        """How people name this version: `name@version`."""
        return f"{self.name}@{self.version}"


def labels_digest(names: list[str]) -> str:
    """Hash a label list: sha256 over its lines, each ended by a newline."""
    return hashlib.sha256("".join(f"{name}\n" for name in names).encode()).hexdigest()


def parse(data: bytes) -> Manifest:
    """Read a manifest and check that it does not contradict itself.

    Raises: ManifestError naming the field; BundleFormatError when it is not strict JSON.
    """
    raw = strictjson.loads(data, bytes_max=MANIFEST_BYTES_MAX, floats=True)
    try:
        manifest = msgspec.convert(raw, Manifest, strict=True)
    except msgspec.ValidationError as error:
        raise ManifestError(f"model.json: {error}") from error
    _check_labels(manifest)
    _check_input(manifest.input)
    _check_decode(manifest)
    _check_golden(manifest)
    return manifest


def encode(manifest: Manifest) -> bytes:
    """Write a manifest so that the same facts always give the same bytes."""
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def version_key(version: str) -> tuple[int, int, int, bool, str]:
    """Order versions as people expect: 1.10.0 after 1.9.0, 1.0.0-rc1 before 1.0.0."""
    core, _, pre = version.partition("-")
    major, minor, patch = (int(part) for part in core.split("."))
    return major, minor, patch, pre == "", pre


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ManifestError(f"model.json: {sentence}")


def _printable(text: str) -> bool:
    """No control, bidirectional or private characters: a label is shown on pages and in terminals."""
    return all(unicodedata.category(char) not in {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"} for char in text)


def _check_labels(manifest: Manifest) -> None:
    names = manifest.labels.names
    _require(len(set(names)) == len(names), "labels.names has a label twice")
    _require(all(_printable(name) for name in names), "labels.names has a character that cannot be shown safely")
    _require(labels_digest(names) == manifest.labels.sha256, "labels.sha256 does not match labels.names")
    verdict = manifest.verdict
    for word in (*verdict.ok, *verdict.ng):
        _require(word in names, f"verdict names the label {word!r}, which the model does not have")
    _require(not set(verdict.ok) & set(verdict.ng), "verdict has a label in both ok and ng")
    _require(verdict.uncertain_from <= verdict.certain_from, "verdict.uncertain_from is above certain_from")
    for text in (manifest.title, manifest.license, manifest.description.replace("\n", ""), manifest.golden.produced_by):
        _require(_printable(text), "a text has a character that cannot be shown safely")


def _check_input(spec: Input) -> None:
    _require(spec.shape[0] == 1, "input.shape must have batch size 1")
    _require(spec.channels == (1 if spec.color == "GRAY" else 3), "input.shape does not fit input.color")
    _require(spec.height_px <= 16384 and spec.width_px <= 16384, "input.shape is larger than 16384 pixels")
    plain = spec.scale == 1.0 and not spec.mean and not spec.std
    _require(spec.dtype != "uint8" or plain, "input.dtype uint8 takes pixels as they are: no scale, mean or std")
    for field in ("mean", "std"):
        _require(len(getattr(spec, field)) in (0, spec.channels), f"input.{field} needs one number per channel")


def _check_decode(manifest: Manifest) -> None:
    decode, outputs = manifest.decode, {output.name: output for output in manifest.outputs}
    _require(len(outputs) == len(manifest.outputs), "outputs has a name twice")
    labels = len(manifest.labels.names)
    if isinstance(decode, BoxesDecode):
        for role in (decode.boxes, decode.scores, decode.labels):
            _require(role in outputs, f"decode names the output {role!r}, which is not in outputs")
    else:
        _require(len(outputs) == 1, f"decode {type(decode).__name__} takes exactly one output")
    shape = manifest.outputs[0].shape
    if isinstance(decode, ClassifyDecode):
        _require(shape == [1, labels], f"outputs shape {shape} does not fit {labels} labels")
    elif isinstance(decode, YoloRawDecode):
        _require(len(shape) == 3 and shape[1] == 4 + labels, f"outputs shape {shape} does not fit 4 + {labels} labels")
    elif isinstance(decode, YoloEndToEndDecode):
        _require(len(shape) == 3 and shape[2] == 6, f"outputs shape {shape} is not (1, K, 6)")
    _require((manifest.task == "classify") == isinstance(decode, ClassifyDecode), "decode does not fit the task")


def _check_golden(manifest: Manifest) -> None:
    images = [case.image for case in manifest.golden.cases]
    _require(len(set(images)) == len(images), "golden.cases names a picture twice")
    for case in manifest.golden.cases:
        _require(
            re.search(r"\.(png|bmp)\Z", case.image) is not None,
            f"golden picture {case.image} is not lossless (png or bmp)",
        )
        expected = case.scores if manifest.task == "classify" else case.boxes
        other = case.boxes if manifest.task == "classify" else case.scores
        _require(expected is not None and other is None, f"golden case {case.image} does not fit the task")
        words = list(case.scores or {}) + [box.label for box in case.boxes or []]
        for word in words:
            _require(word in manifest.labels.names, f"golden case {case.image} has the unknown label {word!r}")
