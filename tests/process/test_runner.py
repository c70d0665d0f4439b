"""The life of a runner process: start, connections that come and go, signals, crashes."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lenskeep.messages.runner import CameraPlan, Preview, Stop
from tests.runnerchild import TICKS, RunnerChild, endless_model, plan, stored

STEADY = CameraPlan(name="cam", source="synthetic:ticks", pace="realtime", fps=200.0)


@pytest.fixture
def runner(tmp_path: Path) -> Iterator[RunnerChild]:
    slot = plan(tmp_path, stored(tmp_path, "1.0.0"), cameras=[STEADY])
    with RunnerChild(slot, tmp_path) as child:
        child.more(5)
        yield child


def test_results_name_the_version_the_digest_and_the_times(runner: RunnerChild) -> None:
    result = runner.results[-1]
    assert (result.bundle, result.camera, result.outcome, result.label) == ("cap@1.0.0", "cam", "OK", "good")
    assert result.digest == runner.plan.bundle.model_sha256  # type: ignore[union-attr]
    stages = result.wait_us + result.preprocess_us + result.inference_us + result.decode_us
    assert stages <= result.total_us <= stages + 5
    assert abs(result.captured_ms - time.time() * 1000) < 10_000
    beat = runner.beat()
    assert (beat.active, beat.digest, beat.provider, beat.reason) == ("cap@1.0.0", result.digest, "CPU", "")
    assert beat.rss_mb > 20
    assert beat.cameras[0].name == "cam"


def test_the_socket_is_private_and_the_process_carries_its_slots_name(runner: RunnerChild) -> None:
    mode = Path(runner.plan.socket_path).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    assert Path(f"/proc/{runner.process.pid}/comm").read_text() == "lenskeep-main\n"


def test_a_daemon_that_dies_and_dials_again_gets_every_result_once_and_in_order(runner: RunnerChild) -> None:
    runner.acknowledging = False
    for _ in range(3):
        before = len(runner.results)
        runner.more(100)
        runner.hang_up()
        seen = runner.results[-1].sequence
        assert len(runner.results) > before
        time.sleep(0.1)  # frames go on meanwhile
        runner.dial()
        runner.until(lambda seen=seen: runner.results[-1].sequence > seen + 20)
    told: dict[int, int] = {}
    for result in runner.results:
        assert told.setdefault(result.sequence, result.frame) == result.frame
    assert sorted(told) == list(range(1, max(told) + 1))
    frames = [told[sequence] for sequence in sorted(told)]
    assert frames == sorted(set(frames))
    assert runner.lost == 0


def test_what_was_acknowledged_is_not_told_again(runner: RunnerChild) -> None:
    runner.more(50)
    runner.acknowledging = False
    acknowledged = runner.results[-1].sequence
    runner.beat()  # the acknowledgement has been read by now
    runner.hang_up()
    runner.results.clear()
    runner.dial()
    runner.more(1)
    assert runner.results[0].sequence > acknowledged - 50
    assert runner.results[0].sequence <= acknowledged + 200


def test_a_newer_connection_replaces_an_older_one(runner: RunnerChild) -> None:
    old = runner._socket
    assert old is not None
    runner.dial()
    runner.more(10)
    old.settimeout(5)
    with old, contextlib.suppress(ConnectionResetError):
        while old.recv(1 << 16):
            pass


def test_a_daemon_that_reads_nothing_does_not_hold_up_the_line(tmp_path: Path) -> None:
    slot = plan(tmp_path, stored(tmp_path, "1.0.0"), result_ring=200, cameras=[TICKS])
    with RunnerChild(slot, tmp_path) as child:
        child.more(5)
        first = child.beat().frames
        time.sleep(1.5)  # not reading: the socket and then the ring run over
        child.acknowledging = False
        assert child.beat(lambda beat: beat.frames > first + 2000)
        child.until(lambda: child.lost > 0)


def test_a_stranger_who_breaks_the_framing_is_hung_up_on(runner: RunnerChild) -> None:
    assert runner._socket is not None
    runner._socket.sendall(struct.pack(">I", 1 << 30))
    while runner.listen(5):
        pass
    runner.hang_up()
    runner.dial()
    runner.more(5)


@pytest.mark.parametrize("way", ["signal", "message"])
def test_told_to_stop_it_ends_orderly_in_two_seconds(runner: RunnerChild, way: str) -> None:
    begun = time.monotonic()
    if way == "signal":
        runner.process.send_signal(signal.SIGTERM)
    else:
        runner.say(Stop())
    assert runner.end() == 0
    assert time.monotonic() - begun < 2.0


@pytest.mark.parametrize("way", ["signal", "message"])
def test_a_model_that_never_lets_go_is_seen_as_stuck_and_ended_when_told_to_stop(tmp_path: Path, way: str) -> None:
    slot = plan(tmp_path, stored(tmp_path, "1.0.0", data=endless_model(32)), cameras=[STEADY])
    with RunnerChild(slot, tmp_path) as child:
        child.beat(lambda beat: beat.active)
        child.beat()
        stuck = child.beat()
        assert (stuck.frames, stuck.reason) == (0, "")  # no progress and no reason for it
        begun = time.monotonic()
        if way == "signal":
            child.process.send_signal(signal.SIGTERM)
        else:
            child.say(Stop())
        assert child.end() == 71
        assert time.monotonic() - begun < 2.5


def test_killed_it_leaves_a_stale_socket_that_the_next_start_replaces(tmp_path: Path) -> None:
    slot = plan(tmp_path, stored(tmp_path, "1.0.0"), cameras=[STEADY])
    with RunnerChild(slot, tmp_path) as child:
        child.more(1)
        assert child.kill() == -signal.SIGKILL
        assert Path(slot.socket_path).exists()
    with RunnerChild(slot, tmp_path) as child:
        child.more(5)


def test_a_second_process_for_the_same_slot_refuses_to_start(runner: RunnerChild) -> None:
    second = RunnerChild(runner.plan, runner.log_path.parent)
    assert second.process.wait(10) == 73
    runner.more(5)


def test_a_native_crash_is_seen_by_the_parent(runner: RunnerChild) -> None:
    os.kill(runner.process.pid, signal.SIGSEGV)
    assert runner.end() == -signal.SIGSEGV


def test_without_a_bundle_it_waits_and_says_so(tmp_path: Path) -> None:
    with RunnerChild(plan(tmp_path, None, cameras=[STEADY]), tmp_path) as child:
        beat = child.beat()
        assert (beat.reason, beat.active, beat.frames) == ("no_bundle", "", 0)
        child.process.send_signal(signal.SIGTERM)
        assert child.end() == 0


def test_a_first_version_that_cannot_be_loaded_is_told_and_the_slot_waits_for_another(tmp_path: Path) -> None:
    with RunnerChild(plan(tmp_path, stored(tmp_path, "1.0.0", data=b"no model"), cameras=[STEADY]), tmp_path) as child:
        assert child.answer("").code == "LK-8004"  # type: ignore[union-attr]
        assert child.beat().reason == "no_bundle"


@pytest.mark.parametrize(("text", "code"), [("{}", 65), ("not json", 65), (None, 65)])
def test_a_plan_that_cannot_be_read_ends_the_process_with_its_code(tmp_path: Path, text: str | None, code: int) -> None:
    slot = plan(tmp_path, None)
    child = RunnerChild(slot, tmp_path)
    child.kill()
    path = tmp_path / "plan.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    again = type(child.process)([*child.process.args], stderr=-3)  # type: ignore[misc, arg-type]
    assert again.wait(10) == code


def test_a_camera_that_is_not_there_is_the_named_reason(tmp_path: Path) -> None:
    lost = CameraPlan(name="cam", source=f"file:{tmp_path}/none.mp4")
    with RunnerChild(plan(tmp_path, stored(tmp_path, "1.0.0"), cameras=[lost]), tmp_path) as child:
        beat = child.beat(lambda beat: beat.reason == "camera" and bool(beat.cameras[0].code))
        assert beat.active == "cap@1.0.0"
        assert beat.cameras[0].state in ("opening", "lost")
        assert beat.cameras[0].code


def test_pictures_come_only_while_somebody_watches(runner: RunnerChild) -> None:
    runner.beat()
    assert runner.pictures == []
    runner.say(Preview(camera="cam", fps=20, seconds=0.6, width_px=200))
    picture = runner.until(lambda: runner.pictures[2:])[0]
    image = cv2.imdecode(np.frombuffer(picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    assert picture.bundle == "cap@1.0.0"
    assert picture.outcome == "OK"
    runner.beat()
    runner.beat()
    count = len(runner.pictures)
    runner.beat()
    assert len(runner.pictures) == count


def test_a_path_too_long_for_a_socket_is_said(tmp_path: Path) -> None:
    slot = plan(tmp_path, None, socket_path=str(tmp_path / ("s" * 120)))
    child = RunnerChild(slot, tmp_path)
    assert child.process.wait(10) == 65
    assert "cannot listen" in child.log()


def test_two_cameras_share_one_slot(tmp_path: Path) -> None:
    cameras = [CameraPlan(name=name, source="synthetic:ticks", pace="realtime", fps=100.0) for name in ("a", "b")]
    with RunnerChild(plan(tmp_path, stored(tmp_path, "1.0.0"), cameras=cameras), tmp_path) as child:
        child.more(60)
        counts = {name: sum(result.camera == name for result in child.results) for name in ("a", "b")}
        assert min(counts.values()) > 15
