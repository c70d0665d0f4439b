"""Each kind of source, at the door that the capture thread uses."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from lenskeep.errors import CameraFormatError, CameraLostError, CameraMissingError
from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.sources.address import redacted
from lenskeep.runner.sources.devices import device_path, list_v4l2
from lenskeep.runner.sources.diagnosis import why_no_stream
from lenskeep.runner.sources.folder import natural_key
from lenskeep.runner.sources.opening import open_source
from lenskeep.runner.sources.pace import Pace
from lenskeep.runner.sources.source import is_live
from lenskeep.runner.sources.streamclock import StreamClock
from lenskeep.runner.sources.synthetic import tick_image, tick_number
from tests.mjpeg_server import MjpegServer

FRAMES = 12


def plan(source: str, **words: object) -> CameraPlan:
    return CameraPlan(name="cam", source=source, **{"pace": "fast", **words})


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames at 50 fps; frame n is grey 20 n."""
    path = tmp_path_factory.mktemp("clip") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 50, (64, 48))
    for number in range(FRAMES):
        writer.write(np.full((48, 64, 3), 20 * number, np.uint8))
    writer.release()
    return path


def write_picture(path: Path, grey: int = 100) -> bytes:
    taken, data = cv2.imencode(path.suffix, np.full((24, 32, 3), grey, np.uint8))
    assert taken
    path.write_bytes(data.tobytes())
    return data.tobytes()


def greys(images: list[np.ndarray]) -> list[int]:
    return [round(float(image.mean()) / 20) for image in images]


# --- files --------------------------------------------------------------------------------------------------------


def test_a_file_gives_each_frame_once_and_then_ends(clip: Path) -> None:
    source = open_source(plan(f"file:{clip}", loop=False))
    assert (source.width_px, source.height_px, source.fps) == (64, 48, 50.0)
    assert greys([source.read() for _ in range(FRAMES)]) == list(range(FRAMES))
    assert source.read() is None
    assert source.read() is None
    source.close()


def test_a_file_that_loops_gives_every_frame_in_every_round(clip: Path) -> None:
    source = open_source(plan(f"file:{clip}", loop=True))
    assert greys([source.read() for _ in range(3 * FRAMES)]) == 3 * list(range(FRAMES))
    source.close()


def test_frames_belong_to_whoever_read_them(clip: Path) -> None:
    source = open_source(plan(f"file:{clip}"))
    images = [source.read() for _ in range(FRAMES)]
    assert greys(images) == list(range(FRAMES))
    assert all(image.flags.writeable and image.dtype == np.uint8 for image in images)


@pytest.mark.parametrize("fps", [0.0, 100.0], ids=["its own rate", "the plan's rate"])
def test_a_file_in_real_time_keeps_its_rate(clip: Path, fps: float) -> None:
    took = []
    for _ in range(3):  # never too fast, and at its rate once when the machine lets us
        source = open_source(plan(f"file:{clip}", pace="realtime", fps=fps))
        begun = time.monotonic()
        for _ in range(21):
            source.read()
        took.append((time.monotonic() - begun) * (fps or 50.0) / 20)
        if took[-1] < 2:
            break
    assert min(took) > 0.95
    assert took[-1] < 2


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.write_bytes(b"not a video" * 100), "cannot be read as a video"),
    ],
    ids=["missing", "no video"],
)
def test_a_file_that_cannot_be_played_is_named(tmp_path: Path, make, words: str) -> None:
    path = tmp_path / "clip.avi"
    make(path)
    with pytest.raises(CameraMissingError, match=words) as raised:
        open_source(plan(f"file:{path}"))
    assert str(path) in str(raised.value)


def test_a_looping_file_without_a_picture_is_lost_instead_of_spinning(tmp_path: Path, clip: Path) -> None:
    header = clip.read_bytes()[:5800]
    path = tmp_path / "cut.avi"
    path.write_bytes(header)
    with pytest.raises((CameraLostError, CameraMissingError)):
        source = open_source(plan(f"file:{path}"))
        for _ in range(2 * FRAMES):
            source.read()


# --- time ---------------------------------------------------------------------------------------------------------


