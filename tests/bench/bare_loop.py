"""The loop that anybody writes: read, resize, run, decode, one after the other. What the runner is measured against.

`python -m tests.bench.bare_loop CLIP MODEL SECONDS FPS` prints figures as JSON; FPS 0 is as fast as it goes. It gets
the fast ways of doing each step (`blobFromImage`, a session without spinning threads), so that the comparison is fair.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # as the runner does
import cv2
import numpy as np
import onnxruntime as ort


def main(clip: str, model: str, seconds: float, fps: float) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4
    session = ort.InferenceSession(Path(model).read_bytes(), options, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape[2]
    capture = cv2.VideoCapture(clip)
    latencies_ms, ends = [], []
    begun = due = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        if fps:
            due += 1 / fps
            time.sleep(max(0.0, due - time.perf_counter()))
        good, image = capture.read()
        if not good:
            capture = cv2.VideoCapture(clip)
            continue
        arrived = time.perf_counter()
        tensor = cv2.dnn.blobFromImage(image, 1 / 255, (size, size), swapRB=True)
        scores = session.run(["scores"], {"images": tensor})[0][0]
        best = int(scores.argmax())
        done = time.perf_counter()
        latencies_ms.append((done - arrived) * 1000)
        ends.append(done)
        assert 0 <= best < len(scores)
    warm = slice(5, None)
    intervals_ms = np.diff(ends[warm]) * 1000
    figures = {
        "fps": len(ends[warm]) / (ends[-1] - ends[5]),
        "latency_p50_ms": float(np.quantile(latencies_ms[warm], 0.5)),
        "latency_p99_ms": float(np.quantile(latencies_ms[warm], 0.99)),
        "interval_p99_ms": float(np.quantile(intervals_ms, 0.99)),
    }
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
