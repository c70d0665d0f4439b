"""The loop on real sessions and a real mailbox, one frame at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lenskeep.messages.runner import BundleRef, FromRunner, Preview, Result, Swapped
from lenskeep.runner.loop import Loop
from lenskeep.runner.mailbox import Frame, Mailbox, Work
from lenskeep.runner.nudge import Nudge
from lenskeep.runner.preview import PreviewDesk
from lenskeep.runner.ring import ResultRing
from lenskeep.runner.sessions import SessionThread
from lenskeep.runner.swap import Changeover
from tests.runnerchild import failing_model, plan, stored, version_score

BLACK = np.zeros((48, 64, 3), np.uint8)
GREY = np.full((48, 64, 3), 128, np.uint8)  # the one picture that `failing_model` can judge
NO_PICTURE = np.zeros((48, 64), np.uint8)


class Bench:
    """A loop in a thread, with a lane to feed it."""

    def __init__(self, folder: Path) -> None:
        self.news: deque[FromRunner] = deque()
        self.ring = ResultRing("r", 1000)
        self.sessions = SessionThread()
        self.sessions.start()
        self.over = Changeover(plan(folder, None), self.news, self.sessions)
        self.mailbox = Mailbox()
        self.lane = self.mailbox.lane(None)
        self.pictures: dict[str, Any] = {}
        self.preview = PreviewDesk(self.pictures)
        self.loop = Loop(self.mailbox, self.over, self.ring, self.preview, self.news, Nudge(), errors_max=3)
        self.thread = threading.Thread(target=self.loop.run, daemon=True)
        self.thread.start()
        self.fed = 0

    def run(self, bundle: BundleRef, op: str) -> None:
        """Let a version take over."""
        self.over.swap(op, bundle)
        self.until(lambda: self.over.active is not None and self.over.active.ref == bundle)

    def judge(self, image: np.ndarray = BLACK, prepared: Any = None) -> Result:
        """Feed one frame; return its result."""
        self.fed += 1
        self.lane.put(Work("cam", Frame(image, self.fed, time.monotonic_ns(), 1234), prepared))
        self.until(lambda: self.ring.waiting)
        [result] = self.ring.batch()[0]
        return result

    def until(self, look: Any) -> None:
        """Wait for the loop's thread."""
        deadline = time.monotonic() + 10
        while not look():
            assert time.monotonic() < deadline
            time.sleep(0.0005)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.loop.stopping = True
    bench.mailbox.close()
    bench.thread.join(5)
    assert not bench.thread.is_alive()
    bench.sessions.retire()


def test_a_result_says_what_was_judged_by_whom_and_how_long_it_took(bench: Bench, tmp_path: Path) -> None:
    ref = stored(tmp_path, "1.0.0")
    bench.run(ref, "op1")
    result = bench.judge(prepared=bench.loop.stage(BLACK))
    assert (result.sequence, result.camera, result.frame, result.captured_ms) == (1, "cam", 1, 1234)
    assert (result.outcome, result.label, result.error) == ("OK", "good", "")
    assert abs(result.score - version_score("1.0.0")) < 1e-4
    assert (result.bundle, result.digest) == (ref.ref, ref.model_sha256)
    assert result.inference_us > 0
    assert result.total_us >= result.inference_us + result.decode_us
    assert bench.judge().sequence == 2


def test_before_the_first_version_nothing_is_staged_and_frames_wait(bench: Bench, tmp_path: Path) -> None:
    assert bench.loop.stage(BLACK) is None
    bench.lane.put(Work("cam", Frame(BLACK, 1, time.monotonic_ns(), 0), None))
    bench.run(stored(tmp_path, "1.0.0"), "op1")
    bench.until(lambda: bench.ring.waiting)
    assert bench.ring.batch()[0][0].frame == 1


def test_a_frame_prepared_for_another_input_is_prepared_again(bench: Bench, tmp_path: Path) -> None:
    bench.run(stored(tmp_path, "1.0.0", size_px=32), "op1")
    staged = bench.loop.stage(BLACK)
    bench.run(stored(tmp_path, "1.1.0", size_px=64), "op2")
    result = bench.judge(prepared=staged)
    assert (result.outcome, result.bundle) == ("OK", "cap@1.1.0")


@pytest.mark.parametrize("image", [NO_PICTURE, np.zeros((0, 10, 3), np.uint8), np.zeros((2, 2, 3), np.float32)])
def test_a_frame_that_is_no_picture_gets_an_error_result(bench: Bench, tmp_path: Path, image: np.ndarray) -> None:
    bench.run(stored(tmp_path, "1.0.0"), "op1")
    result = bench.judge(image)
    assert (result.outcome, result.label, result.sequence) == ("ERROR", "", 1)
    assert result.error.startswith("LK-20")
    assert bench.judge().outcome == "OK"


def test_an_exchange_is_told_once_with_the_first_result_after_it(bench: Bench, tmp_path: Path) -> None:
    bench.run(stored(tmp_path, "1.0.0"), "op1")
    bench.judge()
    bench.run(stored(tmp_path, "1.1.0"), "op2")
    bench.judge()
    bench.judge()
    first, second = bench.news
    assert isinstance(first, Swapped)
    assert isinstance(second, Swapped)
    assert (first.op, first.sequence) == ("op1", 1)
    assert (second.op, second.sequence, second.bundle) == ("op2", 2, "cap@1.1.0")
    assert second.interval_ms > 0


def test_a_newcomer_that_fails_on_every_frame_goes_back_after_three(bench: Bench, tmp_path: Path) -> None:
    bench.run(stored(tmp_path, "1.0.0"), "op1")
    bench.judge()
    bench.run(stored(tmp_path, "6.6.6", data=failing_model(32)), "op2")
    assert [bench.judge().error for _ in range(3)] == ["LK-3002"] * 3
    assert bench.judge().bundle == "cap@1.0.0"
    told = bench.news[-1]
    assert isinstance(told, Swapped)
    assert (told.op, told.back, told.reflex, told.bundle) == ("op2", True, "LK-8103", "cap@1.0.0")


def test_a_version_that_has_judged_one_frame_does_not_go_back_by_itself(bench: Bench, tmp_path: Path) -> None:
    bench.run(stored(tmp_path, "1.0.0"), "op1")
    bench.judge()
    bench.run(stored(tmp_path, "6.6.6", data=failing_model(32)), "op2")
    assert bench.judge(GREY).outcome == "OK"
    assert {bench.judge().bundle for _ in range(5)} == {"cap@6.6.6"}


def test_a_loop_without_frames_still_turns(bench: Bench, tmp_path: Path) -> None:
    bench.run(stored(tmp_path, "1.0.0"), "op1")
    turns = bench.loop.turns
    bench.until(lambda: bench.loop.turns > turns + 1)
    assert bench.loop.judged == 0


def test_frames_are_offered_to_the_preview_only_while_watched_and_at_most_as_often_as_asked(
    bench: Bench, tmp_path: Path
) -> None:
    bench.run(stored(tmp_path, "1.0.0"), "op1")
    bench.judge()
    assert not bench.preview.watched
    bench.preview.wish(Preview(camera="cam", fps=0.1, seconds=30))
    bench.judge()
    bench.until(lambda: bench.pictures)
    bench.pictures.clear()
    bench.judge()
    bench.judge()
    assert bench.pictures == {}
    bench.preview.wish(Preview(camera="cam", fps=0.1, seconds=0))
    assert not bench.preview.watched
