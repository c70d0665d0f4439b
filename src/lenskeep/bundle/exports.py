"""The contract between frame and result, as far as a model file and its maker tell it.

Rules. What the maker said goes first; then what the file says about itself; then a custom that is named.
Whatever was not said is noted with the place where it was read. What decides results and stands nowhere is
asked for, never guessed, and never taken from a model family's name: one family exports different outputs
from one version to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lenskeep.bundle.manifest import (
    BoxesDecode,
    ClassifyDecode,
    ColourOrder,
    Decode,
    Input,
    Output,
    Resize,
    YoloEndToEndDecode,
    YoloRawDecode,
)
from lenskeep.bundle.modelcheck import fits
from lenskeep.bundle.onnxcheck import OnnxFacts, TensorFacts
from lenskeep.bundle.recipe import Recipe, Task
from lenskeep.bundle.ultralytics import read_metadata, resize_of
from lenskeep.errors import RequestError

BOX_OUTPUTS = ("boxes", "scores", "labels")


@dataclass(slots=True)
class Contract:
    """From a frame to a result, and where each part of it was read."""

    task: Task
    labels: list[str]
    input: Input
    outputs: list[Output]
    decode: Decode
    notes: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def infer(facts: OnnxFacts, recipe: Recipe) -> Contract:
    """Work out the contract of a model.

    Raises: RequestError naming the flag to give, or the contradiction.
    """
    return _Inference(facts, recipe).contract()


class _Inference:
    def __init__(self, facts: OnnxFacts, recipe: Recipe) -> None:
        self._facts = facts
        self._recipe = recipe
        self._said = read_metadata(facts.metadata)
        self._notes: dict[str, str] = {}
        self._warnings: list[str] = []

    def contract(self) -> Contract:
        task = self._task()
        labels = self._labels()
        spec = self._input(task)
        decode, outputs = self._decode(task, len(labels))
        self._check_license()
        return Contract(task, labels, spec, outputs, decode, self._notes, self._warnings)

    def _note(self, what: str, where: str) -> None:
        self._notes[what] = where

    def _task(self) -> Task:
        told, found = self._recipe.task, self._said.task
        if found not in (None, "classify", "detect"):
            raise RequestError(f"The model's metadata says the task is {found!a}; classify and detect are supported.")
        if told and found and told != found:
            raise RequestError(f"You say --task {told}, the model's metadata says {found}.")
        if told:
            return told
        if found:
            self._note("task", "metadata task")
            return "classify" if found == "classify" else "detect"
        raise _ask("task", "classify or detect; the model does not say")

    def _labels(self) -> list[str]:
        told, found = self._recipe.labels, self._said.labels
        if told and found and told != found:
            raise RequestError(
                f"You say the labels are {told}, the model's metadata says {found}. One of them is wrong."
            )
        if told:
            return told
        if found:
            self._note("labels", "metadata names")
            return found
        raise _ask("labels", "in the order of the outputs; the model does not name them")

    # --- input ----------------------------------------------------------------------------------------------------

    def _input(self, task: Task) -> Input:
        if len(self._facts.inputs) != 1:
            raise RequestError(f"The model must have one input, the image; it has {len(self._facts.inputs)}.")
        tensor = self._facts.inputs[0]
        if tensor.dtype not in ("float32", "float16", "uint8"):
            raise RequestError(f"The model's input is {tensor.dtype}; float32, float16 and uint8 are supported.")
        shape = self._input_shape(tensor)
        layout = self._layout(shape)
        channels = shape[1] if layout == "NCHW" else shape[3]
        self._note("input.name, dtype", "model")
        return Input(
            name=tensor.name,
            dtype=_one_of(tensor.dtype, "float32", "float16", "uint8"),
            layout=layout,
            shape=shape,
            color=self._color(channels),
            resize=self._resize(task, square=shape[2] == shape[3] if layout == "NCHW" else shape[1] == shape[2]),
            scale=self._scale(tensor.dtype),
            mean=self._recipe.mean,
            std=self._recipe.std,
        )

    def _input_shape(self, tensor: TensorFacts) -> list[int]:
        told = self._recipe.input_shape
        if told:
            if not fits(told, tensor):
                raise RequestError(f"You say --input-shape {told}; the model's input is {_shown(tensor)}.")
            return told
        if tensor.shape is None or len(tensor.shape) != 4:
            raise RequestError(f"The model's input is {_shown(tensor)}; an image has four dimensions.")
        shape = [dim if isinstance(dim, int) else 0 for dim in tensor.shape]
        self._note("input.shape", "model")
        if not shape[0]:
            shape[0] = 1
            self._note("input.shape", "model, with the open batch size set to 1")
        if self._said.size and shape[1] and not (shape[2] and shape[3]):
            shape[2:] = [dim or size for dim, size in zip(shape[2:], self._said.size, strict=True)]
            self._note("input.shape", "model and metadata imgsz")
        if 0 in shape:
            raise _ask("input-shape", f"such as 1,3,640,640; the model leaves it open ({_shown(tensor)})")
        return shape

    def _layout(self, shape: Sequence[int]) -> Literal["NCHW", "NHWC"]:
        if self._recipe.layout:
            return self._recipe.layout
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first == last:
            raise _ask("layout", f"NCHW or NHWC; the shape {list(shape)} does not tell")
        self._note("input.layout", "shape")
        return "NCHW" if first else "NHWC"

    def _color(self, channels: int) -> ColourOrder:
        if self._recipe.color:
            return self._recipe.color
        self._note("input.color", "channels" if channels == 1 else "custom: models are trained on RGB")
        return "GRAY" if channels == 1 else "RGB"

    def _scale(self, dtype: str) -> float:
        if self._recipe.scale is not None:
            return self._recipe.scale
        custom = "custom: float inputs take 0 to 1" if dtype != "uint8" else "custom: uint8 inputs take 0 to 255"
        self._note("input.scale", "Ultralytics" if self._said.task and dtype != "uint8" else custom)
        return 1.0 if dtype == "uint8" else 1 / 255

    def _resize(self, task: Task, *, square: bool) -> Resize:
        mode, kernel = self._recipe.resize, self._recipe.kernel
        custom = resize_of(task, square=square) if self._said.task else None
        if mode is None:
            if custom is None:
                raise _ask("resize", "how a frame becomes the model's rectangle; nothing in the model tells")
            mode = custom[0]
            self._note("input.resize", f"Ultralytics, task {task}")
        if kernel is None:
            kernel = custom[1] if custom and mode == custom[0] else "linear"
            self._note("input.resize.kernel", "Ultralytics" if custom else "custom: linear, as cv2.resize")
        return Resize(mode=mode, kernel=kernel, pad_value=self._recipe.pad_value, anchor=self._recipe.anchor)

    # --- outputs --------------------------------------------------------------------------------------------------

    def _decode(self, task: Task, labels: int) -> tuple[Decode, list[Output]]:
        if task == "classify":
            output = self._single_output()
            self._expect(output, [1, labels], f"classify with {labels} labels")
            return ClassifyDecode(softmax=self._recipe.softmax), [output]
        kind = self._recipe.decode or self._detect_kind(labels)
        if kind == "boxes":
            return self._boxes()
        output = self._single_output()
        boxes_max = 300 if self._recipe.boxes_max is None else self._recipe.boxes_max
        score_min = 0.25 if self._recipe.score_min is None else self._recipe.score_min
        if kind == "yolo-end2end":
            self._expect(output, [1, None, 6], kind)
            return YoloEndToEndDecode(score_min=score_min, boxes_max=boxes_max), [output]
        if kind != "yolo-raw":
            raise RequestError(f"You say --decode {kind}, which is not for detection.")
        self._expect(output, [1, 4 + labels, None], f"{kind} with {labels} labels")
        iou_max = 0.7 if self._recipe.iou_max is None else self._recipe.iou_max
        agnostic = self._recipe.agnostic
        return YoloRawDecode(score_min=score_min, iou_max=iou_max, boxes_max=boxes_max, agnostic=agnostic), [output]

    def _detect_kind(self, labels: int) -> Literal["yolo-raw", "yolo-end2end", "boxes"]:
        """Decide by task, head, end2end and shape together; where they do not agree, ask."""
        names = {tensor.name for tensor in self._facts.outputs}
        if not self._said.task:
            if set(BOX_OUTPUTS) <= names:
                self._note("decode", "output names boxes, scores, labels")
                return "boxes"
            raise _ask("decode", "how the outputs become boxes; nothing in the model tells")
        if self._said.head and "RTDETR" in self._said.head:
            raise RequestError(
                "RT-DETR's output (unit cx, cy, w, h) has the shape of another one and is not supported."
            )
        shape = self._single_output().shape
        raw = len(shape) == 3 and shape[1] == 4 + labels
        end_to_end = len(shape) == 3 and shape[2] == 6
        if self._said.end_to_end is not None:
            if not (end_to_end if self._said.end_to_end else raw):
                raise RequestError(f"The metadata says end2end={self._said.end_to_end}, but the output is {shape}.")
            self._note("decode", f"metadata task, end2end={self._said.end_to_end}, and shape {shape}")
            return "yolo-end2end" if self._said.end_to_end else "yolo-raw"
        if raw and not end_to_end:
            self._note("decode", f"metadata task, and shape {shape}")
            return "yolo-raw"
        raise _ask("decode", f"the export does not say what its output {shape} is")

    def _boxes(self) -> tuple[Decode, list[Output]]:
        outputs = [self._output(name) for name in BOX_OUTPUTS]
        self._note("outputs", "model, by the names boxes, scores, labels")
        recipe = self._recipe
        decode = BoxesDecode(
            boxes="boxes",
            scores="scores",
            labels="labels",
            form=recipe.box_form,
            first_label=recipe.first_label,
            score_min=0.25 if recipe.score_min is None else recipe.score_min,
            boxes_max=300 if recipe.boxes_max is None else recipe.boxes_max,
        )
        return decode, outputs

    def _single_output(self) -> Output:
        outputs = self._facts.outputs
        if not self._recipe.output and len(outputs) != 1:
            raise _ask("output", f"the model has several: {', '.join(tensor.name for tensor in outputs)}")
        return self._output(self._recipe.output or outputs[0].name)

    def _output(self, name: str) -> Output:
        tensor = next((tensor for tensor in self._facts.outputs if tensor.name == name), None)
        if tensor is None:
            names = ", ".join(tensor.name for tensor in self._facts.outputs)
            raise RequestError(f"The model has no output {name!a}; it has {names}.")
        if tensor.dtype not in ("float32", "float16", "int64", "int32"):
            raise RequestError(f"The output {name!a} is {tensor.dtype}; float32, float16, int64, int32 are supported.")
        self._note(f"outputs.{name}", "model")
        dtype = _one_of(tensor.dtype, "float32", "float16", "int64", "int32")
        return Output(name=name, dtype=dtype, shape=self._output_shape(tensor))

    def _output_shape(self, tensor: TensorFacts) -> list[int]:
        for text in self._recipe.output_shapes:
            name, _, dims = text.rpartition("=")
            if name == tensor.name:
                return _dims(dims, tensor)
        shape = [dim if isinstance(dim, int) else 0 for dim in tensor.shape or (0,)]
        if not shape[0] and len(shape) > 1:
            shape[0] = 1
        if 0 in shape:
            raise _ask("output-shapes", f"such as {tensor.name}=1x300x6; the model leaves it open ({_shown(tensor)})")
        return shape

    def _expect(self, output: Output, shape: Sequence[int | None], what: str) -> None:
        same = len(output.shape) == len(shape) and all(
            want in (None, have) for want, have in zip(shape, output.shape, strict=True)
        )
        if not same:
            raise RequestError(f"The output {output.name!a} has shape {output.shape}, which does not fit {what}.")

    def _check_license(self) -> None:
        found = self._said.license
        if found and self._recipe.license and self._recipe.license.split("-")[0].lower() not in found.lower():
            self._warnings.append(f"The export says its licence is {found!a}; you say {self._recipe.license}.")


def _dims(text: str, tensor: TensorFacts) -> list[int]:
    try:
        shape = [int(dim) for dim in text.split("x")]
    except ValueError as error:
        raise RequestError(f"--output-shapes: {text!a} is not a shape such as 1x300x6.") from error
    if not fits(shape, tensor):
        raise RequestError(f"--output-shapes says {shape}; the model's output is {_shown(tensor)}.")
    return shape


def _shown(tensor: TensorFacts) -> str:
    return f"{tensor.name}: {tensor.dtype} {list(tensor.shape) if tensor.shape is not None else 'of unknown rank'}"


def _ask(flag: str, why: str) -> RequestError:
    return RequestError(
        f"Say --{flag}: {why}.", hint=f"Add --{flag}; `lenskeep bundle pack --help` lists what it takes."
    )


def _one_of(text: str, *options: Any) -> Any:
    return options[options.index(text)]
