"""Frames into tensors, against plain computations written from the definitions and values made by torch."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from numpy.testing import assert_allclose

from lenskeep.bundle.manifest import Input, Kernel
from lenskeep.errors import CameraFormatError, ManifestError
from lenskeep.runner.resize import resizer
from lenskeep.runner.tensors import Preprocessor
from tests.models import picture

# what torch.nn.functional.interpolate(antialias=True) made of `noise`, in double precision, rounded to bytes
BY_TORCH = Path(__file__).with_name("antialiased_by_torch.npz")


def spec(mode: str = "stretch", width_px: int = 32, height_px: int = 24, **fields: Any) -> Input:
    resize = {name: fields.pop(name) for name in ("kernel", "pad_value", "anchor") if name in fields}
    layout = fields.get("layout", "NCHW")
    channels = 1 if fields.get("color") == "GRAY" else 3
    shape = [1, channels, height_px, width_px] if layout == "NCHW" else [1, height_px, width_px, channels]
    plain = {"name": "image", "shape": shape, "resize": {"mode": mode, **resize}, **fields}
    return msgspec.convert(plain, Input)


def letterboxed(image: np.ndarray, width_px: int, height_px: int, pad: int = 114) -> np.ndarray:
    """Letterbox step by step as Ultralytics documents it."""
    high, wide = image.shape[:2]
    ratio = min(height_px / high, width_px / wide)
    new_wide, new_high = round(wide * ratio), round(high * ratio)
    half_x, half_y = (width_px - new_wide) / 2, (height_px - new_high) / 2
    if (wide, high) != (new_wide, new_high):
        image = cv2.resize(image, (new_wide, new_high), interpolation=cv2.INTER_LINEAR)
    edges = round(half_y - 0.1), round(half_y + 0.1), round(half_x - 0.1), round(half_x + 0.1)
    return cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=(pad,) * 3)


def as_tensor(image: np.ndarray, fields: Input) -> np.ndarray:
    """Bring a picture of the right size into the tensor's form, number by number and channel by channel."""
    if fields.color == "GRAY":
        image = image[:, :, None]
    elif fields.color == "RGB":
        image = image[:, :, ::-1]
    numbers = image.astype(np.float64) * fields.scale
    numbers = (numbers - (fields.mean or 0.0)) / (fields.std or 1.0)
    if fields.layout == "NCHW":
        numbers = numbers.transpose(2, 0, 1)
    return numbers[None].astype(fields.dtype)


@pytest.mark.parametrize("size", [(640, 480), (481, 640), (33, 17), (32, 24), (100, 3), (7, 300), (1, 1), (64, 47)])
def test_letterbox_gives_the_pixels_and_the_border_that_ultralytics_gives(size: tuple[int, int]) -> None:
    fields = spec("letterbox", 64, 48, scale=1 / 255)
    image = picture(1, *size)
    prepared = Preprocessor(fields).prepare(image)
    assert_allclose(prepared.tensor, as_tensor(letterboxed(image, 64, 48), fields), rtol=0, atol=1e-7)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("color", ["RGB", "BGR", "GRAY"])
def test_every_layout_type_and_colour_order_holds_the_same_numbers(layout: str, dtype: str, color: str) -> None:
    channels = 1 if color == "GRAY" else 3
    mean, std = [0.485, 0.456, 0.406][:channels], [0.229, 0.224, 0.225][:channels]
    fields = spec(layout=layout, dtype=dtype, color=color, scale=1 / 255, mean=mean, std=std)
    image = picture(2, 50, 70)
    plain = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if color == "GRAY" else image
    plain = cv2.resize(plain, (32, 24), interpolation=cv2.INTER_LINEAR)
    tensor = Preprocessor(fields).prepare(image).tensor
    assert tensor.dtype == dtype and list(tensor.shape) == fields.shape and tensor.flags.c_contiguous
    np.testing.assert_array_equal(tensor, as_tensor(plain, fields))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("color", ["RGB", "BGR", "GRAY"])
def test_bytes_stay_bytes(layout: str, color: str) -> None:
    fields = spec(layout=layout, color=color, dtype="uint8")
    image = picture(3, 32, 24)
    plain = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if color == "GRAY" else image
    np.testing.assert_array_equal(Preprocessor(fields).prepare(image).tensor, as_tensor(plain, fields))


