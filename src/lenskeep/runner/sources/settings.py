"""How OpenCV is set before the first source is opened; one set of settings for the whole process."""

from __future__ import annotations

import os
from functools import cache

import cv2

_SETTINGS = {
    "OPENCV_FFMPEG_CAPTURE_OPTIONS": "rtsp_transport;tcp",  # lost UDP packets are grey bands that get judged
    "OPENCV_FFMPEG_IS_THREAD_SAFE": "1",  # else a camera that does not answer holds up the opening of all others
    "OPENCV_FFMPEG_LOGLEVEL": "-8",  # we say what is wrong, once, and without the address's password
    "OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT": "3",  # seconds a read waits inside the driver; OpenCV's own is 10
}


@cache
def settle() -> None:
    """Set what is not set from outside. FFmpeg and V4L2 look at these when a source is opened."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
