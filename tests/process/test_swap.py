"""Swaps in a real runner at full rate: every frame is judged exactly once, by exactly one version."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from lenskeep.messages.runner import Back, Cancel, Hold, Release, Result, Swap, SwapFailed, Swapped
from tests.runnerchild import TICKS, RunnerChild, failing_model, plan, stored, version_score

pytestmark = pytest.mark.alone


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RunnerChild]:
    with RunnerChild(plan(tmp_path, stored(tmp_path, "1.0.0")), tmp_path) as child:
        child.more(10)
        yield child


def assert_whole(results: list[Result]) -> None:
    """No frame is missing, none came twice, and each carries the score of the version that it names."""
    assert [result.sequence for result in results] == list(range(1, len(results) + 1))
    for before, after in pairwise(results):
        assert after.frame == before.frame + 1
    for result in results:
        assert abs(result.score - version_score(result.bundle.partition("@")[2])) < 1e-4


def swap(child: RunnerChild, op: str, *, to: str, size_px: int = 32) -> Swapped:
    child.say(Swap(op=op, bundle=stored(child.log_path.parent, to, size_px=size_px)))
    answer = child.answer(op)
    assert isinstance(answer, Swapped)
    return answer


def test_a_hundred_swaps_at_full_rate_lose_and_duplicate_no_frame(runner: RunnerChild) -> None:
    answers = [swap(runner, f"op{n}", to=f"1.{n}.0") for n in range(1, 101)]
    runner.more(10)
    assert_whole(runner.results)
    assert runner.lost == 0
    first = {result.bundle: result.sequence for result in reversed(runner.results)}
    assert [answer.sequence for answer in answers] == [first[f"cap@1.{n}.0"] for n in range(1, 101)]
    assert all(answer.interval_ms > 0 for answer in answers)


def test_versions_with_other_inputs_lose_no_frame_either(runner: RunnerChild) -> None:
    for n in range(1, 21):
        swap(runner, f"op{n}", to=f"1.{n}.0", size_px=(32, 48)[n % 2])
    runner.more(10)
    assert_whole(runner.results)


def test_going_back_takes_place_before_the_next_frame(runner: RunnerChild) -> None:
    swap(runner, "op1", to="1.1.0")
    runner.more(20)
    beat = runner.beat(lambda beat: beat.previous == "cap@1.0.0")
    assert beat.active == "cap@1.1.0"
    runner.say(Back(op="op2"))
    answer = runner.answer("op2")
    assert isinstance(answer, Swapped)
    assert (answer.back, answer.bundle, answer.prepare_ms) == (True, "cap@1.0.0", 0.0)
    runner.more(10)
    assert_whole(runner.results)
    assert runner.beat(lambda beat: beat.active == "cap@1.0.0").previous == ""


def test_going_back_with_nothing_behind_is_refused(runner: RunnerChild) -> None:
    runner.say(Back(op="op1"))
    answer = runner.answer("op1")
    assert isinstance(answer, SwapFailed)
    assert answer.code == "LK-8102"


def test_held_a_swap_waits_prepared_until_it_is_let_go(runner: RunnerChild) -> None:
    runner.say(Hold(held=True))
    runner.say(Swap(op="op1", bundle=stored(runner.log_path.parent, "1.1.0")))
    runner.beat(lambda beat: beat.held and beat.swapping == "op1")
    runner.beat()
    runner.more(100)
    assert {result.bundle for result in runner.results} == {"cap@1.0.0"}
    runner.say(Hold(held=False))
    assert isinstance(runner.answer("op1"), Swapped)
    runner.more(10)
    assert runner.results[-1].bundle == "cap@1.1.0"
    assert_whole(runner.results)


@pytest.mark.attack(74)
@pytest.mark.parametrize("spoil", ["damage", "remove"])
def test_a_version_whose_file_is_spoilt_is_refused_and_the_line_goes_on(runner: RunnerChild, spoil: str) -> None:
    bad = stored(runner.log_path.parent, "1.1.0")
    path = Path(bad.model_path)
    if spoil == "remove":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    runner.say(Swap(op="op1", bundle=bad))
    answer = runner.answer("op1")
    assert isinstance(answer, SwapFailed)
    assert answer.code == "LK-5003"
    runner.more(20)
    assert {result.bundle for result in runner.results} == {"cap@1.0.0"}
    assert_whole(runner.results)


def test_a_newer_swap_takes_the_place_of_an_older_one(runner: RunnerChild) -> None:
    runner.say(Hold(held=True))
    runner.say(Swap(op="old", bundle=stored(runner.log_path.parent, "1.1.0")))
    runner.say(Swap(op="new", bundle=stored(runner.log_path.parent, "1.2.0")))
    runner.say(Hold(held=False))
    assert isinstance(runner.answer("new"), Swapped)
    old = runner.answer("old")
    assert isinstance(old, SwapFailed)
    assert old.code == "LK-8101"
    runner.more(10)
    assert {result.bundle for result in runner.results} == {"cap@1.0.0", "cap@1.2.0"}
    assert_whole(runner.results)


def test_a_swap_that_is_taken_back_never_comes(runner: RunnerChild) -> None:
    runner.say(Hold(held=True))
    runner.say(Swap(op="op1", bundle=stored(runner.log_path.parent, "1.1.0")))
    runner.say(Cancel(op="op1"))
    assert isinstance(runner.answer("op1"), SwapFailed)
    runner.say(Hold(held=False))
    runner.beat(lambda beat: not beat.held and not beat.swapping)
    runner.more(10)
    assert {result.bundle for result in runner.results} == {"cap@1.0.0"}


@pytest.mark.attack(130)
def test_a_version_that_fails_on_its_first_frames_goes_back_by_itself(runner: RunnerChild) -> None:
    runner.say(Swap(op="op1", bundle=stored(runner.log_path.parent, "6.6.6", data=failing_model(32))))
    there, back = runner.until(lambda: runner.news[1:] and runner.news)
    assert (there.bundle, there.back) == ("cap@6.6.6", False)
    assert (back.op, back.bundle, back.back, back.reflex) == ("op1", "cap@1.0.0", True, "LK-8103")
    runner.more(10)
    failed = [result for result in runner.results if result.bundle == "cap@6.6.6"]
    assert [(result.outcome, result.error) for result in failed] == [("ERROR", "LK-3002")] * 3
    good = [result for result in runner.results if result.bundle != "cap@6.6.6"]
    assert {result.bundle for result in good} == {"cap@1.0.0"}
    assert [result.frame for result in runner.results] == list(
        range(runner.results[0].frame, runner.results[0].frame + len(runner.results))
    )


def test_a_failing_first_version_has_nowhere_to_go_and_every_frame_says_so(tmp_path: Path) -> None:
    bad = stored(tmp_path, "6.6.6", data=failing_model(32))
    with RunnerChild(plan(tmp_path, bad, cameras=[slow_camera()]), tmp_path) as child:
        child.more(10)
        assert {(result.outcome, result.error) for result in child.results} == {("ERROR", "LK-3002")}
        assert child.news == []


def test_a_released_previous_is_gone(runner: RunnerChild) -> None:
    swap(runner, "op1", to="1.1.0")
    runner.say(Release())
    assert runner.beat(lambda beat: not beat.previous).active == "cap@1.1.0"
    runner.say(Back(op="op2"))
    assert isinstance(runner.answer("op2"), SwapFailed)


def test_an_idle_slot_reports_its_exchange_too(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    idle = TICKS.__class__(name="cam", source=f"folder:{tmp_path}/pictures", loop=False)
    with RunnerChild(plan(tmp_path, stored(tmp_path, "1.0.0"), cameras=[idle]), tmp_path) as child:
        child.beat(lambda beat: beat.active == "cap@1.0.0")
        answer = swap(child, "op1", to="1.1.0")
        assert (answer.interval_ms, answer.sequence) == (0.0, 1)
        assert child.beat(lambda beat: beat.reason == "waiting").active == "cap@1.1.0"


def slow_camera():
    """Thirty frames a second."""
    return TICKS.__class__(name="cam", source="synthetic:ticks", pace="realtime", fps=30.0)


def nice_values(child: RunnerChild) -> dict[str, int]:
    """The priority of every thread of the process, by its kernel name and number."""
    values = {}
    for task in Path(f"/proc/{child.process.pid}/task").iterdir():
        name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(")")
        values[f"{name} {task.name}"] = int(fields.split()[16])
    return values


NO_RAISING = ("setpriv", "--bounding-set", "-sys_nice", "--inh-caps", "-sys_nice")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("raising", [True, False])
@pytest.mark.parametrize("cores", [1, 2])
def test_after_a_swap_no_thread_that_judges_is_left_at_low_priority(
    tmp_path: Path, threads: int, raising: bool, cores: int
) -> None:
    if not raising and shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed")
    before = () if raising or os.getuid() else NO_RAISING
    slot = plan(tmp_path, stored(tmp_path, "1.0.0"), threads=threads)
    with RunnerChild(slot, tmp_path, cores=cores, before=before) as child:
        child.more(10)
        for n in range(1, 6):
            swap(child, f"op{n}", to=f"1.{n}.0")
        child.more(10)
        assert_whole(child.results)
        low = [name for name, value in nice_values(child).items() if value > os.getpriority(os.PRIO_PROCESS, 0)]
        # where a thread may not be raised again, the one that prepares sessions stays low; it judges nothing
        assert len(low) <= (0 if before == () and os.getuid() == 0 else 1), low