def test_bytes_with_a_scale_contradict_themselves() -> None:
    with pytest.raises(ManifestError, match="uint8"):
        Preprocessor(spec(dtype="uint8", scale=1 / 255))


@pytest.mark.parametrize(("kernel", "constant"), [("linear", 1), ("cubic", 2), ("area", 3), ("nearest", 0)])
def test_plain_kernels_are_those_of_opencv(kernel: str, constant: int) -> None:
    image = picture(4, 90, 61)
    tensor = Preprocessor(spec(kernel=kernel, color="BGR")).prepare(image).tensor
    expected = cv2.resize(image, (32, 24), interpolation=constant)
    np.testing.assert_array_equal(tensor[0].transpose(1, 2, 0), expected)


def noise(width_px: int, height_px: int) -> np.ndarray:
    """A picture on which every wrong weight shows, the same wherever numpy runs."""
    numbers = np.arange(height_px * width_px * 3, dtype=np.uint64) * np.uint64(2654435761)
    return ((numbers >> np.uint64(13)) & np.uint64(255)).astype(np.uint8).reshape(height_px, width_px, 3)


@pytest.mark.parametrize("kernel", ["linear_antialias", "cubic_antialias"])
@pytest.mark.parametrize("size", [(320, 180), (33, 41), (20, 12), (12, 9), (12, 97), (5, 4), (1, 1)])
def test_antialiased_kernels_are_those_of_torch_and_pil(kernel: Kernel, size: tuple[int, int]) -> None:
    with np.load(BY_TORCH) as stored:
        expected = stored[f"{kernel}-{size[0]}x{size[1]}"].astype(int)
    apart = np.abs(resizer(kernel, size, (12, 9))(noise(*size)) - expected)
    assert apart.max() <= 1 and apart.mean() < 0.01  # a tie that rounds the other way and nothing more


def test_antialiased_kernels_take_grey_pictures() -> None:
    grey = cv2.cvtColor(picture(6, 90, 61), cv2.COLOR_BGR2GRAY)
    stacked = cv2.merge([grey] * 3)
    small, three = (resizer("linear_antialias", (90, 61), (32, 24))(image) for image in (grey, stacked))
    assert small.shape == (24, 32)
    np.testing.assert_array_equal(small, three[:, :, 1])


def test_shortest_crop_covers_the_rectangle_and_cuts_both_sides_alike() -> None:
    image = picture(7, 100, 50)
    prepared = Preprocessor(spec("shortest_crop", 20, 20, color="BGR")).prepare(image)
    expected = cv2.resize(image, (40, 20))[:, 10:30]
    np.testing.assert_array_equal(prepared.tensor[0].transpose(1, 2, 0), expected)


@pytest.mark.parametrize("size", [(101, 50), (50, 101), (640, 480), (31, 29)])
@pytest.mark.parametrize("anchor", ["center", "top_left"])
def test_shortest_crop_never_leaves_a_border(size: tuple[int, int], anchor: str) -> None:
    white = np.full((size[1], size[0], 3), 255, np.uint8)
    tensor = Preprocessor(spec("shortest_crop", 20, 24, anchor=anchor, pad_value=0)).prepare(white).tensor
    assert tensor.min() == 255


def test_longest_pad_fills_up_below_when_anchored_at_the_top() -> None:
    image = picture(8, 100, 50)
    prepared = Preprocessor(spec("longest_pad", 32, 24, color="BGR", anchor="top_left", pad_value=7)).prepare(image)
    got = prepared.tensor[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(got[:16], cv2.resize(image, (32, 16)))
    assert (got[16:] == 7).all()


@pytest.mark.parametrize("mode", ["letterbox", "stretch", "shortest_crop", "longest_pad"])
@pytest.mark.parametrize("anchor", ["center", "top_left"])
@pytest.mark.parametrize("size", [(640, 480), (481, 640), (97, 31)])
def test_a_thing_is_found_again_where_it_was(mode: str, anchor: str, size: tuple[int, int]) -> None:
    """A bright block in the frame, located in the tensor, comes back to the block's place."""
    wide, high = size
    left, right = (0.1, 0.3) if anchor == "top_left" else (0.4, 0.6)  # a crop must not cut it away
    block = np.array([wide * left, high * left, wide * right, high * right], np.float32).round()
    frame = np.zeros((high, wide, 3), np.uint8)
    x1, y1, x2, y2 = block.astype(int)
    frame[y1:y2, x1:x2] = 255
    fields = spec(mode, 320, 256, anchor=anchor, pad_value=0, kernel="area")
    prepared = Preprocessor(fields).prepare(frame)
    rows, columns = np.nonzero(prepared.tensor[0, 0] > 127)
    seen = np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)
    place = prepared.placement
    pixel = 1.0 / np.array([place.scale_x, place.scale_y] * 2)
    assert (np.abs(place.to_frame(seen)[0] - block) <= pixel + 0.01).all()


