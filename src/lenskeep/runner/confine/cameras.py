"""What cameras need from outside their process: a folder, a device, a port. Nothing is opened here.

A folder is granted as it stands at the start. One that is emptied by being removed and made anew is another folder to
the kernel, and one that is mounted later was not there; so the folder around it is granted too, unless that would
open more than pictures. Names of cameras are looked up in files that are replaced as well, all over `/etc`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.confine import landlock
from lenskeep.runner.sources.address import PORTS, endpoint, redacted

log = logging.getLogger(__name__)

_PORT_OF_NAMES = 53
_NAMES = Path("/etc/resolv.conf")
_VIDEO = Path("/sys/class/video4linux")


@dataclass(frozen=True, slots=True)
class Network:
    """Whom a process may dial."""

    ports: frozenset[int] = frozenset()
    names: bool = False  # looks up names, by datagrams
    neighbours: bool = False  # names ending in .local: a local service is asked for those
    datagrams: bool = False  # pictures come as datagrams


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
    closed = [Path(os.path.realpath(place)) for place in private]
    paths: dict[Path, int] = {}
    for camera in cameras:
        kind, _, rest = camera.source.partition(":")
        if kind == "v4l2":
            # a device file is made anew when the camera is plugged in again, so the folder has to do
            paths[Path("/dev")] = landlock.READ | landlock.WRITE | landlock.DEVICE_CONTROL
            paths[_VIDEO] = landlock.READ
        elif kind in ("file", "folder"):
            found = _around(Path(os.path.realpath(rest.removeprefix("//"))), closed)
            paths |= dict.fromkeys(found, landlock.READ)
            if not any(path.exists() for path in found):
                log.warning("camera %s: %s can be read after a new start only", camera.name, redacted(camera.source))
    if network_of(cameras).names:
        paths |= dict.fromkeys((_NAMES.parent, _NAMES.resolve().parent), landlock.READ)
    return paths


def _around(place: Path, closed: list[Path]) -> list[Path]:
    """Return a place and the nearest folder that holds it, unless that holds a closed place as well."""
    folder = next(folder for folder in place.parents if folder.is_dir())
    if folder == Path("/") or any(other.is_relative_to(folder) for other in closed):
        return [place]
    return [place, folder]
