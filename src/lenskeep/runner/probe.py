"""`python -m lenskeep.runner.probe`: looks at a camera apart from the line, and lists what is plugged in.

    probe CAMERA_PLAN_JSON [--seconds N] [--snapshot OUT.jpg]
    list

It prints one JSON object and always ends: what hangs in a driver is left behind with the process.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import monotonic
from typing import Any

import msgspec

from lenskeep.errors import CameraError, CameraFormatError, CameraFrozenError, CameraMissingError, LenskeepError
from lenskeep.messages.runner import CameraPlan
from lenskeep.runner.resize import Image
from lenskeep.runner.sources.address import redacted
from lenskeep.runner.sources.devices import list_v4l2
from lenskeep.runner.sources.source import is_live

SAMPLE_S = 0.2  # sharpness and brightness are measured a few times a second
SMALL_PX = (320, 180)  # Laplacian variance there costs 58 us, at 1080p 2 to 7 ms, and orders pictures alike


@dataclass
class Look:
    """What was seen of a camera so far; the thread that reads writes, whoever waits reads."""

    begun_s: float = field(default_factory=monotonic)
    open_ms: float | None = None
    first_frame_ms: float | None = None
    fps_nominal: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    size_px: tuple[int, int] = (0, 0)
    identical: int = 0  # pictures equal to the one before: a frozen sensor, or a scene without any noise
    sharpness: list[float] = field(default_factory=list)
    brightness: list[float] = field(default_factory=list)
    last: Image | None = None
    fault: CameraError | None = None


def probe(plan: CameraPlan, seconds: float) -> tuple[dict[str, Any], Image | None]:
    """Open a camera and watch it for a while.

    Returns: the measurements, and the last picture. `sharpness` is the variance of the Laplacian at 320x180,
        `brightness` the mean grey in [0, 1], `jitter_ms` the median deviation of the intervals from their median.
    Cost: `seconds`, and the plan's timeouts before that at most.
    """
    look = Look()
    stop = threading.Event()
    reader = threading.Thread(target=_look, args=(plan, look, seconds, stop), name="probe", daemon=True)
    reader.start()
    reader.join(plan.open_timeout_s + plan.read_timeout_s + seconds + 1.0)
    stop.set()
    if reader.is_alive() and look.fault is None:
        look.fault = _silent(plan, look)
    return _summary(plan, look), look.last


def _look(plan: CameraPlan, look: Look, seconds: float, stop: threading.Event) -> None:
    from lenskeep.runner.sources.opening import open_source

    try:
        with closing(open_source(plan, stop)) as source:
            look.open_ms = (monotonic() - look.begun_s) * 1000
            look.fps_nominal = source.fps
            until_s = monotonic() + seconds
            while monotonic() < until_s and not stop.is_set():
                image = source.read()
                if image is None:
                    break
                _note(look, image)
        look.fault = _unfit(plan, look)
    except CameraError as fault:
        look.fault = fault


def _note(look: Look, image: Image) -> None:
    import cv2
    import numpy as np

    now_s = monotonic()
    if not look.arrivals_s:
        look.first_frame_ms = (now_s - look.begun_s) * 1000
    if look.last is not None and np.array_equal(look.last[::8, ::8], image[::8, ::8]):
        look.identical += 1
    if len(look.sharpness) * SAMPLE_S <= now_s - (look.arrivals_s[0] if look.arrivals_s else now_s):
        grey = cv2.cvtColor(cv2.resize(image, SMALL_PX, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2GRAY)
        look.sharpness.append(float(cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))[1][0, 0] ** 2))
        look.brightness.append(float(cv2.mean(grey)[0]) / 255)
    look.arrivals_s.append(now_s)
    look.size_px = (image.shape[1], image.shape[0])
    look.last = image


def _unfit(plan: CameraPlan, look: Look) -> CameraError | None:
    if not look.arrivals_s:
        return CameraMissingError(f"Camera {plan.name}: {redacted(plan.source)} opens but gave no picture.")
    width_px, height_px = look.size_px
    if (plan.width_px or width_px, plan.height_px or height_px) != look.size_px:
        return CameraFormatError(
            f"Camera {plan.name}: its pictures are {width_px}x{height_px}, "
            f"configured are {plan.width_px or 'any'}x{plan.height_px or 'any'}."
        )
    return None


def _silent(plan: CameraPlan, look: Look) -> CameraError:
    where = f"Camera {plan.name}: {redacted(plan.source)}"
    if look.open_ms is None:
        return CameraMissingError(f"{where} did not open in time.")
    return CameraFrozenError(f"{where} is open but sends no more pictures.")


def _summary(plan: CameraPlan, look: Look) -> dict[str, Any]:
    intervals_ms = [
        (later - earlier) * 1000
        for earlier, later in zip(look.arrivals_s, look.arrivals_s[1:], strict=False)  # each with the next
    ]
    usual_ms = median(intervals_ms) if intervals_ms else 0.0
    span_s = look.arrivals_s[-1] - look.arrivals_s[0] if look.arrivals_s else 0.0
    return {
        "camera": plan.name,
        "source": redacted(plan.source),
        "live": is_live(plan),
        "ok": look.fault is None,
        **_told(look.fault),
        "open_ms": _rounded(look.open_ms),
        "first_frame_ms": _rounded(look.first_frame_ms),
        "frames": len(look.arrivals_s),
        "fps": round(len(intervals_ms) / span_s, 2) if span_s else 0.0,
        "fps_nominal": round(look.fps_nominal, 2),
        "interval_ms_max": _rounded(max(intervals_ms, default=None)),
        "jitter_ms": _rounded(median(abs(one - usual_ms) for one in intervals_ms) if intervals_ms else None),
        "width_px": look.size_px[0],
        "height_px": look.size_px[1],
        "identical": look.identical,
        "sharpness": _rounded(median(look.sharpness) if look.sharpness else None),
        "brightness": round(median(look.brightness), 3) if look.brightness else None,
    }


def _told(fault: CameraError | None) -> dict[str, str]:
    if fault is None:
        return {"code": "", "message": "", "hint": ""}
    return {"code": fault.code, "message": str(fault), "hint": fault.hint}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _save(image: Image, path: Path) -> None:
    import cv2

    taken, jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 90))
    if taken:
        path.write_bytes(jpeg.tobytes())


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m lenskeep.runner.probe", description="Look at a camera.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    look = verbs.add_parser("probe")
    look.add_argument("plan", help="a camera's plan as JSON")
    look.add_argument("--seconds", type=float, default=5.0)
    look.add_argument("--snapshot", type=Path)
    return parser.parse_args(words)


def main(words: list[str]) -> dict[str, Any]:
    """Do what the command line says and return the answer."""
    asked = _arguments(words)
    if asked.verb == "list":
        return {"devices": list_v4l2()}
    try:
        plan = msgspec.json.decode(asked.plan, type=CameraPlan)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SystemExit(f"The plan cannot be used: {error}.") from error
    answer, image = probe(plan, asked.seconds)
    if asked.snapshot and image is not None:
        _save(image, asked.snapshot)
        answer["snapshot"] = str(asked.snapshot)
    return answer


if __name__ == "__main__":
    try:
        print(json.dumps(main(sys.argv[1:])), flush=True)
    except LenskeepError as error:
        raise SystemExit(str(error)) from error
    os._exit(0)  # a thread that a driver holds must not hold up the process
