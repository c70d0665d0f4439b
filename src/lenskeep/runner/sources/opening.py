"""Opens whatever a camera's plan names."""

from __future__ import annotations

import threading

from lenskeep.errors import CameraMissingError
from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.sources.address import redacted
from lenskeep.runner.sources.folder import FolderSource, WatchedFolderSource
from lenskeep.runner.sources.settings import settle
from lenskeep.runner.sources.source import Source
from lenskeep.runner.sources.stream import StreamSource
from lenskeep.runner.sources.synthetic import SyntheticSource
from lenskeep.runner.sources.v4l2 import V4l2Source
from lenskeep.runner.sources.video import VideoSource


def open_source(plan: CameraPlan, stop: threading.Event | None = None) -> Source:
    """Open the source of a plan.

    Args:
        stop: ends the waiting of sources that wait by themselves; a read inside a camera's driver cannot be ended.
    Raises: CameraMissingError, in words for the person at the device.
    Cost: up to the plan's open_timeout_s for a network that does not answer.
    """
    settle()
    stop = stop or threading.Event()
    match plan.source.partition(":")[0]:
        case "v4l2":
            return V4l2Source(plan)
        case "rtsp" | "rtsps" | "http" | "https":
            return StreamSource(plan)
        case "file":
            return VideoSource(plan, stop)
        case "folder":
            return FolderSource(plan, stop) if plan.loop else WatchedFolderSource(plan, stop)
        case "synthetic":
            return SyntheticSource(plan, stop)
    raise CameraMissingError(f"Camera {plan.name}: {redacted(plan.source)} is not a kind of source known here.")
