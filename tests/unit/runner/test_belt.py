"""The synthetic line: the same frame for the same seed and number, and a truth that fits the picture."""

from __future__ import annotations

import numpy as np
import pytest

from lenskeep.runner.belt import FRAMES_PER_CAP, LABELS, LOOP_STEP_FRAMES, MOVE_FRAMES, Belt

VIEWS = pytest.mark.parametrize("station", [False, True], ids=["belt", "station"])


@VIEWS
def test_a_frame_depends_on_seed_and_number_alone(station: bool) -> None:
    one, other = Belt(5, 320, 240, station=station), Belt(5, 320, 240, station=station)
    first = one.frame(1234)
    one.frame(7)
    assert np.array_equal(one.frame(1234), first)
    assert np.array_equal(other.frame(1234), first)
    assert other.truth(1234) == one.truth(1234)
    assert not np.array_equal(Belt(6, 320, 240, station=station).frame(1234), first)


@VIEWS
@pytest.mark.parametrize("size", [(64, 48), (320, 240), (321, 243), (240, 320)])
def test_a_frame_has_the_size_asked_for_and_belongs_to_the_caller(station: bool, size: tuple[int, int]) -> None:
    belt = Belt(1, *size, station=station)
    frame = belt.frame(50)
    assert frame.shape == (size[1], size[0], 3)
    assert frame.dtype == np.uint8
    kept = frame.copy()
    frame[:] = 0
    assert np.array_equal(belt.frame(50), kept)


@VIEWS
def test_truth_lies_inside_the_frame(station: bool) -> None:
    belt = Belt(2, 320, 240, station=station)
    boxes = [box for index in range(0, 900, 7) for box in belt.truth(index)]
    assert boxes
    for label, x1, y1, x2, y2 in boxes:
        assert label in LABELS
        assert 0 <= x1 < x2 <= 320
        assert 0 <= y1 < y2 <= 240


def test_an_empty_seat_is_dark_and_a_cap_is_not() -> None:
    belt = Belt(3, 320, 240, defect_share=0.5)
    for index in range(0, 300, 20):
        frame = belt.frame(index)
        for label, x1, y1, x2, y2 in belt.truth(index):
            x, y = round((x1 + x2) / 2), round((y1 + y2) / 2)
            if x2 - x1 == y2 - y1:  # not cut at the frame's edge
                middle = frame[y - 4 : y + 5, x - 4 : x + 5].max(2).mean()
                assert (middle < 80) == (label == "missing"), (index, label, middle)


def test_every_label_passes_within_a_loop_of_ten_caps() -> None:
    for seed in range(8):
        belt = Belt(seed, 64, 48, defect_share=0.4, station=True)
        dwells = {belt.label(place * FRAMES_PER_CAP + MOVE_FRAMES) for place in range(15)}
        assert dwells == set(LABELS), seed


def test_no_defects_when_none_are_asked_for() -> None:
    belt = Belt(4, 320, 240, defect_share=0.0)
    assert {box[0] for index in range(0, 600, 30) for box in belt.truth(index)} == {"good"}


def test_the_station_dwells_on_one_cap_and_names_none_while_it_moves() -> None:
    belt = Belt(9, 320, 240, station=True)
    for place in range(5):
        start = place * FRAMES_PER_CAP
        dwell = [belt.truth(index) for index in range(start + MOVE_FRAMES, start + FRAMES_PER_CAP)]
        assert all(boxes == dwell[0] for boxes in dwell)
        assert len(dwell[0]) == 1
        assert belt.label(start + MOVE_FRAMES) == dwell[0][0][0]
        assert belt.label(start + MOVE_FRAMES // 2) is None


@VIEWS
def test_a_loop_goes_on_without_a_jump(station: bool) -> None:
    frames = 2 * LOOP_STEP_FRAMES
    belt = Belt(11, 320, 240, station=station, loop_frames=frames)
    assert np.array_equal(belt.frame(frames + 3), belt.frame(3))

    def change(index: int) -> float:
        return float(np.abs(belt.frame(index + 1).astype(int) - belt.frame(index)).mean())

    usual = [change(index) for index in range(frames - 10, frames + 10) if index != frames - 1]
    assert change(frames - 1) <= max(usual)


def test_a_loop_of_an_impossible_length_is_refused() -> None:
    with pytest.raises(ValueError, match="not a multiple of 60"):
        Belt(1, 64, 48, loop_frames=100)
