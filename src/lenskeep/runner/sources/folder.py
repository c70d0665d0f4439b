"""A folder of pictures: each once or looping in the order of their names, or watched for new ones.

A watched folder is one that does not loop. What is in it comes first, then whatever appears by a new name or by being
renamed. A file is taken when it has not grown between two looks and ends as its format ends, so a picture that is still
being written is not judged by halves; one that never becomes whole is counted as unusable.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from pathlib import Path
from time import monotonic, time

import cv2
import numpy as np

from lenskeep.errors import CameraFormatError, CameraLostError, CameraMissingError
from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.resize import Image
from lenskeep.runner.sources.pace import Pace
from lenskeep.runner.sources.source import usable_fps

FPS = 1.0
LOOK_S = 0.1
UNFINISHED_S_MAX = 3.0
COARSE_CLOCK_S = 3.0  # FAT stamps a folder to two seconds: one that changed just now may change again unseen
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
_ENDINGS = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}
_TAIL_BYTES = 4096  # cameras append notes of their own behind a JPEG

_Stamp = tuple[int, int, int]  # size, time of change, inode


def natural_key(name: str) -> list[tuple[int, str]]:
    """Order names as people do: frame2 before frame10."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", name)]


class FolderSource:
    """The pictures of a folder that loops."""

    lag_s = 0.0

    def __init__(self, plan: CameraPlan, stop: threading.Event) -> None:
        self._camera = plan.name
        self._folder = Path(plan.source.removeprefix("folder:").removeprefix("//"))
        if not self._folder.is_dir():
            raise CameraMissingError(f"Camera {plan.name}: there is no folder {self._folder}.")
        self.fps = usable_fps(plan.fps, 0.0, FPS)
        self.width_px, self.height_px = plan.width_px, plan.height_px
        self._stop = stop
        self._waiting: deque[Path] = deque()
        self._pace = Pace(self.fps if self._paced(plan) else 0.0, stop)
        self._usable = False  # some picture of this round was
        self._fill()

    def read(self) -> Image | None:
        if not self._waiting:
            self._begin_again()
        return self._decoded(self._waiting.popleft()) if self._pace.wait() else None

    def close(self) -> None:
        """Nothing is held."""

    def _paced(self, plan: CameraPlan) -> bool:
        return plan.pace == "realtime"

    def _begin_again(self) -> None:
        if not self._usable:
            raise CameraLostError(f"Camera {self._camera}: no picture in {self._folder} can be read.")
        self._usable = False
        self._fill()

    def _fill(self) -> None:
        with self._scan() as entries:
            paths = [Path(entry.path) for entry in entries if is_picture(entry)]
        self._waiting.extend(sorted(paths, key=lambda path: natural_key(path.name)))
        if not self._waiting:
            raise CameraMissingError(f"Camera {self._camera}: there are no pictures in {self._folder}.")

    def _scan(self) -> os._ScandirIterator[str]:
        try:
            return os.scandir(str(self._folder))
        except OSError as error:
            raise CameraLostError(f"Camera {self._camera}: {self._folder} cannot be read any more.") from error

    def _decoded(self, path: Path) -> Image:
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        image = _decode(data)
        if image is None:
            raise CameraFormatError(f"Camera {self._camera}: {path.name} is not a picture that can be read.")
        self._usable = True
        return image


class WatchedFolderSource(FolderSource):
    """The pictures of a folder as they come."""

    def __init__(self, plan: CameraPlan, stop: threading.Event) -> None:
        self._taken: dict[str, _Stamp] = {}
        self._growing: dict[str, tuple[_Stamp, float]] = {}  # as last seen, and when it last changed
        self._folder_ns = -1
        super().__init__(plan, stop)

    def read(self) -> Image | None:
        while not self._waiting:
            if self._stop.wait(LOOK_S):
                return None
            self._fill()
        return super().read()

    def _paced(self, plan: CameraPlan) -> bool:
        return plan.pace == "realtime" and plan.fps > 0

    def _fill(self) -> None:
        """Look for pictures that are whole. Cost: one stat while nothing changes, else one of every file."""
        if not self._changed():
            return
        now_s = monotonic()
        seen: dict[str, _Stamp] = {}
        with self._scan() as entries:
            for entry in entries:
                if is_picture(entry):
                    seen[entry.name] = _stamp(entry)
        self._taken = {name: stamp for name, stamp in self._taken.items() if name in seen}
        self._growing = {name: self._seen_again(name, seen[name], now_s) for name in seen if self._is_new(name, seen)}
        for name in sorted(self._growing, key=natural_key):
            if self._is_whole(name, now_s):
                self._taken[name] = seen[name]
                del self._growing[name]
                self._waiting.append(self._folder / name)

    def _changed(self) -> bool:
        try:
            changed_ns = self._folder.stat().st_mtime_ns
        except OSError as error:
            raise CameraLostError(f"Camera {self._camera}: {self._folder} cannot be read any more.") from error
        before_ns, self._folder_ns = self._folder_ns, changed_ns
        return bool(self._growing) or changed_ns != before_ns or time() - changed_ns / 1e9 < COARSE_CLOCK_S

    def _is_new(self, name: str, seen: dict[str, _Stamp]) -> bool:
        return self._taken.get(name) != seen[name]

    def _seen_again(self, name: str, stamp: _Stamp, now_s: float) -> tuple[_Stamp, float]:
        before = self._growing.get(name)
        return before if before is not None and before[0] == stamp else (stamp, now_s)

    def _is_whole(self, name: str, now_s: float) -> bool:
        (size, _, _), since_s = self._growing[name]
        quiet_s = now_s - since_s
        if quiet_s < LOOK_S / 2:
            return False
        return quiet_s > UNFINISHED_S_MAX or (size > 0 and _ends_well(self._folder / name))


def is_picture(entry: os.DirEntry[str]) -> bool:
    """Say whether a folder's entry is a picture; hidden names are how programs write theirs meanwhile."""
    return not entry.name.startswith(".") and entry.name.lower().endswith(PICTURES)


def _stamp(entry: os.DirEntry[str]) -> _Stamp:
    try:
        stat = entry.stat()
    except OSError:
        return (0, 0, 0)
    return (stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _ends_well(path: Path) -> bool:
    ending = _ENDINGS.get(path.suffix.lower())
    if ending is None:
        return True
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return ending in file.read()
    except OSError:
        return False


def _decode(data: bytes) -> Image | None:
    if not data:
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # larger than OpenCV's own limit
        return None
    return image
