"""The hand-over: who wins, who waits, who is next, and that every frame is accounted for."""

from __future__ import annotations

import threading
import time
from itertools import groupby

import numpy as np
import pytest

from lenskeep.runner.mailbox import FILE_LANE_FRAMES, Frame, Lane, Mailbox, Work

IMAGE = np.zeros((4, 4, 3), np.uint8)


def work(camera: str, number: int, age_s: float = 0.0) -> Work:
    return Work(camera, Frame(IMAGE, number, time.monotonic_ns() - int(age_s * 1e9), 0), None)


def drained(mailbox: Mailbox) -> list[Work]:
    return list(iter(lambda: mailbox.take(0.0), None))


def test_of_live_frames_the_newest_wins_and_the_others_are_counted() -> None:
    mailbox = Mailbox()
    lane = mailbox.lane(2.0)
    for number in range(5):
        assert lane.put(work("a", number))
    assert [item.frame.number for item in drained(mailbox)] == [4]
    assert lane.drops() == {"superseded": 4, "stale": 0, "format": 0}


def test_a_late_frame_never_takes_the_place_of_a_newer_one() -> None:
    mailbox = Mailbox()
    lane = mailbox.lane(2.0)
    lane.put(work("a", 8))
    lane.put(work("a", 7))
    assert mailbox.take(0).frame.number == 8
    lane.put(work("a", 6))
    assert mailbox.take(0) is None
    assert lane.drops()["superseded"] == 2


def test_an_old_live_frame_is_never_handed_over() -> None:
    mailbox = Mailbox()
    lane = mailbox.lane(2.0)
    lane.put(work("a", 0, age_s=2.1))
    lane.put(work("a", 1, age_s=1.5))
    assert [item.frame.number for item in drained(mailbox)] == [1]
    lane.put(work("a", 2, age_s=2.1))
    assert mailbox.take(0) is None
    assert lane.drops() == {"superseded": 1, "stale": 1, "format": 0}


def test_a_frame_of_a_file_is_never_too_old() -> None:
    mailbox = Mailbox()
    mailbox.lane(None).put(work("a", 0, age_s=3600))
    assert mailbox.take(0).frame.number == 0


def test_a_file_waits_for_room_and_loses_nothing() -> None:
    mailbox = Mailbox()
    lane = mailbox.lane(None)
    producer = threading.Thread(target=lambda: [lane.put(work("a", number)) for number in range(200)])
    producer.start()
    taken = [mailbox.take(1.0).frame.number for _ in range(200)]
    producer.join(1)
    assert taken == list(range(200))
    assert len(lane) <= FILE_LANE_FRAMES
    assert sum(lane.drops().values()) == 0


@pytest.mark.parametrize("close", [Mailbox.close, Lane.close], ids=["mailbox", "lane"])
def test_a_producer_that_waits_for_room_can_be_told_to_stop(close) -> None:
    mailbox = Mailbox()
    lane = mailbox.lane(None)
    answers: list[bool] = []
    producer = threading.Thread(target=lambda: answers.extend(lane.put(work("a", n)) for n in range(9)))
    producer.start()
    while len(lane) < FILE_LANE_FRAMES:
        time.sleep(0.001)
    close(mailbox if close is Mailbox.close else lane)
    producer.join(1)
    assert not producer.is_alive()
    assert answers == [True] * FILE_LANE_FRAMES + [False] * (9 - FILE_LANE_FRAMES)


def test_a_taker_that_waits_is_woken_by_a_frame_and_by_the_end() -> None:
    mailbox = Mailbox()
    lane = mailbox.lane(2.0)
    threading.Timer(0.05, lane.put, [work("a", 0)]).start()
    assert mailbox.take(5.0).frame.number == 0
    threading.Timer(0.05, mailbox.close).start()
    begun = time.monotonic()
    assert mailbox.take(5.0) is None
    assert time.monotonic() - begun < 4


def test_nothing_in_time_is_none() -> None:
    begun = time.monotonic()
    assert Mailbox().take(0.05) is None
    assert 0.04 < time.monotonic() - begun < 4


def test_a_fast_camera_does_not_starve_a_slow_one_nor_a_file() -> None:
    mailbox = Mailbox()
    fast, slow, file = mailbox.lane(2.0), mailbox.lane(2.0), mailbox.lane(None)
    slow.put(work("slow", 0))
    for number in range(FILE_LANE_FRAMES):
        file.put(work("file", number))
    served = []
    for number in range(30):  # the fast camera and the file always have something; the slow one every tenth time
        fast.put(work("fast", number))
        if number % 10 == 0:
            slow.put(work("slow", number))
        item = mailbox.take(0)
        served.append(item.camera)
        if item.camera == "file":
            file.put(work("file", number + 10))
    assert served.count("slow") == 3
    assert min(served.count("fast"), served.count("file")) >= 13
    assert max(len(list(run)) for _, run in groupby(served)) <= 2


def test_frames_are_taken_or_dropped_but_never_both_or_neither() -> None:
    mailbox = Mailbox()
    lanes = {name: mailbox.lane(2.0) for name in "abc"}
    frames = 3000
    producers = [
        threading.Thread(target=lambda name=name: [lanes[name].put(work(name, n)) for n in range(frames)])
        for name in lanes
    ]
    taken: dict[str, list[int]] = {name: [] for name in lanes}
    for producer in producers:
        producer.start()
    while any(producer.is_alive() for producer in producers):
        if (item := mailbox.take(0.01)) is not None:
            taken[item.camera].append(item.frame.number)
    for item in drained(mailbox):
        taken[item.camera].append(item.frame.number)
    for name, lane in lanes.items():
        assert taken[name] == sorted(set(taken[name]))
        assert taken[name][-1] == frames - 1
        assert len(taken[name]) + sum(lane.drops().values()) == frames