def test_pace_does_not_drift_when_work_takes_part_of_the_time() -> None:
    took = []
    for _ in range(5):  # a drift is there every time, a busy moment is not
        pace = Pace(100.0, threading.Event())
        pace.wait()
        begun = time.monotonic()
        for number in range(30):
            time.sleep(0.001 * (number % 7))
            pace.wait()
        took.append(time.monotonic() - begun)
        if took[-1] == pytest.approx(0.30, abs=0.05):
            return
    raise AssertionError(took)


def test_pace_ends_at_once_when_told_to_stop() -> None:
    stop = threading.Event()
    pace = Pace(0.1, stop)
    pace.wait()
    threading.Timer(0.05, stop.set).start()
    begun = time.monotonic()
    assert not pace.wait()
    assert time.monotonic() - begun < 5


def test_the_stream_clock_tells_old_pictures_that_come_in_a_rush() -> None:
    clock = StreamClock()
    steady = [clock.lag_s(100.0 + n * 0.04 + (n % 3) * 0.01, 5.0 + n * 0.04) for n in range(50)]
    assert max(steady) < 0.03
    held_up = [clock.lag_s(105.0 + n * 0.001, 7.0 + n * 0.04) for n in range(70)]  # 3 s of pictures at once
    assert held_up[0] == pytest.approx(3.0, abs=0.03)
    assert held_up[-1] == pytest.approx(3.0 - 69 * 0.039, abs=0.03)
    assert clock.lag_s(108.0, 0.0) == held_up[-1], "a picture without a stamp lags like the one before it"


def test_the_stream_clock_follows_a_drifting_camera_but_not_a_growing_delay() -> None:
    drifting, delayed = StreamClock(), StreamClock()
    for minute in range(600):
        lag_s = drifting.lag_s(minute * 60.0, 1.0 + minute * 60.0 * (1 - 100e-6))  # 100 ppm for ten hours
    assert lag_s < 0.01
    for minute in range(10):
        lag_s = delayed.lag_s(minute * 60.0, 1.0 + minute * 60.0 * 0.95)
    assert lag_s > 20


# --- folders ------------------------------------------------------------------------------------------------------


def test_names_are_ordered_as_people_order_them() -> None:
    names = ["b2.png", "frame10.png", "frame2.png", "a.png", "frame1b.png", "1.png", "10.png", "2.png"]
    assert sorted(names, key=natural_key) == [
        "1.png", "2.png", "10.png", "a.png", "b2.png", "frame1b.png", "frame2.png", "frame10.png"
    ]  # fmt: skip


def test_a_folder_loops_in_the_order_of_its_names(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_picture(tmp_path / f"p{number}.png", 20 * number)
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / ".hidden.png").write_bytes(b"half")
    source = open_source(plan(f"folder:{tmp_path}"))
    assert greys([source.read() for _ in range(6)]) == [1, 2, 10, 1, 2, 10]


