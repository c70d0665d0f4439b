"""From a camera's frame to the model's tensor, exactly as the manifest says, and the way back for positions.

Rules. Pixels are resized as bytes, then looked up in a table of 256 numbers per channel: `(pixel * scale - mean) / std`
is computed in double precision once, so every layout and type takes the same path and no rounding depends on it.
A tensor may be handed to another thread while the next frame is prepared; when it is dropped, its memory is used
again. Not here: what a model makes of the tensor.
"""

from __future__ import annotations

import weakref
from collections import deque
from dataclasses import dataclass

import cv2
import msgspec
import numpy as np
from numpy.typing import NDArray

from lenskeep.bundle.manifest import Input
from lenskeep.errors import CameraFormatError, ManifestError
from lenskeep.runner.resize import Image, Size, resizer

Tensor = NDArray[np.generic]

RESIZED_PX_MAX = 1 << 26  # a frame of 8000 x 1 pixels, brought to its shorter side, would be wider than any memory
_SIZES_MAX = 8  # frame sizes remembered; a stream that keeps changing its size must not fill the memory


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a frame lies in the model's rectangle: `model = frame * scale + offset`, per axis."""

    scale_x: float
    scale_y: float
    left_px: int  # negative when the frame is cropped
    top_px: int
    frame_width_px: int
    frame_height_px: int

    def to_frame(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Bring boxes (K, 4) x1, y1, x2, y2 from the model's pixels to the frame's, cut off at its edges."""
        offset = np.array([self.left_px, self.top_px] * 2, np.float32)
        scale = np.array([self.scale_x, self.scale_y] * 2, np.float32)
        edge = np.array([self.frame_width_px, self.frame_height_px] * 2, np.float32)
        inside: NDArray[np.float32] = np.clip((boxes - offset) / scale, 0, edge)
        return inside


@dataclass(frozen=True, slots=True)
class Prepared:
    """One frame, ready for the model. Keep `tensor` itself, not a slice of it: its memory returns with it."""

    tensor: Tensor
    placement: Placement
    spec_key: bytes


def spec_key(spec: Input) -> bytes:
    """Name what a prepared tensor depends on: two versions with one key can share it."""
    return msgspec.json.encode(msgspec.structs.replace(spec, name="", frame_px_max=[]))


class Preprocessor:
    """Prepares frames for one model input; may be used by several threads at a time.

    Raises: ManifestError for a contract that no picture can fulfil.
    """

    def __init__(self, spec: Input) -> None:
        self.spec = spec
        self.spec_key = spec_key(spec)
        self._tables = _tables(spec)
        self._fits: dict[Size, _Fit] = {}

    def prepare(self, image: Image) -> Prepared:
        """Bring one frame into the model's form.

        Args:
            image: uint8 BGR, shape (height_px, width_px, 3), as cv2 delivers it; not kept.
        Returns: a contiguous tensor of the shape and type in the manifest, valid as long as it is held.
        Raises: CameraFormatError for what is no picture, or one of a size that this model does not take.
        Cost: 1280x720 to letterboxed 640x640 float32 NCHW: 0.4 ms on one core, no allocation once warm.
        """
        fit = self._fit(image)
        content = image
        if self.spec.color == "GRAY":
            content = cv2.cvtColor(content, cv2.COLOR_BGR2GRAY)
        elif self.spec.color == "RGB" and self.spec.layout == "NHWC":
            content = cv2.cvtColor(content, cv2.COLOR_BGR2RGB)
        content = fit.resize(content)[fit.seen]
        tensor = fit.lease()
        self._fill(tensor[fit.place], content)
        return Prepared(tensor, fit.placement, self.spec_key)

    def _fit(self, image: Image) -> _Fit:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise CameraFormatError(f"A frame of {image.dtype} with shape {image.shape} is no BGR picture.")
        size = (image.shape[1], image.shape[0])
        fit = self._fits.get(size)
        if fit is None:
            if len(self._fits) >= _SIZES_MAX:
                self._fits = {}
            fit = self._fits[size] = _Fit(self.spec, size, self._tables)
        return fit

    def _fill(self, target: Tensor, content: Image) -> None:
        if self.spec.layout == "NHWC":
            plane = target[0, :, :, 0] if content.ndim == 2 else target[0]
            _look_up(content, self._tables[0] if content.ndim == 2 else self._tables.T[None], plane)
            return
        planes = [content] if content.ndim == 2 else cv2.split(content)
        if self.spec.color == "RGB":
            planes = planes[::-1]
        for channel, plane in enumerate(planes):
            _look_up(plane, self._tables[channel], target[0, channel])


def _look_up(pixels: Image, table: Tensor, target: Tensor) -> None:
    if table.dtype == np.uint8:
        np.copyto(target, pixels)
    else:
        written = cv2.LUT(pixels, table, dst=target)
        assert written.ctypes.data == target.ctypes.data, "cv2 wrote elsewhere"


def _tables(spec: Input) -> Tensor:
    """Compute what each of the 256 pixel values becomes, per channel: shape (channels, 256), the tensor's type."""
    if spec.dtype == "uint8" and (spec.scale != 1.0 or spec.mean or spec.std):
        raise ManifestError("model.json: input.dtype uint8 takes pixels as they are, without scale, mean and std")
    pixels = np.arange(256, dtype=np.float64)[None] * spec.scale
    mean = np.array(spec.mean or [0.0] * spec.channels)[:, None]
    std = np.array(spec.std or [1.0] * spec.channels)[:, None]
    return np.ascontiguousarray(((pixels - mean) / std).astype(spec.dtype))


class _Fit:
    """Everything that depends on the frame's size: computed once, and the tensors in use with their borders."""

    def __init__(self, spec: Input, frame: Size, tables: Tensor) -> None:
        _check_frame(spec, frame)
        self._spec, self._tables = spec, tables
        size, scale, (left, top) = _geometry(spec, frame)
        self.placement = Placement(*scale, left, top, *frame)
        self.resize = resizer(spec.resize.kernel, frame, size)
        wide = _overlap(left, size[0], spec.width_px)
        tall = _overlap(top, size[1], spec.height_px)
        self.seen = (tall[0], wide[0])
        both = (slice(None), slice(None))
        self.place = (*both, tall[1], wide[1]) if spec.layout == "NCHW" else (both[0], tall[1], wide[1])
        self._spare: deque[Tensor] = deque()

    def lease(self) -> Tensor:
        """Return a tensor with its border filled, which comes back here when nobody holds it any more."""
        try:
            memory = self._spare.pop()
        except IndexError:
            memory = self._blank()
        tensor = memory.view()
        weakref.finalize(tensor, self._spare.append, memory).atexit = False
        return tensor

    def _blank(self) -> Tensor:
        border = self._tables[:, self._spec.resize.pad_value]
        blank = np.empty(self._spec.shape, self._tables.dtype)
        blank[:] = border[:, None, None] if self._spec.layout == "NCHW" else border
        return blank


def _check_frame(spec: Input, frame: Size) -> None:
    width_px, height_px = frame
    if not width_px or not height_px:
        raise CameraFormatError(f"A frame of {width_px}x{height_px} pixels shows nothing.")
    width_px_max, height_px_max = spec.frame_px_max
    if width_px > width_px_max or height_px > height_px_max:
        raise CameraFormatError(
            f"A frame of {width_px}x{height_px} pixels is over the model's limit, {width_px_max}x{height_px_max}."
        )
    if spec.resize.mode == "none" and frame != (spec.width_px, spec.height_px):
        raise CameraFormatError(
            f"A frame of {width_px}x{height_px} pixels is not resized for this model, which takes exactly "
            f"{spec.width_px}x{spec.height_px}."
        )


def _geometry(spec: Input, frame: Size) -> tuple[Size, tuple[float, float], Size]:
    """Return the resized frame's size, the scale of positions, and where its corner lies in the rectangle."""
    width_px, height_px = spec.width_px, spec.height_px
    size, scale = _resized(spec, frame)
    if size[0] * size[1] > RESIZED_PX_MAX:
        raise CameraFormatError(f"A frame of {frame[0]}x{frame[1]} pixels is too long and narrow for this model.")
    gap_x, gap_y = width_px - size[0], height_px - size[1]
    if spec.resize.anchor == "top_left":
        return size, scale, (0, 0)
    if spec.resize.mode == "letterbox":  # Ultralytics gives an odd pixel to the right and the bottom
        return size, scale, (round(gap_x / 2 - 0.1), round(gap_y / 2 - 0.1))
    if spec.resize.mode == "shortest_crop":  # torchvision's CenterCrop
        return size, scale, (-round(-gap_x / 2), -round(-gap_y / 2))
    return size, scale, (gap_x // 2, gap_y // 2)


def _resized(spec: Input, frame: Size) -> tuple[Size, tuple[float, float]]:
    width_px, height_px = spec.width_px, spec.height_px
    ratio_x, ratio_y = width_px / frame[0], height_px / frame[1]
    match spec.resize.mode:
        case "letterbox":  # Ultralytics rounds the size, but keeps one exact ratio for positions
            ratio = min(ratio_x, ratio_y)
            return (max(1, round(frame[0] * ratio)), max(1, round(frame[1] * ratio))), (ratio, ratio)
        case "longest_pad":  # transformers: the longer side exactly, the other one cut down to whole pixels
            size = _keep_aspect(frame, width_px, height_px, by_width=ratio_x <= ratio_y)
        case "shortest_crop":  # torchvision: the side that just covers exactly, the other one likewise
            size = _keep_aspect(frame, width_px, height_px, by_width=ratio_x >= ratio_y)
            size = max(size[0], width_px), max(size[1], height_px)
        case "stretch" | "none":
            size = width_px, height_px
    return size, (size[0] / frame[0], size[1] / frame[1])


def _keep_aspect(frame: Size, width_px: int, height_px: int, *, by_width: bool) -> Size:
    if by_width:
        return width_px, max(1, width_px * frame[1] // frame[0])
    return max(1, height_px * frame[0] // frame[1]), height_px


def _overlap(offset: int, length: int, room: int) -> tuple[slice, slice]:
    """Return the part of a resized axis that is seen, and its place in the model's axis."""
    begin, end = max(0, offset), min(room, offset + length)
    return slice(begin - offset, end - offset), slice(begin, end)
