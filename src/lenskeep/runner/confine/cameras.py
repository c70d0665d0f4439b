"""What cameras need from outside their process: a folder, a device, a port. Nothing is opened here.

A folder is granted as it stands at the start. One that is emptied by being removed and made anew is another folder to
the kernel, and one that is mounted later was not there; so the folder around it is granted too. Where that would open
more than pictures, the place is watched instead, and the process starts anew once it is another one. The list of
name servers is replaced as well: on machines that keep it in `/etc` itself, a slot whose cameras have names reads that.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from lenskeep.confine import landlock
from lenskeep.confine.confine import Network
from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.sources.address import PORTS, endpoint

_PORT_OF_NAMES = 53
_NAME_SERVERS = Path("/etc/resolv.conf")
_NAMES = ("/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf")
_VIDEO = Path("/sys/class/video4linux")


def network_of(cameras: Iterable[CameraPlan]) -> Network:
    """Say what network the cameras need; none for files, folders, devices and made scenes."""
    ports: set[int] = set()
    names: set[str] = set()
    for camera in cameras:
        if camera.source.partition(":")[0] in PORTS:
            try:
                host, port = endpoint(camera.source)
            except ValueError:
                continue  # it will not open either, and says so
            ports.add(port)
            if not _is_number(host):
                names.add(host.lower())
    if not ports:
        return Network()
    return Network(
        ports=frozenset(ports | ({_PORT_OF_NAMES} if names else set())), names=bool(names),
        neighbours=any(name.endswith(".local") for name in names),
        datagrams="udp" in os.environ.get("OPENCV_FFMPEG_CAPTURE_OPTIONS", ""),
    )  # fmt: skip


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def paths_of(cameras: Iterable[CameraPlan], private: Iterable[Path]) -> dict[Path, int]:
    """Say which files and folders the cameras need, with the rights to them.

    Args:
        private: places that no folder around a source may hold.
    """
    paths: dict[Path, int] = {}
    for camera in cameras:
        if camera.source.startswith("v4l2:"):
            # a device file is made anew when the camera is plugged in again, so the folder has to do
            paths[Path("/dev")] = landlock.READ | landlock.WRITE | landlock.DEVICE_CONTROL
            paths[_VIDEO] = landlock.READ
        elif place := _place_of(camera):
            folder = _folder_around(place, private)
            paths |= dict.fromkeys([place, folder] if folder else [place], landlock.READ)
    if network_of(cameras).names:
        paths |= dict.fromkeys(_names(), landlock.READ)
    return paths


def _names() -> list[Path]:
    """Return what names are looked up with; the list of servers is replaced whenever the network changes."""
    return [_NAME_SERVERS.resolve().parent, *map(Path, _NAMES)]


def _place_of(camera: CameraPlan) -> Path | None:
    """Return where a camera's pictures lie, when they are files."""
    kind, _, rest = camera.source.partition(":")
    return Path(os.path.realpath(rest.removeprefix("//"))) if kind in ("file", "folder") else None


def _folder_around(place: Path, private: Iterable[Path]) -> Path | None:
    """Return the nearest folder that holds a place, unless it holds something private as well."""
    folder = next(folder for folder in place.parents if folder.is_dir())
    closed = [Path(os.path.realpath(other)) for other in private]
    return None if folder == Path("/") or any(other.is_relative_to(folder) for other in closed) else folder


class LonePlaces:
    """The places that were granted without the folder around them, as they stood at the start."""

    def __init__(self, cameras: Iterable[CameraPlan], private: Iterable[Path]) -> None:
        private = list(private)
        places = [place for camera in cameras if (place := _place_of(camera))]
        self._granted = {place: _identity(place) for place in places if _folder_around(place, private) is None}

    def replaced(self) -> Path | None:
        """Return a place that is another one now, and so out of this process's reach. Cost: 2 us for each."""
        for place, granted in self._granted.items():
            if _identity(place) not in (granted, None):
                return place
        return None


def _identity(place: Path) -> tuple[int, int] | None:
    try:
        found = place.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
