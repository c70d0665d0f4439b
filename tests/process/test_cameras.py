"""Cameras that come, go, hang and lie, with real servers on loopback and real capture threads."""

from __future__ import annotations

import itertools
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from lenskeep.messages.runner import CameraPlan, CameraState
from lenskeep.runner import camera as camera_module
from lenskeep.runner.camera import CaptureThread
from lenskeep.runner.mailbox import Mailbox, Work
from lenskeep.runner.sources.synthetic import tick_number
from tests.mjpeg_server import GREYS, MjpegServer
from tests.ports import free_port

pytestmark = pytest.mark.alone

RTSP_SERVER = Path(__file__).parents[1] / "rtsp_server.py"
IMPATIENT = {"open_timeout_s": 1.0, "read_timeout_s": 0.5, "frame_age_max_s": 0.4}


class Slot:
    """A camera, and whoever judges: takes frames, looks after the camera as the reporter does."""

    def __init__(self, prepare: Callable[[np.ndarray], object] = lambda image: image.shape, **words: object) -> None:
        self.mailbox = Mailbox()
        self.camera = CaptureThread(CameraPlan(name="cam", **words), self.mailbox, prepare)
        self.taken: list[Work] = []

    def __enter__(self) -> Slot:
        self.camera.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.camera.stop()
        self.camera.join(2)
        assert not self.camera.is_alive()

    def take(self, count: int, timeout_s: float = 10.0) -> list[Work]:
        until_s = time.monotonic() + timeout_s
        taken: list[Work] = []
        while len(taken) < count:
            assert time.monotonic() < until_s, (len(taken), self.camera.state())
            self.camera.watch()
            if (item := self.mailbox.take(0.05)) is not None:
                taken.append(item)
        self.taken += taken
        return taken

    def await_state(self, wanted: str, timeout_s: float = 10.0) -> CameraState:
        until_s = time.monotonic() + timeout_s
        while (state := self.camera.state()).state != wanted:
            assert time.monotonic() < until_s, state
            self.camera.watch()
            if (item := self.mailbox.take(0.01)) is not None:
                self.taken.append(item)
        return state


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera_module, "PAUSE_S_FIRST", 0.05)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 50, (64, 48))
    for number in range(20):
        writer.write(np.full((48, 64, 3), 10 * number, np.uint8))
    writer.release()
    return path


# --- files: every frame counts ------------------------------------------------------------------------------------


def test_a_file_played_once_gives_every_frame_to_a_slow_judge_and_ends(clip: Path) -> None:
    with Slot(source=f"file:{clip}", loop=False, pace="fast") as slot:
        numbers = []
        for _ in range(20):
            time.sleep(0.005)
            numbers.append(slot.take(1)[0].frame.number)
        state = slot.await_state("ended")
    assert numbers == list(range(20))
    assert (state.frames, sum(state.drops.values()), state.reconnects, state.code) == (20, 0, 0, "")


def test_a_looping_file_counts_on(clip: Path) -> None:
    with Slot(source=f"file:{clip}", pace="fast") as slot:
        items = slot.take(65)
    assert [item.frame.number for item in items] == list(range(65))
    assert [round(item.frame.image.mean() / 10) for item in items] == [n % 20 for n in range(65)]


def test_ticks_arrive_one_after_the_other_with_what_was_prepared_of_them() -> None:
    with Slot(lambda image: tick_number(image), source="synthetic:ticks", pace="fast") as slot:
        items = slot.take(2000)
    assert [item.prepared for item in items] == list(range(2000))
    assert [item.frame.number for item in items] == list(range(2000))


def test_frames_that_cannot_be_prepared_still_arrive(caplog: pytest.LogCaptureFixture) -> None:
    def prepare(image: np.ndarray) -> int:
        raise ValueError("no such shape")

    with Slot(prepare, source="synthetic:ticks", pace="fast") as slot:
        items = slot.take(50)
    assert [item.frame.number for item in items] == list(range(50))
    assert {item.prepared for item in items} == {None}
    assert caplog.text.count("no such shape") == 1


# --- live cameras: the newest counts ------------------------------------------------------------------------------


