"""The cameras that the operating system knows, read from its files; nothing is opened for long and no OpenCV needed."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Any

SYS = Path("/sys/class/video4linux")
DEV = Path("/dev")
BY_ID = Path("v4l/by-id")
VIDIOC_QUERYCAP = 0x80685600
_CAPABILITY = struct.Struct("=16s32s32sIII12x")  # driver, card, bus, version, capabilities, of this very node
_CAPTURE = 0x1 | 0x1000  # single-planar and multi-planar


def device_path(source: str, dev: Path = DEV) -> Path:
    """Return the device file that a `v4l2:` source names: a path, a by-id name or a number."""
    name = source.removeprefix("v4l2:")
    if name.isdecimal():
        return dev / f"video{name}"
    return Path(name) if "/" in name else dev / BY_ID / name


def list_v4l2(sys: Path = SYS, dev: Path = DEV) -> list[dict[str, Any]]:
    """List video devices in the order of their numbers.

    Returns: `path`, `name`, `by_id` (the address to configure; empty for a built-in camera without one), `source` (the
        line for the configuration), `driver`, `bus`, and `capture`: whether the node gives pictures at all.
    """
    by_id = _names(dev / BY_ID)
    nodes = sorted(sys.glob("video*"), key=lambda node: int(node.name.removeprefix("video") or 0))
    return [_described(node, dev / node.name, by_id.get(node.name, "")) for node in nodes]


def _names(folder: Path) -> dict[str, str]:
    """Map each device to its lasting name."""
    if not folder.is_dir():
        return {}
    return {Path(os.path.realpath(link)).name: str(link) for link in sorted(folder.iterdir(), reverse=True)}


def _described(node: Path, path: Path, by_id: str) -> dict[str, Any]:
    driver, bus, capture = _capability(path)
    name = node / "name"
    return {
        "path": str(path),
        "name": name.read_text(encoding="utf-8", errors="replace").strip() if name.is_file() else "",
        "by_id": by_id,
        "source": f"v4l2:{by_id or path}",
        "driver": driver,
        "bus": bus,
        "capture": capture,
    }


def _capability(path: Path) -> tuple[str, str, bool]:
    """Ask a node what it is. A node that may not be opened counts as a camera: the name tells the person more."""
    buffer = bytearray(_CAPABILITY.size)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return "", "", True
    try:
        fcntl.ioctl(descriptor, VIDIOC_QUERYCAP, buffer)
    except OSError:
        return "", "", False
    finally:
        os.close(descriptor)
    driver, _, bus, _, _, of_node = _CAPABILITY.unpack(buffer)
    return _text(driver), _text(bus), bool(of_node & _CAPTURE)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "replace")