def test_a_picture_that_cannot_be_read_is_refused_and_the_next_one_comes(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", 20)
    (tmp_path / "b.png").write_bytes(b"no picture")
    write_picture(tmp_path / "c.png", 40)
    source = open_source(plan(f"folder:{tmp_path}"))
    assert greys([source.read()]) == [1]
    with pytest.raises(CameraFormatError, match=r"b\.png"):
        source.read()
    assert greys([source.read()]) == [2]


def test_a_folder_of_nothing_but_damage_is_lost_instead_of_spinning(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no picture")
    source = open_source(plan(f"folder:{tmp_path}"))
    with pytest.raises(CameraFormatError):
        source.read()
    with pytest.raises(CameraLostError):
        source.read()


def test_a_missing_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(CameraMissingError, match="there is no folder"):
        open_source(plan(f"folder:{tmp_path}/none"))
    with pytest.raises(CameraMissingError, match="there are no pictures"):
        open_source(plan(f"folder:{tmp_path}"))


class Watch:
    """A watched folder, read in the background."""

    def __init__(self, folder: Path) -> None:
        self.stop = threading.Event()
        self.seen: list[int | str] = []
        self._came = threading.Condition()
        self._source = open_source(plan(f"folder:{folder}", loop=False), self.stop)
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self.stop.is_set():
            try:
                image = self._source.read()
            except CameraFormatError as fault:
                image = str(fault)
            with self._came:
                if image is not None:
                    self.seen.append(image if isinstance(image, str) else greys([image])[0])
                self._came.notify()

    def await_count(self, count: int, timeout_s: float = 5.0) -> None:
        with self._came:
            assert self._came.wait_for(lambda: len(self.seen) >= count, timeout_s), self.seen

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(1)
        assert not self._thread.is_alive()


def test_a_watched_folder_takes_what_is_there_and_what_is_renamed_into_it_once(tmp_path: Path) -> None:
    for number in (2, 1):
        write_picture(tmp_path / f"p{number}.jpg", 20 * number)
    with Watch(tmp_path) as watch:
        watch.await_count(2)
        write_picture(tmp_path / "part.tmp.jpg.png", 60)
        (tmp_path / "part.tmp.jpg.png").rename(tmp_path / "p3.png")
        watch.await_count(3)
        write_picture(tmp_path / ".p4.jpg", 80)
        (tmp_path / ".p4.jpg").rename(tmp_path / "p4.jpg")
        watch.await_count(4)
        (tmp_path / "p1.jpg").unlink()
        write_picture(tmp_path / ".new.jpg", 100)
        (tmp_path / ".new.jpg").rename(tmp_path / "p1.jpg")
        watch.await_count(5)
        time.sleep(0.25)
    assert watch.seen[:5] == [1, 2, 3, 4, 5]
    assert len(watch.seen) == 5


def test_a_watched_folder_does_not_take_a_picture_that_is_still_written(tmp_path: Path) -> None:
    whole = write_picture(tmp_path / ".whole.jpg", 60)
    with Watch(tmp_path) as watch, (tmp_path / "slow.jpg").open("wb") as slow:
        for part in (whole[:100], whole[100:200], whole[200:-2]):
            slow.write(part)
            slow.flush()
            time.sleep(0.3)
        assert watch.seen == []
        slow.write(whole[-2:])
        slow.flush()
        watch.await_count(1)
        assert watch.seen == [3]


def test_a_picture_that_never_becomes_whole_is_refused_by_name(tmp_path: Path) -> None:
    with Watch(tmp_path) as watch:
        (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
        watch.await_count(1, timeout_s=6.0)
    assert "torn.png" in str(watch.seen[0])


# --- made scenes --------------------------------------------------------------------------------------------------


def test_ticks_tell_their_number_after_any_resizing() -> None:
    for number in (0, 1, 255, 256, 65536 + 77, (1 << 24) - 1):
        image = tick_image(number, 32, 24)
        for kernel in (cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_CUBIC):
            assert tick_number(cv2.resize(image, (17, 50), interpolation=kernel)) == number


def test_ticks_count_from_zero_without_a_gap() -> None:
    source = open_source(plan("synthetic:ticks"))
    assert [tick_number(source.read()) for _ in range(300)] == list(range(300))


@pytest.mark.parametrize("scene", ["caps", "belt", "noise"])
def test_made_scenes_have_the_planned_size_and_move(scene: str) -> None:
    source = open_source(plan(f"synthetic:{scene}", width_px=320, height_px=240))
    first, second = source.read(), source.read()
    assert first.shape == second.shape == (240, 320, 3)
    assert first.dtype == np.uint8
    assert not np.array_equal(first, second)


def test_an_unknown_scene_is_refused_with_the_known_ones() -> None:
    with pytest.raises(CameraMissingError, match="caps, belt, noise, ticks"):
        open_source(plan("synthetic:rain"))


# --- addresses and devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("rtsp://admin:s3cret@10.0.0.7:554/stream1", "rtsp://10.0.0.7:554/stream1"),
        ("rtsp://admin:p@ss/w?rd#1@10.0.0.7/stream1", "rtsp://10.0.0.7/stream1"),
        ("http://10.0.0.7/video?user=admin&pwd=s3cret", "http://10.0.0.7/video?…"),
        ("http://10.0.0.7/video.mjpg", "http://10.0.0.7/video.mjpg"),
        ("file:/data/a@b.avi", "file:/data/a@b.avi"),
    ],
)
def test_an_address_is_shown_without_its_secrets(source: str, shown: str) -> None:
    assert redacted(source) == shown


@pytest.mark.parametrize(
    ("source", "pace", "live"),
    [
        ("v4l2:/dev/video0", "realtime", True),
        ("rtsp://x/y", "fast", True),
        ("http://x/y", "realtime", True),
        ("file:/x.avi", "realtime", False),
        ("folder:/x", "realtime", False),
        ("synthetic:caps", "realtime", True),
        ("synthetic:ticks", "fast", False),
    ],
)
def test_cameras_are_live_and_files_are_not(source: str, pace: str, live: bool) -> None:
    assert is_live(plan(source, pace=pace)) is live


def one_answer(answer: bytes) -> int:
    """Listen, take one connection, answer it, and return the port."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = server.accept()
        with connection, server:
            connection.recv(1024)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1]


@pytest.mark.parametrize(
    ("scheme", "answer", "words"),
    [
        ("rtsp", b"RTSP/1.0 401 Unauthorized\r\n\r\n", "user name and password"),
        ("rtsp", b"RTSP/1.0 404 Not Found\r\n\r\n", "no stream at this path"),
        ("http", b"HTTP/1.1 403 Forbidden\r\n\r\n", "refuses this user"),
        ("http", b"HTTP/1.1 200 OK\r\n\r\n<html>", "not with a video"),
        ("http", b"\0\xff\xfe binary", "not with a video"),
    ],
)
def test_why_a_network_camera_does_not_open_is_said_in_words(scheme: str, answer: bytes, words: str) -> None:
    assert words in why_no_stream(f"{scheme}://u:secret@127.0.0.1:{one_answer(answer)}/cam", 1.0)


def test_a_port_where_nobody_listens_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert f"nothing listens on port {port}" in why_no_stream(f"rtsp://127.0.0.1:{port}/cam", 1.0)


def test_an_address_that_is_none_is_said() -> None:
    assert why_no_stream("http://127.0.0.1:notaport/", 1.0) == "is not an address"


def test_a_password_never_appears_when_a_camera_cannot_be_opened(capfd: pytest.CaptureFixture[str]) -> None:
    for scheme in ("rtsp", "http"):
        port = one_answer(b"HTTP/1.0 401 Unauthorized\r\n\r\n")
        with pytest.raises(CameraMissingError) as raised:
            open_source(plan(f"{scheme}://admin:s3cret@127.0.0.1:{port}/cam?key=s3cret", open_timeout_s=1.0))
        assert "s3cret" not in str(raised.value)
    heard = capfd.readouterr()
    assert "s3cret" not in heard.out + heard.err


def test_a_page_instead_of_a_stream_is_said() -> None:
    with MjpegServer() as camera:
        camera.mode = "html"
        with pytest.raises(CameraMissingError, match="not with a video"):
            open_source(plan(camera.url, open_timeout_s=2.0))


def test_a_source_that_is_not_known_is_refused() -> None:
    with pytest.raises(CameraMissingError, match="not a kind of source"):
        open_source(plan("gopher://x"))


def test_a_device_that_is_not_plugged_in_is_named() -> None:
    with pytest.raises(CameraMissingError, match="there is no /dev/v4l/by-id/usb-none"):
        open_source(plan("v4l2:usb-none"))


def test_a_device_that_is_no_camera_is_named(tmp_path: Path) -> None:
    (tmp_path / "video9").write_bytes(b"")
    with pytest.raises(CameraMissingError, match="does not open"):
        open_source(plan(f"v4l2:{tmp_path}/video9"))


def test_a_camera_is_named_by_path_by_its_lasting_name_or_by_number() -> None:
    assert device_path("v4l2:/dev/video3") == Path("/dev/video3")
    assert device_path("v4l2:usb-acme-index0") == Path("/dev/v4l/by-id/usb-acme-index0")
    assert device_path("v4l2:3") == Path("/dev/video3")


def test_plugged_in_cameras_are_listed_with_their_lasting_names(tmp_path: Path) -> None:
    sys, dev = tmp_path / "sys", tmp_path / "dev"
    (dev / "v4l/by-id").mkdir(parents=True)
    for number, name in ((10, "Acme 5 MP"), (2, "Built-in")):
        (sys / f"video{number}").mkdir(parents=True)
        (sys / f"video{number}" / "name").write_text(f"{name}\n")
    (dev / "v4l/by-id/usb-acme-index0").symlink_to("../../video10")
    devices = list_v4l2(sys, dev)
    assert [(device["path"], device["name"]) for device in devices] == [
        (f"{dev}/video2", "Built-in"), (f"{dev}/video10", "Acme 5 MP")
    ]  # fmt: skip
    assert devices[1]["source"] == f"v4l2:{dev}/v4l/by-id/usb-acme-index0"
    assert devices[0]["source"] == f"v4l2:{dev}/video2"
    assert list_v4l2(tmp_path / "none", dev) == []
