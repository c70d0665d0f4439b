"""What every kind of source offers to the thread that reads it."""

from __future__ import annotations

from typing import Protocol

from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.resize import Image

FPS_MAX = 1000.0


class Source(Protocol):
    """An open source. All of it belongs to one thread."""

    fps: float  # nominal; 0.0 = not known
    width_px: int
    height_px: int
    lag_s: float  # how old the picture was already when `read` returned it

    def read(self) -> Image | None:
        """Wait for the next picture.

        Returns: uint8 BGR, shape (height_px, width_px, 3), the caller's own; None at the end or when told to stop.
        Raises: CameraLostError when nothing more can come; CameraFormatError for one picture that cannot be used.
        """

    def close(self) -> None:
        """Let the camera or file go."""


def is_live(plan: CameraPlan) -> bool:
    """Say whether pictures come by themselves, so that only the newest is worth judging."""
    if plan.source.startswith("synthetic:"):
        return plan.pace == "realtime"
    return not plan.source.startswith(("file:", "folder:"))


def usable_fps(wanted: float, offered: float, otherwise: float) -> float:
    """Choose a rate: what the plan wants, else what the source says if that can be true."""
    if wanted > 0:
        return wanted
    return offered if 0.0 < offered <= FPS_MAX else otherwise
