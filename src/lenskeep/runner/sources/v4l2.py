"""Cameras on this machine, through Video4Linux, by a name that stays the same after a reboot."""

from __future__ import annotations

import os
from pathlib import Path

import cv2

from lenskeep.errors import CameraLostError, CameraMissingError
from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.resize import Image
from lenskeep.runner.sources.devices import device_path, list_v4l2
from lenskeep.runner.sources.source import usable_fps

FPS = 30.0


class V4l2Source:
    """One camera of this machine."""

    lag_s = 0.0

    def __init__(self, plan: CameraPlan) -> None:
        self._camera = plan.name
        self._path = device_path(plan.source)
        _check_device(plan.name, self._path)
        self._capture = cv2.VideoCapture(os.path.realpath(self._path), cv2.CAP_V4L2)
        if not self._capture.isOpened():
            raise CameraMissingError(
                f"Camera {plan.name}: {self._path} does not open. Another program may use it, or it is no camera."
            )
        self._ask_for(plan)
        self.fps = usable_fps(plan.fps, self._capture.get(cv2.CAP_PROP_FPS), FPS)
        self.width_px = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height_px = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))

    def read(self) -> Image:
        read, image = self._capture.read()
        if not read or image is None or not image.size:
            raise CameraLostError(f"Camera {self._camera}: {self._path} stopped sending pictures.")
        return image  # type: ignore[no-any-return]

    def close(self) -> None:
        self._capture.release()

    def _ask_for(self, plan: CameraPlan) -> None:
        """Ask for compressed pictures first, or USB has no room for large ones; what the camera gives is read back."""
        self._capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter.fourcc(*"MJPG"))
        if plan.width_px and plan.height_px:
            self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, plan.width_px)
            self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, plan.height_px)
        if plan.fps:
            self._capture.set(cv2.CAP_PROP_FPS, plan.fps)


def _check_device(camera: str, path: Path) -> None:
    """Say in plain words what the driver would only refuse."""
    if not path.exists():
        plugged = [device["by_id"] or device["path"] for device in list_v4l2() if device["capture"]]
        there = f"Plugged in: {', '.join(plugged)}." if plugged else "No camera is plugged in."
        raise CameraMissingError(f"Camera {camera}: there is no {path}. {there}")
    if not os.access(path, os.R_OK | os.W_OK):
        raise CameraMissingError(
            f"Camera {camera}: this service may not open {path}.", hint="Add its user to the group `video`."
        )
