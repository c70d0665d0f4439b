"""Write a clip of the synthetic line, to be looped by a camera that reads files.

    python scripts/samples/make_clip.py station.avi --station          # one cap at a time, for the classifier
    python scripts/samples/make_clip.py belt.mp4 --belt --size 1920x1080

`.avi` is motion JPEG, written by OpenCV; `.mp4` is H.264 and needs an `ffmpeg` program. A clip whose length is a
multiple of 60 frames repeats without a jump.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from lenskeep.runner.belt import LOOP_STEP_FRAMES, Belt


def main() -> int:
    arguments = _arguments()
    width_px, height_px = arguments.size
    loop_frames = arguments.frames if arguments.frames % LOOP_STEP_FRAMES == 0 else 0
    belt = Belt(arguments.seed, width_px, height_px, station=arguments.station, loop_frames=loop_frames)
    frames = (belt.frame(index) for index in range(arguments.frames))
    write = write_h264 if arguments.out.suffix == ".mp4" else write_mjpeg
    try:
        write(arguments.out, frames, arguments.size, arguments.fps)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"make_clip: {error}", file=sys.stderr)
        return 1
    return 0


def write_mjpeg(path: Path, frames: Iterator[NDArray[np.uint8]], size: tuple[int, int], fps: float) -> None:
    """Write motion JPEG in AVI, the form that every OpenCV build reads without FFmpeg."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_OPENCV_MJPEG, cv2.VideoWriter.fourcc(*"MJPG"), fps, size)
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot write {path}")
    writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 60)  # 170 kB a frame at 1280x720
    try:
        for frame in frames:
            writer.write(frame)
    finally:
        writer.release()


def write_h264(path: Path, frames: Iterator[NDArray[np.uint8]], size: tuple[int, int], fps: float) -> None:
    """Write H.264 in MP4 by piping the frames to `ffmpeg`; a key frame each second, so that a loop starts at once."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise OSError("an .mp4 clip needs the ffmpeg program on the PATH; an .avi clip does not")
    source = ["-f", "rawvideo", "-pix_fmt", "bgr24", "-s", f"{size[0]}x{size[1]}", "-r", str(fps), "-i", "-"]
    target = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p", "-g", str(round(fps))]
    command = [program, "-y", "-loglevel", "error", *source, *target, "-movflags", "+faststart", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as encoder:
        assert encoder.stdin is not None
        for frame in frames:
            encoder.stdin.write(frame.tobytes())
        encoder.stdin.close()
        if encoder.wait():
            raise subprocess.CalledProcessError(encoder.returncode, program)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--size", type=_size, default=(1280, 720), metavar="WxH")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=7)
    view = parser.add_mutually_exclusive_group()
    view.add_argument("--station", action="store_true", help="the close view with one cap at a time")
    view.add_argument("--belt", action="store_true", help="the wide view of three lanes (the default)")
    arguments = parser.parse_args()
    if arguments.out.suffix not in {".avi", ".mp4"}:
        parser.error(f"OUT must end in .avi or .mp4: {arguments.out}")
    return arguments


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    return int(width), int(height)


if __name__ == "__main__":
    sys.exit(main())
