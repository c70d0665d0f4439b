"""Opens whatever a camera's plan names."""

from __future__ import annotations

import threading

from lenskeep.errors import CameraMissingError
from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.sources.source import Source, redacted
from lenskeep.runner.sources.synthetic import SyntheticSource
from lenskeep.runner.sources.video import VideoSource


def open_source(plan: CameraPlan, stop: threading.Event | None = None) -> Source:
    """Open the source of a plan.

    Args:
        stop: ends the waiting of sources that wait by themselves; a read inside a camera's driver cannot be ended.
    Raises: CameraMissingError, in words for the person at the device.
    Cost: up to the plan's open_timeout_s for a network that does not answer.
    """
    stop = stop or threading.Event()
    match plan.source.partition(":")[0]:
        case "file":
            return VideoSource(plan, stop)
        case "synthetic":
            return SyntheticSource(plan, stop)
    raise CameraMissingError(f"Camera {plan.name}: {redacted(plan.source)} is not a kind of source known here.")