def test_boxes_are_cut_off_at_the_edges_of_the_frame() -> None:
    place = Preprocessor(spec("letterbox", 64, 64)).prepare(picture(1, 100, 50)).placement
    boxes = place.to_frame(np.array([[-10, -10, 500, 500]], np.float32))
    np.testing.assert_array_equal(boxes, [[0, 0, 100, 50]])


@pytest.mark.attack(124)
@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 10, 3), np.uint8),
        np.zeros((10, 0, 3), np.uint8),
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((4, 20000, 3), np.uint8),
        np.zeros((20000, 4, 3), np.uint8),
    ],
    ids=lambda image: f"{image.dtype}-{image.shape}",
)
def test_what_is_no_frame_for_this_model_is_refused(image: np.ndarray) -> None:
    with pytest.raises(CameraFormatError):
        Preprocessor(spec("letterbox")).prepare(image)


@pytest.mark.attack(126)
def test_a_long_and_narrow_frame_cannot_blow_up_the_memory() -> None:
    with pytest.raises(CameraFormatError, match="narrow"):
        Preprocessor(spec("shortest_crop", 224, 224)).prepare(np.zeros((1, 8000, 3), np.uint8))


def test_a_model_that_takes_frames_as_they_are_refuses_another_size() -> None:
    preprocessor = Preprocessor(spec("none", 32, 24, color="BGR"))
    image = picture(9, 32, 24)
    np.testing.assert_array_equal(preprocessor.prepare(image).tensor[0].transpose(1, 2, 0), image)
    with pytest.raises(CameraFormatError, match="exactly 32x24"):
        preprocessor.prepare(picture(9, 24, 32))


def test_a_tensor_that_is_held_is_not_touched_by_later_frames() -> None:
    preprocessor = Preprocessor(spec("letterbox"))
    held = [preprocessor.prepare(picture(seed)) for seed in range(5)]
    kept = [prepared.tensor.copy() for prepared in held]
    for seed in range(5, 10):
        preprocessor.prepare(picture(seed))
    for prepared, copy in zip(held, kept, strict=True):
        np.testing.assert_array_equal(prepared.tensor, copy)


def test_the_memory_of_a_dropped_tensor_is_used_again_with_its_border_intact() -> None:
    preprocessor = Preprocessor(spec("letterbox"))
    image = picture(1, 100, 20)
    first = preprocessor.prepare(image)
    address, numbers = first.tensor.ctypes.data, first.tensor.copy()
    del first
    preprocessor.prepare(picture(2, 20, 100))
    again = preprocessor.prepare(image)
    assert again.tensor.ctypes.data == address
    np.testing.assert_array_equal(again.tensor, numbers)


def test_several_threads_prepare_at_once_without_mixing_their_frames() -> None:
    preprocessor = Preprocessor(spec("letterbox"))
    images = [picture(seed, 40 + 20 * (seed % 2), 40) for seed in range(4)]
    expected = [preprocessor.prepare(image).tensor.copy() for image in images]
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            if not np.array_equal(preprocessor.prepare(images[number]).tensor, expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_tensors_are_shared_between_versions_only_when_every_number_agrees() -> None:
    key = Preprocessor(spec("letterbox", scale=1 / 255)).spec_key
    renamed = msgspec.structs.replace(spec("letterbox", scale=1 / 255), name="input_0")
    assert Preprocessor(renamed).spec_key == key
    for other in (spec("letterbox"), spec("stretch", scale=1 / 255), spec("letterbox", scale=1 / 255, color="BGR")):
        assert Preprocessor(other).spec_key != key
    assert Preprocessor(renamed).prepare(picture(1)).spec_key == key