def test_every_live_frame_is_taken_or_counted_as_dropped() -> None:
    with Slot(source="synthetic:ticks", fps=400.0) as slot:
        for _ in range(20):
            slot.take(1)
            time.sleep(0.01)
    while (item := slot.mailbox.take(0.0)) is not None:
        slot.taken.append(item)
    state = slot.camera.state()
    numbers = [item.frame.number for item in slot.taken]
    assert numbers == sorted(set(numbers))
    assert [tick_number(item.frame.image) for item in slot.taken] == numbers
    assert state.drops["superseded"] > 20
    assert state.frames == len(numbers) + sum(state.drops.values())


def test_a_running_camera_tells_its_rate_size_and_age() -> None:
    with Slot(source="synthetic:ticks", fps=100.0, width_px=40, height_px=30) as slot:
        slot.take(60)
        state = slot.camera.state()
    assert (state.state, state.code, state.width_px, state.height_px) == ("running", "", 40, 30)
    assert state.fps == pytest.approx(100, rel=0.2)
    assert 0 <= state.frame_age_s < 0.2


def test_pictures_of_another_size_are_counted_and_not_judged() -> None:
    with MjpegServer() as server, Slot(source=server.url, width_px=640, height_px=480, **IMPATIENT) as slot:
        state = slot.await_state("format")
        while (state := slot.camera.state()).frames < 5:
            assert slot.mailbox.take(0.05) is None
    assert state.code == "LK-2004"
    assert "160x120" in state.message
    assert "640x480" in state.message
    assert state.drops["format"] == state.frames
    assert slot.taken == []


# --- network cameras ----------------------------------------------------------------------------------------------


def test_a_camera_that_is_missing_is_said_and_found_when_it_appears() -> None:
    port = free_port()
    with Slot(source=f"http://127.0.0.1:{port}/video.mjpg", **IMPATIENT) as slot:
        state = slot.await_state("lost")
        assert state.code == "LK-2001"
        assert f"nothing listens on port {port}" in state.message
        assert state.frame_age_s == -1.0
        with MjpegServer(port):
            slot.take(3)
            state = slot.camera.state()
    assert (state.state, state.code, state.message, state.reconnects) == ("running", "", "", 0)


def test_a_camera_that_hangs_is_frozen_then_opened_again_and_counts_on() -> None:
    with MjpegServer() as server, Slot(source=server.url, **IMPATIENT) as slot:
        before = slot.take(5)[-1].frame.number
        server.mode = "hang"
        state = slot.await_state("frozen")
        assert state.code == "LK-2003"
        assert state.frame_age_s >= IMPATIENT["frame_age_max_s"]
        slot.await_state("lost")
        server.mode = "run"
        slot.await_state("running")
        items = slot.take(3)
        state = slot.camera.state()
    numbers = [item.frame.number for item in slot.taken]
    assert items[0].frame.number > before
    assert numbers == sorted(set(numbers))
    assert state.reconnects == 1
    assert server.connections >= 2


def test_pictures_that_the_network_held_back_are_not_judged_as_new() -> None:
    words = {"read_timeout_s": 5.0, "frame_age_max_s": 0.4}
    with MjpegServer() as server, Slot(source=server.url, **words) as slot:
        slot.take(10)
        server.mode = "hold"
        first_held = server.made + 1
        slot.await_state("frozen")
        time.sleep(0.5)
        slot.taken.clear()
        last_held, server.mode = server.made, "run"
        slot.take(10)
        assert slot.camera.state().reconnects == 0
    assert last_held - first_held > 30
    seen = {round(float(item.frame.image.mean())) for item in slot.taken}
    assert not seen & {number % GREYS for number in range(first_held, last_held - 2)}


def test_a_camera_that_closes_is_lost_and_opened_again() -> None:
    with MjpegServer() as server, Slot(source=server.url, **IMPATIENT) as slot:
        slot.take(3)
        server.mode = "close"
        assert slot.await_state("lost").code in ("LK-2001", "LK-2002")
        server.mode = "run"
        slot.await_state("running")
        assert slot.camera.state().reconnects == 1


def test_a_page_instead_of_pictures_is_said() -> None:
    with MjpegServer() as server:
        server.mode = "html"
        with Slot(source=server.url, **IMPATIENT) as slot:
            state = slot.await_state("lost")
    assert state.code == "LK-2001"
    assert "not with a video" in state.message


def test_a_camera_that_never_answers_does_not_hold_up_the_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, MjpegServer() as server:
        silent = Slot(source=f"http://127.0.0.1:{deaf.getsockname()[1]}/", open_timeout_s=5.0)
        with silent, Slot(source=server.url, **IMPATIENT) as slot:
            begun = time.monotonic()
            slot.take(3)
            assert time.monotonic() - begun < 2


def test_stop_is_quick_while_an_opening_and_a_read_hang() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf, MjpegServer() as server:
        opening = Slot(source=f"http://127.0.0.1:{deaf.getsockname()[1]}/", open_timeout_s=30.0)
        reading = Slot(source=server.url, read_timeout_s=30.0, frame_age_max_s=20.0)
        for slot in (opening, reading):
            slot.camera.start()
        reading.take(2)
        server.mode = "hang"
        time.sleep(0.1)
        begun = time.monotonic()
        for slot in (opening, reading):
            slot.camera.stop()
        for slot in (opening, reading):
            slot.camera.join(2)
            assert not slot.camera.is_alive()
        assert time.monotonic() - begun < 2


def test_a_reader_that_is_stuck_is_given_up_and_its_late_pictures_are_thrown_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A driver that never returns cannot be had to order, so the source is one whose reads hang until let go."""
    let_go = threading.Event()
    opened: list[Stuck] = []

    class Stuck:
        fps, width_px, height_px, lag_s = 30.0, 32, 32, 0.0

        def __init__(self, plan: CameraPlan, stop: threading.Event) -> None:
            self.hangs = len(opened) < 2
            opened.append(self)

        def read(self) -> np.ndarray:
            if self.hangs:
                let_go.wait()
                return np.full((32, 32, 3), 255, np.uint8)
            time.sleep(0.02)
            return np.zeros((32, 32, 3), np.uint8)

        def close(self) -> None:
            pass

    monkeypatch.setattr(camera_module, "open_source", Stuck)
    monkeypatch.setattr(camera_module, "GRACE_S", 0.0)
    with Slot(source="v4l2:stuck", open_timeout_s=0.1, read_timeout_s=0.1, frame_age_max_s=0.3) as slot:
        slot.await_state("running")
        slot.take(3)
        let_go.set()
        slot.take(5)
        state = slot.camera.state()
    assert len(opened) == 3
    assert {int(item.frame.image.max()) for item in slot.taken} == {0}
    assert slot.taken[0].frame.number == 0
    assert state.reconnects == 0


# --- RTSP ---------------------------------------------------------------------------------------------------------


class RtspServer:
    """A real server in a process of its own; skips the test where Debian's packages are missing."""

    def __init__(self, port: int = 0) -> None:
        python = shutil.which("python3", path="/usr/bin:/bin")
        if python is None:
            pytest.skip("no /usr/bin/python3")
        self._child = subprocess.Popen(
            [python, str(RTSP_SERVER), str(port)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._child.stdout is not None
        ready, _, _ = select.select([self._child.stdout], [], [], 10)
        line = self._child.stdout.readline() if ready else ""
        if not line.strip().isdecimal():
            self.send(signal.SIGKILL)
            _, said = self._child.communicate()
            pytest.skip(f"no RTSP server here (gir1.2-gst-rtsp-server-1.0 and plugins): {said.strip()[-200:]}")
        self.port = int(line)
        self.url = f"rtsp://user:s3cret@127.0.0.1:{self.port}/cam"

    def send(self, number: signal.Signals) -> None:
        self._child.send_signal(number)

    def __enter__(self) -> RtspServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.send(signal.SIGKILL)
        self._child.communicate()


def test_an_rtsp_camera_starts_with_fresh_pictures_and_survives_its_death() -> None:
    words = {"open_timeout_s": 4.0, "read_timeout_s": 0.5, "frame_age_max_s": 0.5}
    with RtspServer() as server, Slot(source=server.url, **words) as slot:
        items = slot.take(15)
        gaps_ms = np.diff([item.frame.captured_ns for item in items]) / 1e6
        assert np.median(gaps_ms) > 20, "a rush of buffered pictures was handed over as new"
        server.send(signal.SIGKILL)
        state = slot.await_state("lost")
        assert state.code in ("LK-2001", "LK-2002")
        assert "s3cret" not in state.message
        with RtspServer(server.port):
            slot.await_state("running")
            slot.take(5)
            assert slot.camera.state().reconnects == 1


def test_an_rtsp_camera_that_stands_still_gives_no_old_picture_as_new() -> None:
    words = {"open_timeout_s": 4.0, "read_timeout_s": 3.0, "frame_age_max_s": 0.6}
    with RtspServer() as server, Slot(source=server.url, **words) as slot:
        slot.take(10)
        server.send(signal.SIGSTOP)
        assert slot.await_state("frozen").code == "LK-2003"
        time.sleep(0.5)
        before = slot.camera.state()
        server.send(signal.SIGCONT)
        slot.await_state("running")
        slot.take(10)
        state = slot.camera.state()
    assert state.reconnects == before.reconnects == 0
    assert state.drops["stale"] + state.drops["superseded"] > before.drops["superseded"]
    captured_ns = [item.frame.captured_ns for item in slot.taken]
    assert all(later - earlier > 0 for earlier, later in itertools.pairwise(captured_ns))


# --- the probe ----------------------------------------------------------------------------------------------------


def probed(*words: str, timeout_s: float = 20.0) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "lenskeep.runner.probe", *words], capture_output=True, text=True, timeout=timeout_s
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_probe_measures_a_camera_and_keeps_a_picture(tmp_path: Path) -> None:
    out = tmp_path / "shot.jpg"
    plan = json.dumps({"name": "cam", "source": "synthetic:caps", "fps": 50})
    answer = probed("probe", plan, "--seconds", "0.6", "--snapshot", str(out))
    assert (answer["ok"], answer["code"], answer["width_px"], answer["height_px"]) == (True, "", 640, 480)
    assert answer["fps"] == pytest.approx(50, rel=0.2)
    assert answer["sharpness"] > 50
    assert 0.1 < answer["brightness"] < 0.9
    assert answer["first_frame_ms"] > 0
    assert cv2.imread(str(out)).shape == (480, 640, 3)


def test_the_probe_of_a_camera_that_hangs_ends_and_says_so() -> None:
    with MjpegServer() as server:
        threading.Timer(0.7, setattr, [server, "mode", "hang"]).start()
        plan = {"name": "cam", "source": server.url, "open_timeout_s": 1, "read_timeout_s": 0.5}
        begun = time.monotonic()
        answer = probed("probe", json.dumps(plan), "--seconds", "2")
        assert time.monotonic() - begun < 6
    assert answer["ok"] is False
    assert answer["code"] in ("LK-2002", "LK-2003", "LK-2001")


def test_the_probe_lists_what_is_plugged_in() -> None:
    assert isinstance(probed("list")["devices"], list)


def test_a_process_ends_at_once_though_its_camera_hangs(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import sys, time\n"
        "from lenskeep.messages.runner import CameraPlan\n"
        "from lenskeep.runner.camera import CaptureThread\n"
        "from lenskeep.runner.mailbox import Mailbox\n"
        "box = Mailbox()\n"
        "plan = CameraPlan(name='cam', source=sys.argv[1], read_timeout_s=30, frame_age_max_s=20)\n"
        "camera = CaptureThread(plan, box, lambda image: None)\n"
        "camera.start()\n"
        "assert box.take(10)\n"
        "print('took one', flush=True)\n"
        "sys.stdin.read()\n"
        "camera.stop(); camera.join()\n"
    )
    with MjpegServer() as server:
        child = subprocess.Popen(
            [sys.executable, str(script), server.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == "took one\n"
        server.mode = "hang"
        time.sleep(0.1)
        begun = time.monotonic()
        child.stdin.close()
        assert child.wait(5) == 0
        assert time.monotonic() - begun < 2
        child.stdout.close()


@pytest.fixture(autouse=True)
def no_thread_is_left_running(request: pytest.FixtureRequest) -> Iterator[None]:
    """Capture threads end with their slot; only given-up readers may stay until their driver lets them go."""
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("camera-")]
    assert left == [], f"{request.node.name} left {left} in process {os.getpid()}"
